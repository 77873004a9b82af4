"""Margins of a proof by the multipliers of a semidefinite relaxation."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from certify.proof.artefact import Dyadic
from certify.proof.check.cases import cases_of
from certify.proof.check.margins import margin_forms
from certify.proof.check.sdp import proves, read_multipliers
from certify.proof.emit.margins import Builder
from certify.proof.writing import as_json, exact, rounded

_BITS = 40
# What is claimed of a value that the solver reached, from the most to the least hopeful.
_SHARES = (1e-6, 1e-4, 1e-2, 0.5)


def sdp_part(
    builder: Builder, rival: int, order: Sequence[tuple[int, int] | None], leaves: Sequence[Any], value: float
) -> dict[str, Any] | None:
    """The proof of one margin as it stands in the file, or None where the checker would not accept any bound > 0.

    `order` and `leaves` are those of `certify.bounds.sdp.Cases`, multipliers with the attributes of
    `certify.bounds.sdp.Multipliers`; `value` is about what they prove.
    """
    nodes, held = [[] if node is None else list(node) for node in order], [_json(m) for m in leaves]
    n = len(builder.chain.centre)
    cases = [(case, read_multipliers(leaf, case, n)) for case, leaf in cases_of(nodes, held, builder.proved)]
    forms, constants = margin_forms(builder.question.claim, builder.question.network, [rival])
    network, region = builder.question.network, builder.question.claim.region
    for share in _SHARES:
        bound = exact(np.ldexp(np.floor(np.ldexp(value - share * abs(value), 30)), -30))
        t = Fraction(bound.values, 1 << bound.scale)
        if t > 0 and all(proves(network, region, case, (forms, constants[0]), m, t) for case, m in cases):
            return {"rival": rival, "bound": as_json(bound), "order": nodes, "leaves": held}
    return None


def _json(m: Any) -> dict[str, Any]:
    layers = {name: [as_json(rounded(v, _BITS)) for v in getattr(m, name)] for name in ("alpha",)}
    layers |= {name: [as_json(_positive(v)) for v in getattr(m, name)] for name in ("beta", "gamma")}
    tau = Dyadic(max(int(np.ceil(np.ldexp(m.tau, _BITS))), 0), _BITS)
    sides = {name: as_json(_positive(getattr(m, name))) for name in ("nu", "above", "below")}
    cuts = {"left": m.cuts.left.tolist(), "right": m.cuts.right.tolist(), "kappa": as_json(_positive(m.cuts.weights))}
    return {**layers, "tau": as_json(tau), "pixels": [int(i) for i in m.pixels], **sides, "cuts": cuts}


def _positive(values: np.ndarray) -> Dyadic:
    return rounded(np.maximum(values, 0.0), _BITS)
