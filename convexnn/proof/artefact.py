"""Writes a proved bound as a file that ``certify check`` accepts or rejects in exact arithmetic.

The only module here that imports ``certify``: its proof format and its checker, which judges the file before it is
handed out. Rounding is paid for by scaling the dual point down a little, and by more room for the forms of groups: by
as little as is accepted.
"""

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from joblib import Parallel, delayed

from certify.proof.artefact import Dyadic, RejectedError
from certify.proof.check import training as checker
from certify.proof.check.losses import dual_value
from certify.proof.check.simplices import Span, within
from certify.proof.check.spheres import RADIUS_BITS, Rows, Slab, exact_ranges, scaled_rows
from certify.proof.check.trees import leaves_of
from certify.proof.writing import as_float, as_json, document, exact, rounded, save
from convexnn.errors import SolverError
from convexnn.neurons import Neurons
from convexnn.problem import Problem
from convexnn.proof.bound import ProvedBound, RegionProof, scaled_by
from convexnn.proof.certificate import quadratic, region_bound, sphere_maximum
from convexnn.proof.simplicial import covering
from convexnn.proof.trees import Tree, tilts_of

Array = np.ndarray

# Least eigenvalues of groups (see ``certificate.PIVOTS``) and shrinkages of the dual point. Every pair is a way to make
# room for rounding; which of the two is short differs from problem to problem.
_ROOMS = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
_SHRINKAGES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3)
_SPAN_BITS = 60
_BITS = 60  # of the multipliers below the weight decay


@dataclass(frozen=True)
class WrittenProof:
    """A document that the exact checker has accepted, and the numbers it claims."""

    document: dict[str, Any]
    bound: float
    objective: float | None
    facts: tuple[str, ...]

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write it, packed unless the name ends in .json; returns the number of bytes."""
        return save(self.document, path)


def written(
    problem: Problem, proof: ProvedBound, neurons: Neurons | None, basis: Float[Array, "d r"] | None = None
) -> WrittenProof:
    """The proof for the problem in the user's columns; ``basis`` spans the columns that the proof was found in.

    Raises SolverError where no shrinkage up to 1e-3 makes up for rounding.
    """
    data = data_of(problem)
    zeros = Dyadic([0] * len(data.X.values), 0)
    rows = scaled_rows(checker.distinct(data.X, zeros)[0])
    refused: list[_Attempt] = []
    reason = ""
    for attempt in _attempts(problem, data, rows, proof):
        if any(attempt.asks_no_more_than(other) for other in refused):
            continue
        try:
            return _written(data, rows, attempt, neurons, basis)
        except RejectedError as error:
            refused.append(attempt)
            reason = str(error)
    raise SolverError(f"the bound {proof.value:.9g} could not be proved in exact arithmetic: {reason}")


@dataclass(frozen=True)
class _Attempt:
    """A dual point and multipliers with room for rounding, and the bound they give in floating point."""

    value: float
    least: float
    shrinkage: float
    v: Float[Array, " n"]
    factor: float
    regions: list[RegionProof]

    def asks_no_more_than(self, other: "_Attempt") -> bool:
        """Whether it leaves no more room than the other does."""
        return self.least <= other.least and self.shrinkage <= other.shrinkage


def _attempts(problem: Problem, data: checker.Data, rows: Rows, proof: ProvedBound) -> list[_Attempt]:
    """Every pair of rooms, the best bound first."""
    decay, scale = _scale(data)
    _, sums = checker.distinct(data.X, Dyadic(_whole(proof.v, scale), scale))
    grouped = any(len(p.region.groups) for p in proof.regions)
    found = []
    for least in _ROOMS if grouped else _ROOMS[:1]:
        regions = [replace(p, multipliers=p.multipliers.settled(least)) for p in proof.regions]
        largest = max(region_bound(p.region, _unit_weights(rows, sums, p.sign), p.multipliers) for p in regions)
        for shrinkage in _SHRINKAGES:
            factor = (1 - shrinkage) * min(1.0, decay / max(largest, 1e-300))
            value = float(problem.loss.dual_value(torch.from_numpy(proof.v * factor)[:, None]))
            found.append(_Attempt(value, least, shrinkage, proof.v, factor, regions))
    return sorted(found, key=lambda attempt: -attempt.value)


def data_of(problem: Problem) -> checker.Data:
    """The problem as the checker reads it; equal weights are exactly 1/n."""
    weights = problem.loss.weights.cpu().numpy()
    equal = bool((weights == weights[0]).all())
    return checker.Data(
        exact(problem.X.cpu().numpy()),
        exact(problem.loss.targets.cpu().numpy()[:, 0]),
        None if equal else exact(weights),
        problem.loss.name,
        exact(problem.weight_decay),
        problem.output_bias,
    )


def written_cones(
    problem: Problem,
    v: Float[Array, " n"],
    neurons: Neurons | None,
    seconds: float,
    *,
    basis: Float[Array, "d r"] | None = None,
    workers: int = 1,
) -> WrittenProof | None:
    """The proof of a given dual point by simplicial cones; None where the search ran out of time or cones.

    ``basis`` has orthonormal columns that span the rows of the data up to rounding: the cones are then of its columns.
    """
    data = data_of(problem)
    _, scale = _scale(data)
    dual = Dyadic(_balanced(_whole(v * (1 - 1e-9), scale), data), scale)
    X, sums = checker.distinct(data.X, dual)
    try:
        span = None if basis is None else span_of(X, basis)
        X, decay = (X, data.weight_decay) if span is None else within(X, sums, data.weight_decay, span, "it")
        found = _coverings(X, sums, _float(decay), seconds, workers)
        if found is None:
            return None
        extra = {} if span is None else {"span": {"basis": as_json(span.basis), "rows": as_json(span.rows)}}
        return finished(data, dual, [{"cones": cones, **extra} for cones in found], neurons)
    except RejectedError:
        return None


def _coverings(X: Dyadic, dual: Dyadic, decay: float, seconds: float, workers: int) -> list[list[int]] | None:
    """The cones of both signs; of one after the other in the same time where there is one worker."""
    if workers > 1:
        found = Parallel(n_jobs=2)(delayed(covering)(X, dual, sign, decay, seconds=seconds) for sign in (1, -1))
        return None if any(cones is None for cones in found) else list(found)
    deadline, both = time.perf_counter() + seconds, []
    for sign in (1, -1):
        cones = covering(X, dual, sign, decay, seconds=deadline - time.perf_counter())
        if cones is None:
            return None
        both.append(cones)
    return both


def span_of(X: Dyadic, basis: Float[Array, "d r"]) -> Span:
    """The basis and the data's rows in it, rounded."""
    return Span(rounded(basis, _SPAN_BITS), rounded(as_float(X) @ basis, _SPAN_BITS))


