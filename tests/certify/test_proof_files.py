"""Hostile files: each is rejected with a reason, in little time and memory."""

import gzip
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from proof_cases import proof_of

from certify.cli import main
from certify.proof.artefact import LARGEST_FILE, LARGEST_WORK, Dyadic, RejectedError, UnreadableError, Work, load, parse
from certify.proof.check import check, check_file, margins, training
from certify.proof.check.network import Network, _layers
from certify.proof.check.spheres import scaled_rows
from certify.proof.writing import save

DOCUMENT = proof_of(0)[1]
TEXT = json.dumps(DOCUMENT)


def reason(content):
    with pytest.raises(RejectedError) as error:
        check(parse(content if isinstance(content, bytes) else content.encode()))
    return str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_truncated_files(share):
    assert "truncated" in reason(TEXT[: int(share * len(TEXT))])
    packed = gzip.compress(TEXT.encode())
    assert reason(packed[: int(share * len(packed))])


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1.5", "1e3", "1e999"])
def test_what_is_no_integer(number):
    assert "no integer" in reason(TEXT.replace('"label": ', f'"label": {number}, "more": ', 1))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[" * 100_000, "deep"),
        ('{"a":' * 100_000, "deep"),
        ("[1]", "no object"),
        ("12", "no object"),
        ('"text"', "no object"),
        ("{}", "no certify-proof file"),
        ('{"format": "certify-proof"}', "version"),
        ('{"format": "certify-proof", "format": "certify-proof"}', "repeats a key"),
        (TEXT.replace('"version": 1', '"version": 2'), "version 2"),
        (TEXT.replace('"version": 1', '"version": true'), "version True"),
        (TEXT.replace('"version": 1', '"version": ' + "9" * 4000), "version 9999"),
        (TEXT.replace('"version": 1', '"version": ' + "9" * 5000), "digits"),
        (TEXT.replace('"kind": "margins"', '"kind": "other"'), "kind 'other' is unknown"),
        (TEXT.replace('"kind": "margins"', '"kind": ["margins"]'), "is unknown"),
        (TEXT.replace('"kind": "margins"', '"kind": "margins", "extra": 1'), "unknown key 'extra'"),
        (TEXT.replace('"label": ', '"label": true, "was": '), "unknown key"),
        (TEXT.replace('"digest": "', '"digest": "0'), "digest"),
        (b"\x00\xff\xfe garbage", "no JSON"),
        ("{'a': 1}", "no JSON"),
        ("\ufeff" + TEXT, "no JSON"),
    ],
)
def test_other_content(content, told):
    assert told in reason(content)


def without(path):
    """The document with one value removed, or replaced by another kind of value."""
    for other in ("", None, [], {}, 1, True, "x", [[]], -1, 10**400):
        copied = json.loads(TEXT)
        inner = copied
        for key in path[:-1]:
            inner = inner[key]
        if other == "":
            del inner[path[-1]]
        elif type(inner[path[-1]]) is type(other) and isinstance(other, int):
            continue  # another number may be as good; see the laws
        else:
            inner[path[-1]] = other
        yield copied


def branches(value, path=()):
    if isinstance(value, dict):
        return [p for k in value for p in ((*path, k), *branches(value[k], (*path, k)))]
    if isinstance(value, list):
        return [p for k, v in enumerate(value[:2]) for p in ((*path, k), *branches(v, (*path, k)))]
    return []


def test_every_part_is_needed_and_typed():
    for path in branches(DOCUMENT):
        for bad in without(path):
            if bad == DOCUMENT:
                continue
            with pytest.raises(RejectedError):
                check(bad)


def test_files_that_unpack_to_more_than_the_limit(tmp_path):
    bomb = gzip.compress(b"[" + b"0," * LARGEST_FILE + b"0]")
    assert len(bomb) < 100_000
    assert "more than" in reason(bomb)
    path = tmp_path / "large.json"
    path.write_bytes(b" " * (LARGEST_FILE + 1))
    with pytest.raises(RejectedError, match="more than"):
        load(path)


def test_files_that_cannot_be_read(tmp_path, capsys):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UnreadableError, match="cannot read"):
            check_file(path)
        assert main(["check", str(path)]) == 2
        assert "cannot read" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of one program is read from /proc")
def test_memory_stays_small():
    """Small files that stand for a lot: long scales, wide layers, deep networks.

    The peak is VmHWM: ru_maxrss of a child also counts the program that started it.
    """
    zeros = {"scale": 2400, "values": [1] * 400_000}
    wide = json.loads(TEXT)
    wide["claim"]["region"]["centre"] = zeros
    wide["claim"]["network"]["widths"][0] = 400_000
    wide["claim"]["network"]["layers"] = None
    thin = {"weight": {"scale": 2400, "values": [[1]]}, "bias": {"scale": 2400, "values": [1]}}
    deep = json.loads(TEXT)
    deep["claim"]["network"] |= {"widths": [1] * 900, "layers": [thin] * 899}
    for document in (wide, deep):
        code = (
            "import sys; from certify.proof.artefact import parse; from certify.proof.check import check\n"
            "try: check(parse(sys.stdin.buffer.read()))\n"
            "except ValueError as error: print(error)\n"
            "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
        )
        run = subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(document).encode(),
            capture_output=True,
            check=True,
            timeout=60,
        )
        assert int(run.stdout.split()[-1]) < 700_000, run.stdout  # kB


