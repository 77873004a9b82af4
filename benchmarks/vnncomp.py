"""Whole processes of `certify verify` on VNN-COMP 2022 instances, against the answers known from the competition.

    python -m benchmarks.vnncomp --benchmark rl_benchmarks --timeout 20 --limit 40
    python -m benchmarks.vnncomp --benchmark acasxu --timeout 60 --peer vibecheck --peer-command ".../bin/vibecheck"

Instances lie in `vnn/` under `$CONVEXNN_SHARED` (default: `../shared` beside the repository), the known answers in
`vnn/RESULTS_vnncomp2022.csv` (sat: a witness was replayed; unsat: claimed by a tool, no witness known). Every
witness is replayed here once more, from the printed numbers. An answer that contradicts a known one, a witness
that does not replay, or an unsat where nothing is known and the peer says sat makes the exit status 1. Wall and
CPU seconds are those of the whole process, start included. The peer, vibecheck-nn from PyPI, runs beside it on the
same instances, one process at a time; it belongs into a virtual environment of its own.
"""

import argparse
import csv
import gzip
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.data import shared_file
from certify.ir.onnx_file import read_program
from certify.ir.runtime import Runtime
from certify.properties import read_vnnlib
from certify.search.replay import INPUT_TOLERANCE

BENCHMARKS = (
    "test",
    "acasxu",
    "rl_benchmarks",
    "reach_prob_density",
    "mnist_fc",
    "collins_rul_cnn",
    "cifar10_resnet",
    "verivital",
)
_DECIDED = ("sat", "unsat")
_ANSWERS = (*_DECIDED, "unknown", "timed-out", "timeout")
# Seconds that a process may take beyond its time limit before it is ended.
_GRACE = 10.0


@dataclass(frozen=True)
class Instance:
    """One line of a benchmark."""

    network: Path
    query: Path
    truth: str

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.network.name} {self.query.name}"


@dataclass(frozen=True)
class Run:
    """One process: its first line, the rest of its output, wall and CPU seconds."""

    answer: str
    output: list[str]
    wall: float
    cpu: float


@dataclass
class Tally:
    """The runs of one tool, and what was wrong with them."""

    tool: str
    runs: list[Run] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def row(self) -> str:
        """One line of the table."""
        count = Counter(run.answer for run in self.runs)
        decided = [run for run in self.runs if run.answer in _DECIDED]
        wall, cpu = [r.wall for r in self.runs], [r.cpu for r in self.runs]
        return (
            f"| {self.tool} | {len(decided)} of {len(self.runs)} | {count['sat']} | {count['unsat']} | "
            f"{median(wall):.2f} | {max(wall):.2f} | {median(cpu):.2f} | {max(cpu):.2f} | {sum(wall):.0f} | "
            f"{len(self.wrong)} |"
        )


HEADER = (
    "| tool | decided | sat | unsat | median s | max s | median CPU s | max CPU s | total s | wrong |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def instances(benchmark: str) -> list[Instance]:
    """The lines of `instances.csv` with their known answers."""
    root = shared_file(f"vnn/{benchmark}/instances.csv").parent
    files = {path.name.removesuffix(".gz"): path for path in root.rglob("*") if path.is_file()}
    with shared_file("vnn/RESULTS_vnncomp2022.csv").open() as stream:
        known = {(r["onnx"], r["vnnlib"]): r["truth"] for r in csv.DictReader(stream) if r["benchmark"] == benchmark}
    with (root / "instances.csv").open() as stream:
        rows = [(Path(row[0]), Path(row[1])) for row in csv.reader(stream)]
    queries = {path.relative_to(root).as_posix().removesuffix(".gz"): path for path in root.rglob("*.vnnlib*")}
    return [
        Instance(files[onnx.name], _query(queries, vnnlib), known.get((onnx.name, vnnlib.name), "?"))
        for onnx, vnnlib in rows
    ]


def _query(queries: dict[str, Path], listed: Path) -> Path:
    """The file that a line means: folders were renamed in some benchmarks, the last ones were not."""
    for depth in range(len(listed.parts), 0, -1):
        tail = "/".join(listed.parts[-depth:])
        found = [path for name, path in queries.items() if name == tail or name.endswith("/" + tail)]
        if len(found) == 1:
            return found[0]
    raise SystemExit(f"{listed} is listed in instances.csv but absent")


def run(command: Sequence[str], timeout: float) -> Run:
    """One process, ended if it does not end itself."""
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=timeout + _GRACE
        )
        lines = done.stdout.split("\n")
        if lines[0].strip() not in _ANSWERS:  # an exit status means different things to different tools
            lines = ["error", *done.stderr.splitlines()[-1:]]
    except subprocess.TimeoutExpired:
        lines = ["killed"]
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(lines[0].strip(), lines[1:], wall, cpu)


