"""The command line: ``certify verify``, ``batch``, ``supports``, ``accuracy`` and ``check``.

`verify` and `supports` follow chapter 5 of the VNN-LIB 2.0 standard. Imports wait until a command needs them.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from certify.properties import Query
    from certify.regions.spatial import Deformation
    from certify.verdict import QueryVerdict, Witness

_STARTED = perf_counter()

NAME = "convexnn certify"
_WORDS = {"SAT": "sat", "UNSAT": "unsat", "UNKNOWN": "unknown", "TIMEOUT": "timed-out"}

_LARGEST_DATA = 2**32  # bytes of labelled inputs, unpacked

# The exit status after Ctrl-C or SIGTERM.
_STOPPED = 130

# What `supports` prints; operators come from the reader itself.
CAPABILITIES = {
    "onnx-opset-versions": ("7", "25"),
    "onnx-element-types": ("real",),
    "onnx-operators": (),
    "vnnlib-versions": ("1.0", "2.0"),
    "hidden-node-theories": ("NH",),
    "multiple-input-output-theories": ("SIO",),
    "multiple-network-theories": ("SNET",),
    "multiple-node-comparison-theories": ("SNC",),
    "arithmetic-complexity-theories": ("BND", "OUTC"),
    "optimised-disjunctive-reasoning": ("true",),
    "serialise-assignments": ("false",),
    "unsat-proofs": ("false",),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns the exit status: 0 for any answer, 1 for a proof file that is rejected, 2 for bad input, 130 if it was
    stopped.
    """
    options = _parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except (ValueError, TypeError, NotImplementedError, ImportError, OSError, RuntimeError, MemoryError) as error:
        told = " ".join(str(error).split()) or type(error).__name__
        print(f"certify {options.command}: error: {told}", file=sys.stderr)
        return 2


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(version("convexnn"))
        parser.exit()