def dyadic(values, scale=0):
    return {"scale": scale, "values": values}


def of_training(X, signs):
    """A file about zero targets, with the dual point zero."""
    zeros = dyadic([0] * len(X))
    data = {"X": dyadic(X), "targets": zeros, "weights": None, "loss": "squared"}
    data |= {"weight_decay": dyadic(1), "output_bias": 0}
    claim = {"data": data, "bound": dyadic(0), "network": None, "objective": None}
    proof = {"v": zeros, "signs": [signs, signs]}
    digest = training.read_claim(claim).digest
    return {"format": "certify-proof", "version": 1, "kind": "training", "claim": claim, "digest": digest} | {
        "proof": proof
    }


def tree(n, order, splits, count):
    leaf = {"scale": 0, "tilts": [], "singles": [[0, 0]] * n, "slabs": [], "groups": [], "delta": 0}
    return {"order": order, "splits": splits, "leaves": [leaf] * count}


HALVES = [{"omega": dyadic([1]), "at": dyadic(0)}]
MONSTERS = {
    "many columns": (lambda: of_training([[1] * 20_000], tree(1, [-1], [], 1)), "too much"),
    "a deep tree": (lambda: of_training([[1]], tree(1, [0] * 100_000, HALVES, 1)), "deeper than"),
    "deep cones": (lambda: of_training([[1, 1]], {"cones": [1] * 100_000}), "split too often"),
}


@pytest.mark.parametrize("name", MONSTERS)
def test_small_files_that_want_much(name):
    """They are rejected before the memory is taken and the time has passed."""
    make, told = MONSTERS[name]
    document, started = make(), time.process_time()
    with pytest.raises(RejectedError, match=told):
        check(document)
    assert time.process_time() - started < 20


@pytest.mark.parametrize("signs", [tree(1, [-1], [], 1), tree(1, [0, -1, -1], HALVES, 2), {"cones": [-1, -1]}])
def test_honest_files_of_that_kind(signs):
    for leaf in signs.get("leaves", []) if len(signs.get("leaves", [])) == 2 else []:
        leaf |= {"tilts": [[[0], [0]]], "slabs": [[0, 0, 0]]}
    assert check(of_training([[1]], signs))


def test_rows_of_all_sizes_are_not_brought_to_one_scale():
    with pytest.raises(RejectedError, match="too much"):
        scaled_rows(Dyadic([[1] * 8] * 60_000 + [[1 << 4799] * 8], 0))


def test_the_work_of_a_proof_is_bounded():
    work = Work()
    work.add(LARGEST_WORK)
    with pytest.raises(RejectedError, match="more work"):
        work.add(1)


def test_large_forms_are_rejected_before_they_are_written_down():
    """All of 5000 neurons of one input are unstable: a form of 10001 rows from a file of 200 kB."""
    n = 5000
    ones, zeros = dyadic([1] * n), dyadic([0] * n)
    layers = [{"weight": dyadic([[1]] * n), "bias": zeros}, {"weight": dyadic([[1] * n]), "bias": dyadic([0])}]
    region = {"norm": "box", "centre": None, "radius": None, "lower": dyadic([-1]), "upper": dyadic([1])}
    read = Network(tuple(_layers(layers, [1, n, 1])))
    claim = {"network": {"widths": [1, n, 1], "digest": read.digest, "layers": layers}, "region": region, "label": 1}
    rows = {"free": "unstable", "slopes": [], "lam": [], "end": dyadic([0] * (2 * n))}
    hidden = [{"lower": dyadic([-1] * n), "upper": ones, "rows": rows}]
    none = {name: dyadic([]) for name in ("nu", "above", "below")}
    form = {name: [zeros] for name in ("alpha", "beta", "gamma")} | {"tau": dyadic(1), "pixels": []} | none
    form["cuts"] = {"left": [], "right": [], "kappa": dyadic([])}
    sdp = [{"rival": 0, "bound": dyadic(1), "order": [[]], "leaves": [form]}]
    proof = {"squared_norms": None, "hidden": hidden, "slopes": None, "sdp": sdp}
    digest = margins.read_claim(claim).digest
    head = {"format": "certify-proof", "version": 1, "kind": "margins", "claim": claim, "digest": digest}
    with pytest.raises(RejectedError, match="more work|too much"):
        check(head | {"proof": proof})


def test_packed_files_are_the_same_every_time(tmp_path):
    sizes = {save(DOCUMENT, tmp_path / name) for name in ("a.proof", "b.proof")}
    assert len(sizes) == 1
    assert (tmp_path / "a.proof").read_bytes() == (tmp_path / "b.proof").read_bytes()
