"""Many questions on many workers, stopped and gone on with: the same answers, each computed once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from certify_cases import mlp, randomised, seeded
from joblib import parallel_config
from test_queries import write_onnx, written
from test_verify import balanced
from torch import nn

import certify
from certify.cli import main
from certify.errors import InvalidInputError, MissingDependencyError, ResultsFileError, WorkerLostError
from certify.jobs import Ledger, array_from_json, array_to_json, digest_of, parallel_backend, run_jobs
from certify.search import PGD, PLANS
from certify.verdict import Answer, Status

NETWORK = balanced(randomised(mlp(3, 12, 12, 3), 40), (3,))
X = torch.rand((24, 3), generator=seeded(41)).numpy()
Y = NETWORK(torch.from_numpy(X)).argmax(1).numpy()
Y[::9] = (Y[::9] + 1) % 3
PLAN = replace(PLANS["complete"], attack=PGD(steps=4, restarts=1), limit=20.0)


@pytest.fixture
def small_batches(monkeypatch):
    """Three batches. The size never depends on the workers, which do not see it."""
    monkeypatch.setattr("certify.bounds.AlphaCROWN.largest_batch", 8)


@pytest.fixture(scope="module")
def cluster():
    """Two Dask workers, processes of their own."""
    distributed = pytest.importorskip("distributed", reason="Dask is not installed: the extra 'distributed'")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs="CRITICAL"
        ) as local,
        distributed.Client(local),
    ):
        yield


def accuracy(**options):
    return certify.certified_accuracy(NETWORK, X, Y, **{"eps": 0.07, "domain": (0, 1), "method": PLAN, **options})


def same_reports(first, second):
    assert (first.statuses == second.statuses).all()
    assert (first.worst_margins == second.worst_margins).all()
    assert (first.clean, first.attacked, first.certified) == (second.clean, second.attacked, second.certified)
    assert first.counterexamples.keys() == second.counterexamples.keys()
    for k, point in first.counterexamples.items():
        assert point.dtype == second.counterexamples[k].dtype
        assert (point == second.counterexamples[k]).all()


def records(path):
    """The answers in a file, none of them twice."""
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()][1:]
    assert max(Counter(line["key"] for line in lines).values(), default=0) <= 1
    return lines


# The file


def test_whatever_is_cut_off_only_the_torn_line_is_lost(tmp_path):
    path, answers = tmp_path / "results.jsonl", {f"k{j}": {"value": [j, None, "é\n"]} for j in range(2)}
    with Ledger.open(path, {"what": "test"}) as ledger:
        for key, record in answers.items():
            ledger.add(key, record)
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        with Ledger.open(path, {"what": "test"}) as ledger:
            assert len(ledger.known) == max(whole[:length].count(b"\n") - 1, 0)
            for key, record in answers.items():
                if key not in ledger.known:
                    ledger.add(key, record)
        assert path.read_bytes() == whole


def test_a_file_of_something_else_is_left_as_it_is(tmp_path):
    path = tmp_path / "mine.csv"
    for content in (b"a,b\n1,2\n", b"a", b"{}\n", b"\x00" * 50, b'{"format": "other"}\n'):
        path.write_bytes(content)
        with pytest.raises(ResultsFileError, match="left as it is"), Ledger.open(path, {}):
            pass
        assert path.read_bytes() == content
    with pytest.raises(ResultsFileError, match="cannot write"), Ledger.open(tmp_path, {}):
        pass


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "results.jsonl"
    with Ledger.open(path, {}) as ledger:
        for key in "abc":
            ledger.add(key, {})
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"{broken\n", *lines[3:]]))
    with pytest.raises(ResultsFileError, match="line 3 of"), Ledger.open(path, {}):
        pass


def test_two_runs_do_not_share_a_file(tmp_path):
    path = tmp_path / "results.jsonl"
    with (
        Ledger.open(path, {}) as ledger,
        pytest.raises(ResultsFileError, match="another run"),
        Ledger.open(path, {}),
    ):
        pass
    with Ledger.open(tmp_path / "other", {"a": 1}) as ledger:
        ledger.add("k", {})
        with pytest.raises(InvalidInputError, match="there already"):
            ledger.add("k", {})
    with pytest.raises(ResultsFileError, match="a was 1 and is 2"), Ledger.open(tmp_path / "other", {"a": 2}):
        pass


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arrays_keep_every_bit(dtype):
    array = np.array([[0.1, -0.0, np.nextafter(1, 2)], [1e-45, np.inf, np.nan]], dtype=dtype)
    back = array_from_json(json.loads(json.dumps(array_to_json(array))))
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_parts_of_a_digest_do_not_run_into_each_other():
    one, two = np.array([1.0, 2.0]), np.array([[1.0], [2.0]])
    parts = [("ab", "c"), ("a", "bc"), (b"ab", "c"), (one,), (two,), (one.astype(np.float32),), (one.astype(int),), ()]
    assert len({digest_of(*part) for part in parts}) == len(parts)
    assert digest_of(one) == digest_of(one.astype(">f8"))


# Certified accuracy


def test_workers_and_restarts_do_not_change_the_report(small_batches, tmp_path, cluster):
    alone = accuracy()
    assert {Status.VERIFIED, Status.FALSIFIED} <= set(alone.statuses)
    assert alone.certified <= alone.attacked <= alone.clean < 1
    path = tmp_path / "alone.jsonl"
    same_reports(accuracy(results=path), alone)
    whole = path.read_text().splitlines(keepends=True)
    assert len(whole) > 5
    assert any("OPEN" in line for line in whole)
    for name, config in {"loky": {"backend": "loky", "n_jobs": 2}, "dask": {"backend": "dask"}}.items():
        other = tmp_path / f"{name}.jsonl"
        with parallel_config(**config):
            same_reports(accuracy(results=other), alone)
        assert other.read_text().splitlines()[0] == whole[0].strip()
        assert sorted(other.read_text().splitlines()) == sorted(line.strip() for line in whole)
    for kept in (1, 2, len(whole) - 1):
        path.write_text("".join(whole[:kept]) + whole[kept][: 20 * kept % 60])
        same_reports(accuracy(results=path), alone)
        assert sorted(path.read_text().splitlines(keepends=True)) == sorted(whole)


def test_an_interrupt_keeps_the_answers_and_the_next_run_goes_on(small_batches, monkeypatch, tmp_path):
    alone, path = accuracy(), tmp_path / "results.jsonl"
    climb, done = certify.batches.climb, []

    def interrupted(problem, plan, deadline):
        done.append(len(problem))
        if len(done) == 3:  # of the third batch
            raise KeyboardInterrupt
        return climb(problem, plan, deadline)

    monkeypatch.setattr("certify.batches.climb", interrupted)
    stopped = accuracy(results=path)
    assert stopped.interrupted
    assert len(records(path)) == 2
    assert stopped.clean == alone.clean
    assert stopped.certified <= stopped.attacked <= stopped.clean
    monkeypatch.setattr("certify.batches.climb", climb)
    same_reports(accuracy(results=path), alone)
    assert len(records(path)) == len({r["key"] for r in records(path)})


def changed_weight():
    network = deepcopy(NETWORK)
    with torch.no_grad():
        weight = network[0].weight
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(torch.inf))
    return network


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("eps", {"eps": np.nextafter(0.07, 1)}),
        ("norm", {"norm": "l2"}),
        ("domain", {"domain": (0, 2)}),
        ("domain", {"domain": None}),
        ("plan", {"method": replace(PLAN, attack=PGD(steps=4, restarts=1, seed=1))}),
        ("plan", {"method": "ibp"}),
        ("network", {"network": changed_weight()}),
        ("network", {"network": deepcopy(NETWORK).double()}),
        ("network", {"network": nn.Sequential(*NETWORK, nn.ReLU())}),
    ],
)
def test_an_answer_is_never_that_to_another_question(tmp_path, name, change):
    path, options = tmp_path / "results.jsonl", {"eps": 0.07, "domain": (0, 1), "method": PLAN}
    certify.certified_accuracy(deepcopy(NETWORK), X[:4], Y[:4], **options, results=path)
    before = path.read_bytes()
    network = change.pop("network", NETWORK)
    with pytest.raises(ResultsFileError, match=f"{name} was"):
        certify.certified_accuracy(network, X[:4], Y[:4], **{**options, **change}, results=path)
    assert path.read_bytes() == before


def test_other_inputs_and_labels_are_other_questions(tmp_path):
    options = {"eps": 0.01, "method": "ibp", "results": tmp_path / "results.jsonl"}
    moved = X[:4].astype(np.float64) + 1e-9
    for count, (inputs, labels) in enumerate([(X[:4], Y[:4]), (moved, Y[:4]), (X[:4], 1 - Y[:4] % 2)], 1):
        fresh = certify.certified_accuracy(NETWORK, inputs, labels, eps=0.01, method="ibp")
        for _ in range(2):
            same_reports(certify.certified_accuracy(NETWORK, inputs, labels, **options), fresh)
            assert len(records(options["results"])) == count
    twice = certify.certified_accuracy(NETWORK, np.vstack([X[:4]] * 2), [*Y[:4]] * 2, eps=0.01, method="ibp")
    assert (twice.statuses[:4] == twice.statuses[4:]).all()


# Properties


def network_file(path, seed):
    """A network in a file, and about the least value of its first output minus its second on the box."""
    generator = np.random.default_rng(seed)
    layers = [(generator.normal(size=s), generator.normal(size=s[0])) for s in ((8, 3), (8, 8), (2, 8))]
    write_onnx(path, layers)
    y = generator.uniform(-0.5, 0.5, size=(2000, 3))
    for W, b in layers[:-1]:
        y = np.maximum(y @ W.T + b, 0)
    return float((y @ layers[-1][0].T + layers[-1][1]).dot([1, -1]).min())


@pytest.fixture
def folder(tmp_path):
    """A folder of VNN-COMP's kind: two networks, twelve properties, some satisfiable, and one that is malformed."""
    pytest.importorskip("onnx")
    lines = []
    for n in range(2):
        least = network_file(tmp_path / f"net{n}.onnx", 50 + n)
        for j in range(6):
            polytope = (np.array([[1.0, -1.0]]), np.array([least - 0.5 + 0.21 * j]))
            (tmp_path / f"p{n}{j}.vnnlib").write_text(written([-0.5] * 3, [0.5] * 3, [polytope]))
            lines.append(f"net{n}.onnx,p{n}{j}.vnnlib,60")
    (tmp_path / "broken.vnnlib").write_text("(declare-const X_0 Real)\n(assert (<= X_0 Y_7))")
    (tmp_path / "instances.csv").write_text("\n".join([*lines, "net0.onnx,broken.vnnlib,60", lines[3]]) + "\n")
    return tmp_path