class _Name(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(NAME)
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="certify", description="Prove what a trained network cannot do, or show that it does."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    parser.add_argument("--name", action=_Name, nargs=0, help="print the full name")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_verify(commands)
    _add_batch(commands)
    _add_supports(commands)
    _add_accuracy(commands)
    _add_check(commands)
    return parser


def _add_verify(commands: Any) -> None:
    verify = commands.add_parser(
        "verify",
        help="answer a VNN-LIB property",
        description="Print sat, unsat, unknown or timed-out; for sat also the witness, input and output, as blocks of "
        "name, type and shape with one value a line. The witness was run in onnxruntime.",
    )
    verify.add_argument("query", type=Path, help="VNN-LIB file, 1.0 or 2.0, plain or gzipped")
    verify.add_argument(
        "--network", required=True, action="append", metavar="NAME=FILE", help="ONNX file, plain or gzipped"
    )
    verify.add_argument("--timeout", type=float, help="seconds for the whole process")
    verify.add_argument("--method", default="auto", help="auto, inputs, phases or bounds (default: %(default)s)")
    verify.add_argument("--seed", type=int, default=0, help="of the samples (default: %(default)s)")
    verify.add_argument("--workers", type=int, default=1, help="processes for a long search (default: %(default)s)")
    verify.add_argument("--results", type=Path, metavar="FILE", help="also write the answer as VNN-COMP has it")
    verify.add_argument("--verbose", action="store_true", help="how the answer was found, on stderr")
    verify.set_defaults(run=_verify)


def _add_batch(commands: Any) -> None:
    batch = commands.add_parser(
        "batch",
        help="answer many VNN-LIB properties",
        description="Answer every line network,query[,seconds] of an instances.csv, and print them as lines "
        "network,query,answer,seconds.",
    )
    batch.add_argument("instances", type=Path, help="instances.csv, or the folder that has one")
    batch.add_argument("--timeout", type=float, help="seconds for each, instead of those of the file")
    batch.add_argument("--method", default="auto", help="auto, inputs, phases or bounds (default: %(default)s)")
    batch.add_argument("--seed", type=int, default=0, help="of the samples (default: %(default)s)")
    batch.add_argument("--limit", type=int, help="only the first instances")
    _add_workers(batch)
    batch.set_defaults(run=_batch)


def _add_workers(command: Any) -> None:
    command.add_argument("--jobs", type=int, help="workers, -1 for one on every core (default: 1; a cluster's own)")
    command.add_argument("--backend", help="loky (processes, the default), threading, dask or ray")
    command.add_argument("--scheduler", help="address of a running Dask scheduler or Ray cluster")
    command.add_argument(
        "--results", type=Path, metavar="FILE", help="keep every answer as it comes; a run that was stopped goes on"
    )


def _add_supports(commands: Any) -> None:
    supports = commands.add_parser("supports", help="what queries and networks can be verified")
    group = supports.add_mutually_exclusive_group(required=True)
    for name in CAPABILITIES:
        group.add_argument(f"--{name}", dest="capability", action="store_const", const=name)
    supports.set_defaults(run=_supports)


def _add_accuracy(commands: Any) -> None:
    accuracy = commands.add_parser(
        "accuracy",
        help="certified accuracy on labelled inputs",
        description="Count the inputs of an .npz file (arrays X and y) whose label is proved to hold in a ball, or,"
        " with --spatial, for all smooth vector fields that deform an image.",
    )
    accuracy.add_argument("network", type=Path, help="ONNX file, plain or gzipped")
    accuracy.add_argument("data", type=Path, help=".npz file with the arrays X (inputs) and y (labels)")
    accuracy.add_argument("--eps", type=float, help="radius of the ball, in the units of X")
    accuracy.add_argument(
        "--spatial", action="store_true", help="images X deformed by vector fields, in place of a ball"
    )
    accuracy.add_argument("--delta", type=float, help="with --spatial: the longest vector, in pixels")
    accuracy.add_argument("--gamma", type=float, help="with --spatial: how much neighbouring vectors may differ")
    accuracy.add_argument("--norm", default="linf", choices=("linf", "l2", "l1"), help="default: %(default)s")
    accuracy.add_argument("--method", default="crown", help="bounding method (default: %(default)s)")
    accuracy.add_argument("--domain", type=float, nargs=2, metavar=("LOW", "HIGH"), help="limits of valid inputs")
    accuracy.add_argument("--limit", type=int, help="only the first inputs")
    _add_workers(accuracy)
    accuracy.set_defaults(run=_accuracy)


def _add_check(commands: Any) -> None:
    check = commands.add_parser(
        "check",
        help="check a proof file in exact arithmetic",
        description="Accept a proof file and say what it proves (exit status 0), or reject it with the reason (1); "
        "2 is for a file that cannot be read. Options say what the proof has to be about.",
    )
    check.add_argument(
        "proof", type=Path, help="what verify(..., proof=FILE) or convexnn's optimality_gap(..., out=FILE) wrote"
    )
    check.add_argument("--model", type=Path, metavar="NET.onnx", help="the network, weight by weight")
    check.add_argument("--label", type=int, help="the class that is kept")
    check.add_argument(
        "--data", type=Path, metavar="DATA.npz", help="the training data X and y (and weights), number by number"
    )
    check.set_defaults(run=_check)


def _verify(options: argparse.Namespace) -> None:
    from certify.properties.vnnlib import read_vnnlib
    from certify.queries import verify_vnnlib

    query = read_vnnlib(options.query)
    path = _network(options.network, query.declared.network if query.declared else None)
    left = options.timeout
    if left is not None and left > 0:
        # Reading the files may have taken all the time already: then the search gives up at once.
        left = max(left - (perf_counter() - _STARTED), 1e-3)
    verdict = verify_vnnlib(
        path, query, timeout=left, method=options.method, seed=options.seed, workers=options.workers
    )
    if options.results is not None:
        options.results.write_text(_vnncomp(verdict))
    print(_WORDS[verdict.answer.name])
    if verdict.witness is not None:
        _print_witness(verdict.witness, query)
    if options.verbose:
        print(verdict, file=sys.stderr)


def _network(given: Sequence[str], declared: str | None) -> str:
    """The file of the one network."""
    pairs = [text.partition("=") for text in given]
    if len(pairs) != 1 or not all(name and path for name, _, path in pairs):
        raise ValueError(f"--network is {', '.join(given)}; expected one NAME=FILE: queries ask about one network")
    name, _, path = pairs[0]
    if declared is not None and name != declared:
        raise ValueError(f"--network names {name!r}; the query declares the network {declared!r}")
    return path


def _print_witness(witness: "Witness", query: "Query") -> None:
    """Blocks of name, type and shape, then one value a line in row-major order."""
    arrays = (witness.inputs, witness.outputs)
    if query.declared is None:
        names, types, shapes = ("X", "Y"), [a.dtype.name for a in arrays], [a.shape for a in arrays]
    else:
        names, types, shapes = query.declared.names, list(query.declared.types), list(query.declared.shapes)
    for name, kind, shape, array in zip(names, types, shapes, arrays, strict=True):
        print(f"{name} {kind} [{','.join(map(str, shape))}]")
        print("\n".join(map(str, array.ravel())))


def _vnncomp(verdict: "QueryVerdict") -> str:
    """The results file of VNN-COMP: the answer, and for sat `((X_0 value) ... (Y_0 value) ...)`."""
    lines = [{"timed-out": "timeout"}.get(_WORDS[verdict.answer.name], _WORDS[verdict.answer.name])]
    if verdict.witness is not None:
        arrays = (("X", verdict.witness.inputs), ("Y", verdict.witness.outputs))
        pairs = [f"({kind}_{j} {value})" for kind, array in arrays for j, value in enumerate(array.ravel())]
        lines.append("(" + "\n".join(pairs) + ")")
    return "\n".join(lines) + "\n"


def _supports(options: argparse.Namespace) -> None:
    lines = CAPABILITIES[options.capability]
    if options.capability == "onnx-operators":
        from certify.ir.onnx_rules import RULES

        lines = tuple(sorted(RULES))
    print("\n".join(lines))


@contextmanager
def _workers(options: argparse.Namespace) -> Iterator[None]:
    """The workers that were asked for; a request to end (SIGTERM) is one to stop and report, as Ctrl-C is."""
    import signal

    from certify.jobs import parallel_backend

    if options.jobs == 0:
        raise ValueError("--jobs is 0; expected a number of workers, or -1 for one on every core")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with parallel_backend(options.backend, n_jobs=options.jobs, scheduler=options.scheduler):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _batch(options: argparse.Namespace) -> int:
    import csv
    from dataclasses import replace

    from certify.instances import read_instances
    from certify.many import verify_many

    instances = read_instances(options.instances)[: _positive(options.limit)]
    if options.timeout is not None:
        instances = [replace(instance, timeout=options.timeout) for instance in instances]
    with _workers(options):
        report = verify_many(
            instances, method=options.method, seed=options.seed, n_jobs=options.jobs, results=options.results
        )
    rows = csv.writer(sys.stdout, lineterminator="\n")
    for k, (instance, verdict) in enumerate(zip(report.instances, report.verdicts, strict=True)):
        word = _WORDS.get(report.word(k), report.word(k).lower())
        rows.writerow([*instance.names, word, "" if verdict is None else f"{verdict.seconds:.3f}"])
    for k, told in report.errors.items():
        print(f"{' '.join(report.instances[k].names)}: {told}", file=sys.stderr)
    print(report, file=sys.stderr)
    return _STOPPED if report.interrupted else 0


def _positive(limit: int | None) -> int | None:
    if limit is not None and limit < 1:
        raise ValueError(f"--limit is {limit}; expected at least 1")
    return limit


def _accuracy(options: argparse.Namespace) -> int:
    from certify.accuracy import certified_accuracy
    from certify.ir.module import module_from_onnx

    region = _deformation(options)
    limit = _positive(options.limit)
    X, y = (array[:limit] for array in _labelled(options.data))
    with _workers(options):
        report = certified_accuracy(
            module_from_onnx(options.network),
            X,
            y,
            eps=options.eps,
            norm=options.norm if region is None else "linf",
            method=options.method,
            domain=options.domain,
            n_jobs=options.jobs,
            results=options.results,
            region=region,
        )
    print(report)
    return _STOPPED if report.interrupted else 0


def _deformation(options: argparse.Namespace) -> "Deformation | None":
    """The limits of vector fields, if they are asked for."""
    if not options.spatial:
        if options.eps is None or options.delta is not None or options.gamma is not None:
            raise ValueError("expected --eps, or --spatial with --delta (and --gamma)")
        return None
    if options.eps is not None or options.delta is None:
        raise ValueError("--spatial goes with --delta (and --gamma), and without --eps")
    from certify.regions.spatial import Deformation

    return Deformation(options.delta, options.norm, options.gamma)


def _labelled(path: Path) -> "tuple[np.ndarray, np.ndarray]":
    """The arrays X and y of an .npz file."""
    X, y, _ = _arrays(path)
    assert X is not None
    assert y is not None
    return X, y


def _arrays(path: Path) -> "tuple[np.ndarray | None, ...]":
    """The arrays X, y and, where there are any, weights of an .npz file."""
    import zipfile
    import zlib

    import numpy as np

    if path.is_file() and not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no .npz file, or damaged; expected one with X (inputs) and y (labels)")
    try:
        if path.is_file():
            with zipfile.ZipFile(path) as archive:
                size = sum(member.file_size for member in archive.infolist())
            if size > _LARGEST_DATA:
                raise ValueError(f"{path} unpacks to {size} bytes; expected at most {_LARGEST_DATA}: split it")
        with np.load(path, allow_pickle=False) as data:
            if not {"X", "y"} <= set(data.files):
                raise ValueError(f"{path} has the arrays {data.files}; expected X (inputs) and y (labels)")
            return data["X"], data["y"], data["weights"] if "weights" in data.files else None
    except (EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _check(options: argparse.Namespace) -> int:
    from certify.proof.check import RejectedError, check_file

    given: dict[str, Any] = {} if options.label is None else {"label": options.label}
    if options.data is not None:
        given["samples"] = _samples(options.data)
    if options.model is not None:
        from certify.ir.from_onnx import graph_from_onnx
        from certify.proof.emit.chain import exact_network

        given["network"] = exact_network(graph_from_onnx(options.model, simplified=False))
    try:
        print(check_file(options.proof, **given))
    except RejectedError as error:
        print(f"rejected: {error}")
        return 1
    return 0


def _samples(path: Path) -> Any:
    """The training data of an .npz file, as the rational numbers that they are."""
    import numpy as np

    from certify.proof.check.given import Samples
    from certify.proof.writing import exact

    X, y, weights = _arrays(path)
    assert X is not None
    assert y is not None
    if X.ndim != 2 or X.size == 0 or y.size != len(X) or (weights is not None and weights.size != len(X)):
        shapes = ", ".join(str(part.shape) for part in (X, y, weights) if part is not None)
        raise ValueError(f"{path} has the shapes {shapes}; expected X (n, d), y (n), and weights (n) if any")
    for part in (X, y, weights):
        if part is not None and not (part.dtype.kind in "biuf" and np.isfinite(part).all()):
            raise ValueError(f"{path} has entries that are no finite numbers; give X and y as training took them")
    return Samples(exact(X), exact(y.ravel()), None if weights is None else exact(weights.ravel()))