def _written(
    data: checker.Data, rows: Rows, attempt: _Attempt, neurons: Neurons | None, basis: Float[Array, "d r"] | None
) -> WrittenProof:
    decay, scale = _scale(data)
    dual = Dyadic(_balanced(_whole(attempt.v * attempt.factor, scale), data), scale)
    regions = [scaled_by(p, attempt.factor) for p in attempt.regions]
    _, sums = checker.distinct(data.X, dual)
    signs = [_sign(rows, sums, [p for p in regions if p.sign == sign], decay, basis) for sign in (1, -1)]
    return finished(data, dual, signs, neurons)


def _unit_weights(rows: Rows, dual: Dyadic, sign: float) -> Float[Array, " k"]:
    """w with w_i (xh_i'u)_+ = sign v_i (x_i'u)_+ for the unit rows."""
    values = np.array([a / (1 << dual.scale) for a in dual.values])
    return sign * np.ldexp(values, np.array(rows.exponents)) * np.array(rows.radii) / (1 << RADIUS_BITS)


def _scale(data: checker.Data) -> tuple[float, int]:
    """The weight decay, and the scale of dual point and multipliers."""
    decay = _float(data.weight_decay)
    return decay, max(_BITS - math.frexp(decay)[1], 0)


def finished(data: checker.Data, dual: Dyadic, signs: list[dict[str, Any]], neurons: Neurons | None) -> WrittenProof:
    """The document, once the checker has accepted it; raises RejectedError."""
    value = dual_value(data.loss, checker.fractions(dual), checker.fractions(data.targets), data.shares)
    bound = Dyadic(math.floor(value * (1 << _BITS)), _BITS)
    network = None if neurons is None else _network(neurons)
    objective = None
    if network is not None:
        objective = Dyadic(math.ceil(checker.objective_above(data, network) * (1 << _BITS)), _BITS)
    claim = _claim(data, bound, network, objective)
    body = {"v": as_json(dual), "signs": signs}
    facts = checker.check(checker.read_claim(claim), body)
    whole = document("training", claim, checker.read_claim(claim).digest, body)
    return WrittenProof(whole, _float(bound), None if objective is None else _float(objective), facts)


def _float(number: Dyadic) -> float:
    return float(Fraction(number.values, 1 << number.scale))


def _network(neurons: Neurons) -> checker.Network:
    a, bias = neurons.A.cpu().numpy()[:, 0], neurons.bias.cpu().numpy()
    return checker.Network(exact(neurons.W.cpu().numpy()), exact(a), exact(bias[0]))


def _claim(
    data: checker.Data, bound: Dyadic, network: checker.Network | None, objective: Dyadic | None
) -> dict[str, Any]:
    return {
        "data": {
            "X": as_json(data.X),
            "targets": as_json(data.targets),
            "weights": as_json(data.weights),
            "loss": data.loss,
            "weight_decay": as_json(data.weight_decay),
            "output_bias": int(data.output_bias),
        },
        "bound": as_json(bound),
        "network": None
        if network is None
        else {"W": as_json(network.W), "a": as_json(network.a), "bias": as_json(network.bias)},
        "objective": as_json(objective),
    }


def _whole(values: Array, scale: int) -> list[int]:
    """Rounded towards zero to integers at a scale."""
    return [math.trunc(Fraction(float(v)) * (1 << scale)) for v in values.ravel()]