def same_verdicts(first, second):
    assert first.counts == second.counts
    assert first.errors == second.errors
    for one, other in zip(first.verdicts, second.verdicts, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert (one.answer, one.bound, one.boxes, one.method) == (
                other.answer,
                other.bound,
                other.boxes,
                other.method,
            )
            assert (one.witness is None) == (other.witness is None)
        if one is not None and one.witness is not None:
            assert (one.witness.inputs == other.witness.inputs).all()
            assert (one.witness.outputs == other.witness.outputs).all()


def test_every_property_has_the_answer_it_has_alone(folder, cluster):
    asked = certify.read_instances(folder)
    report = certify.verify_many(asked)
    assert report.counts == {"SAT": 13 - report.counts["UNSAT"], "UNSAT": report.counts["UNSAT"], "UNKNOWN": 0,
                             "TIMEOUT": 0, "ERROR": 1, "OPEN": 0}  # fmt: skip
    assert 0 < report.counts["UNSAT"] < 13
    assert list(report.errors) == [12]
    assert "line 2" in report.errors[12]
    for instance, verdict in zip(asked, report.verdicts, strict=True):
        if verdict is not None:
            alone = certify.verify_vnnlib(instance.network, instance.query, timeout=60)
            assert (alone.answer, alone.boxes, alone.bound) == (verdict.answer, verdict.boxes, verdict.bound)
    same_verdicts(certify.verify_many(asked, n_jobs=2), report)
    with parallel_config(backend="dask"):
        same_verdicts(certify.verify_many(asked), report)


def test_a_list_that_changed_takes_the_answers_it_still_asks_for(folder):
    asked, path = certify.read_instances(folder), folder / "results.jsonl"
    first = certify.verify_many(asked[3:9], results=path)
    before = records(path)
    assert len(before) == 6
    whole = certify.verify_many(asked[::-1], results=path)
    assert records(path)[:6] == before
    assert len(records(path)) == 13  # one is asked twice
    same_verdicts(whole, certify.verify_many(asked[::-1]))
    assert [v.seconds for v in whole.verdicts[::-1][3:9]] == [v.seconds for v in first.verdicts]
    certify.verify_many(asked[:1], results=path)
    certify.verify_many([replace(asked[0], timeout=50)], results=path)  # another limit is another question
    assert len(records(path)) == 14
    (folder / "p00.vnnlib").write_text((folder / "p01.vnnlib").read_text())
    changed = certify.verify_many(asked[:2], results=path)
    assert len(records(path)) == 14
    assert changed.verdicts[0].bound == changed.verdicts[1].bound
    with pytest.raises(ResultsFileError, match="seed was 0 and is 1"):
        certify.verify_many(asked, results=path, seed=1)


def test_networks_and_queries_need_no_files(folder):
    asked = certify.read_instances(folder)[:2]
    expected = certify.verify_many(asked)
    content = asked[0].network.read_bytes()
    pairs = [(content, certify.read_vnnlib(instance.query), 60) for instance in asked]
    same_verdicts(certify.verify_many(pairs), expected)
    same_verdicts(certify.verify_many(pairs, n_jobs=2), expected)
    module = randomised(mlp(3, 5, 2), 3)
    verdict = certify.verify_many([(module, pairs[0][1])], n_jobs=2).verdicts[0]
    assert verdict.answer is certify.verify_vnnlib(module, pairs[0][1]).answer


def test_a_failure_is_tried_again(folder, monkeypatch):
    asked, path = certify.read_instances(folder)[:2], folder / "results.jsonl"
    whole = certify.verify_many(asked)

    def fails(*args, **options):
        raise RuntimeError("no memory\nhere")

    with monkeypatch.context() as patch:
        patch.setattr("certify.many.verify_vnnlib", fails)
        failed = certify.verify_many(asked, results=path)
    assert failed.counts["ERROR"] == 2
    assert failed.errors[0] == "RuntimeError: no memory here"
    assert records(path) == []
    same_verdicts(certify.verify_many(asked, results=path), whole)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a.onnx", "line 1 of .* has 1 fields"),
        ("net0.onnx,p00.vnnlib,soon", "line 1 of .* has the time limit 'soon'"),
        ("net0.onnx,p00.vnnlib,-1", "timeout is -1"),
        ("\nnet0.onnx,absent.vnnlib,1", "line 2 of .* absent"),
    ],
)
def test_bad_lists_are_named(folder, text, told, capsys):
    (folder / "instances.csv").write_text(text)
    with pytest.raises(InvalidInputError, match=told):
        certify.read_instances(folder)
    assert main(["batch", str(folder)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_bad_instances_are_named(folder):
    with pytest.raises(TypeError, match="expected an Instance"):
        certify.verify_many(["net0.onnx"])
    for pair in [(folder / "absent.onnx", folder / "p00.vnnlib"), (folder / "net0.onnx", folder / "absent.vnnlib")]:
        with pytest.raises(InvalidInputError, match="cannot read"):
            certify.verify_many([pair])
    with pytest.raises(InvalidInputError, match="method is"):
        certify.verify_many([], method="magic")
    assert len(certify.verify_many([])) == 0
    truncated = (folder / "net0.onnx").read_bytes()[:100]
    assert "truncated" in certify.verify_many([(truncated, folder / "p00.vnnlib")]).errors[0]


# Processes that end


@contextmanager
def batch(folder, *options):
    """The command in a process group of its own, which is gone afterwards."""
    command = [
        sys.executable,
        "-m",
        "certify",
        "batch",
        str(folder),
        "--results",
        str(folder / "results.jsonl"),
        *options,
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(path, lines, process):
    while not path.exists() or path.read_bytes().count(b"\n") < lines:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)


@pytest.fixture
def long_folder(folder):
    """So many questions that a run can be stopped on the way."""
    rows, least = [], network_file(folder / "net0.onnx", 50)
    for j in range(100):
        polytope = (np.array([[1.0, -1.0]]), np.array([least - 1 + 0.016 * j]))
        (folder / f"q{j}.vnnlib").write_text(written([-0.5] * 3, [0.5] * 3, [polytope]))
        rows.append(f"net0.onnx,q{j}.vnnlib,60")
    (folder / "instances.csv").write_text("\n".join(rows))
    return folder


@pytest.mark.parametrize("jobs", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_a_killed_run_goes_on_and_does_nothing_twice(long_folder, jobs):
    path = long_folder / "results.jsonl"
    with batch(long_folder, "--jobs", jobs) as process:
        wait_for(path, 12, process)
        os.killpg(process.pid, signal.SIGKILL)
    kept = path.read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]
    assert 12 <= kept.count(b"\n") < 101
    with batch(long_folder, "--jobs", jobs) as process:
        printed, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    assert path.read_bytes().startswith(kept)
    assert len(records(path)) == 100
    alone = certify.verify_many(certify.read_instances(long_folder))
    same_verdicts(certify.verify_many(certify.read_instances(long_folder), results=path), alone)
    words = [line.split(",")[2] for line in printed.splitlines()]
    assert words == [verdict.answer.name.lower() for verdict in alone.verdicts]
    assert {"sat", "unsat"} == set(words)


def test_a_run_that_is_asked_to_end_reports(long_folder):
    path = long_folder / "results.jsonl"
    with batch(long_folder) as process:
        wait_for(path, 12, process)
        process.send_signal(signal.SIGTERM)
        printed, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "(interrupted)" in told
    answered = [line for line in printed.splitlines() if ",open," not in line]
    # The last answer may not have reached the file.
    assert len(answered) - len(records(path)) in (0, 1)
    assert len(printed.splitlines()) == 100


def test_a_worker_that_dies_is_an_error(tmp_path):
    with pytest.raises(WorkerLostError, match="a worker died"):
        list(run_jobs(lambda shared, job: os._exit(1), None, [1, 2, 3], n_jobs=2))


def test_jobs_that_are_not_wanted_any_more_are_dropped():
    jobs = run_jobs(lambda shared, job: shared + job, 1, range(100), n_jobs=2)
    assert all(1 <= value <= 100 for value in islice(jobs, 5))
    jobs.close()


def test_backends_are_checked(capsys, folder, monkeypatch):
    for arguments, told in [
        (["--backend", "mpi"], "expected one of loky"),
        (["--scheduler", "tcp://1"], "for the backends dask and ray"),
        (["--jobs", "0"], "--jobs is 0"),
    ]:
        assert main(["batch", str(folder), *arguments]) == 2
        assert told in capsys.readouterr().err
    for name, package in (("dask", "distributed"), ("ray", "ray")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingDependencyError, match="pip install"), parallel_backend(name, n_jobs=1):
            pass


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_the_command_takes_workers(folder, capsys, backend):
    assert main(["batch", str(folder), "--jobs", "2", "--backend", backend, "--limit", "4", "--timeout", "9"]) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 4
    assert "4 properties" in printed.err
    assert {Answer[line.split(",")[2].upper()] for line in printed.out.splitlines()} <= {Answer.SAT, Answer.UNSAT}