def replays(instance: Instance, output: Sequence[str]) -> bool:
    """Whether the printed input, run once more, is unsafe."""
    query = read_vnnlib(instance.query)
    runtime = Runtime(read_program(instance.network).content)
    x = np.array(output[1 : 1 + query.n_inputs], dtype=np.float64).astype(runtime.dtype)
    y = runtime(x).astype(np.float64).ravel()
    point = x.astype(np.float64)
    return any(case.excess(point) <= INPUT_TOLERANCE and case.holds_for(y) for case in query.cases)


def judge(tally: Tally, instance: Instance, answer: Run, *, printed: bool) -> None:
    """Record a run, and whether it contradicts what is known."""
    tally.runs.append(answer)
    if answer.answer in _DECIDED and instance.truth in _DECIDED and answer.answer != instance.truth:
        tally.wrong.append(f"{instance.name}: {answer.answer}, known to be {instance.truth}")
    if answer.answer == "sat" and printed and not replays(instance, answer.output):
        tally.wrong.append(f"{instance.name}: the printed witness does not replay")


def compare_answers(ours: Tally, peer: Tally, instance: Instance) -> None:
    """Where nothing is known and the last answers differ: a sat was replayed if it is ours."""
    answers = ours.runs[-1].answer, peer.runs[-1].answer
    if instance.truth not in _DECIDED and set(answers) == set(_DECIDED):
        blamed = peer if answers[0] == "sat" else ours
        blamed.wrong.append(f"{instance.name}: {ours.tool} says {answers[0]}, {peer.tool} says {answers[1]}")


def unpacked(path: Path, folder: Path) -> Path:
    """The file itself, or its content without compression: peers read plain files."""
    if path.suffix != ".gz":
        return path
    plain = folder / f"{path.parent.name}_{path.name.removesuffix('.gz')}"
    if not plain.exists():
        plain.write_bytes(gzip.decompress(path.read_bytes()))
    return plain


def compare(options: argparse.Namespace, benchmark: str) -> list[str]:
    """All instances of one benchmark; prints the table and returns what was wrong."""
    chosen = instances(benchmark)[options.first :][: options.limit]
    ours, peer = Tally("certify"), Tally("vibecheck-nn")
    with tempfile.TemporaryDirectory() as folder:
        for instance in chosen:
            network, query = (str(path) for path in (instance.network, instance.query))
            end = ["--timeout", f"{options.timeout:g}"]
            command = [sys.executable, "-m", "certify", "verify", "--network", f"N={network}", *end, query]
            judge(ours, instance, run([*command, *shlex.split(options.extra)], options.timeout), printed=True)
            if options.peer:
                plain = [str(unpacked(path, Path(folder))) for path in (instance.network, instance.query)]
                words = [*shlex.split(options.peer_command), "verify", plain[1], "--network", f"N={plain[0]}", *end]
                judge(peer, instance, run(words, options.timeout), printed=False)
                compare_answers(ours, peer, instance)
            _tell(options, instance, [tally.runs[-1] for tally in (ours, peer) if tally.runs])
    print(f"\n{benchmark}, {options.timeout:g} s a property, whole processes one at a time\n{HEADER}\n{ours.row()}")
    if options.peer:
        print(peer.row())
    for tally in (ours, peer):
        for text in tally.wrong:
            print(f"WRONG ({tally.tool}): {text}")
    return ours.wrong


def _tell(options: argparse.Namespace, instance: Instance, runs: Sequence[Run]) -> None:
    ours = runs[0]
    if options.verbose or ours.answer not in _DECIDED:
        shown = ", ".join(f"{run.answer} {run.wall:.2f} s ({run.cpu:.2f} s CPU)" for run in runs)
        extra = " ".join(ours.output[:1]) if ours.answer == "error" else ""
        print(f"{instance.name} [{instance.truth}]: {shown} {extra}", flush=True)


def main() -> int:
    """Run what was asked for; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", choices=(*BENCHMARKS, "all"), default="rl_benchmarks")
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--first", type=int, default=0, help="skip so many instances")
    parser.add_argument("--limit", type=int, help="only so many instances of each benchmark")
    parser.add_argument("--extra", default="", help="further options for certify verify")
    parser.add_argument("--peer", choices=("vibecheck",))
    parser.add_argument("--peer-command", default="vibecheck")
    parser.add_argument("--verbose", action="store_true", help="a line for every instance, not only the undecided")
    options = parser.parse_args()
    names = BENCHMARKS if options.benchmark == "all" else (options.benchmark,)
    wrong = [text for name in names for text in compare(options, name)]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