def _balanced(v: list[int], data: checker.Data) -> list[int]:
    """v with sum zero where an output bias is trained, each entry changed by a few units at most."""
    rest = sum(v) if data.output_bias else 0
    inner = [i for i, a in enumerate(v) if abs(a) > 1 << 20] or list(range(len(v)))
    whole, extra = divmod(abs(rest), len(inner))
    step = -1 if rest > 0 else 1
    out = list(v)
    for k, i in enumerate(inner):
        out[i] += step * (whole + (k < extra))
    return out


def _sign(rows: Rows, dual: Dyadic, proofs: Sequence[RegionProof], decay: float, basis: Array | None) -> dict[str, Any]:
    tree = Tree(basis).visit(proofs)
    found = {"order": tree.order, "splits": tree.splits, "leaves": tree.leaves}
    leaves = [
        _leaf(rows, dual, proof, slabs, decay, basis) for slabs, proof, _ in leaves_of(found, len(rows.values[0]), "it")
    ]
    return {**found, "leaves": leaves}


def _leaf(
    rows: Rows, dual: Dyadic, proof: RegionProof, slabs: list[Slab], decay: float, basis: Array | None
) -> dict[str, Any]:
    v, scale = dual.values, dual.scale
    proof = replace(proof, multipliers=proof.multipliers.settled())
    region, fit = proof.region, proof.multipliers
    norms = np.array(rows.radii) / (1 << RADIUS_BITS)  # of the scaled rows: what unit rows were divided by
    w = _unit_weights(rows, dual, proof.sign)
    bound, delta = sphere_maximum(quadratic(region, w, fit), 0.0 if basis is not None else -np.inf)
    alone = np.flatnonzero(region.unlifted())
    spare = max(decay - bound, 0.0)
    tilts = tilts_of(rows, region.rows, norms, region.cuts, slabs)
    ranges = exact_ranges(rows, slabs, tilts, "a leaf")
    return {
        "scale": scale,
        "tilts": tilts,
        "singles": [_single(i, v, rows, proof, ranges, scale) for i in alone.tolist()],
        "slabs": [_whole(row, scale) for row in fit.cuts],
        "groups": [_group(proof, j, norms[region.groups[j]], scale, basis) for j in range(len(region.groups))],
        "delta": math.trunc((delta + 0.25 * spare) * 2.0**scale),
    }


def _single(
    i: int, v: list[int], rows: Rows, proof: RegionProof, ranges: tuple[list[int], list[int]], scale: int
) -> list[int]:
    """The two parameters of a sample alone, within what it has to give."""
    fit = proof.multipliers  # settled
    low, high = ranges[0][i], ranges[1][i]
    w = int(proof.sign) * Fraction(v[i]) * Fraction(2) ** rows.exponents[i]  # at the scale
    if low >= 0 or high <= 0 or w == 0:
        return [0, 0]
    norm, stable = Fraction(rows.radii[i], 1 << RADIUS_BITS), proof.region.stable()[i]
    if w > 0:
        chord = math.floor(w * (1 if stable else Fraction(float(fit.chord[i]))))
        return [max(1, math.floor((w - chord) / (4 * norm * Fraction(float(fit.bend[i]))))), chord]
    if stable:  # only just: rounding has opened its range
        return [0, math.floor(-w) if proof.region.low[i] >= 0 else 0]
    curve, slope = Fraction(float(fit.curve[i])), Fraction(float(fit.slope[i]))
    first = math.floor(-w * curve / Fraction(high - low, 1 << RADIUS_BITS))
    rest = math.floor(-w - first * Fraction(high - low, 1 << RADIUS_BITS))
    return [first, max(0, min(rest, math.floor(-w * slope)))]


def _group(proof: RegionProof, j: int, norms: Float[Array, " m"], scale: int, basis: Array | None) -> dict[str, Any]:
    """Multipliers of a group, from unit rows to the scaled ones."""
    fit = proof.multipliers
    i, k = np.tril_indices(len(norms), -1)
    pairs = np.stack([fit.both[j][i, k], fit.mixed[j][i, k], fit.mixed[j][k, i], fit.neither[j][i, k]], -1)
    pairs = pairs / (norms[i] * norms[k])[:, None]
    return {
        "indices": [int(a) for a in proof.region.groups[j]],
        "first": [_cone(row, scale, basis) for row in fit.first[j] / norms[:, None]],
        "second": [_cone(row, scale, basis) for row in fit.second[j] / norms[:, None]],
        "pairs": [_whole(row, scale) for row in pairs],
        "pivot": _whole(fit.pivot[j] / norms**2, scale),
    }


def _cone(row: Float[Array, " k"], scale: int, basis: Array | None) -> list[int]:
    """(l, e) with l >= |e| in integers, e in the user's columns."""
    e = _whole(row[1:] if basis is None else basis @ row[1:], scale)
    length = math.isqrt(sum(a * a for a in e)) + 1
    return [max(_whole(row[:1], scale)[0], length), *e]
