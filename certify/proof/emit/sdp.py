"""Margins of a proof by the multipliers of a semidefinite relaxation."""

from fractions import Fraction
from typing import Any

import numpy as np

from certify.proof.artefact import Dyadic
from certify.proof.check.margins import margin_forms
from certify.proof.check.sdp import proves, read_multipliers
from certify.proof.emit.margins import Builder
from certify.proof.writing import as_json, exact, rounded

_BITS = 40
# What is claimed of a value that the solver reached, from the most to the least hopeful.
_SHARES = (1e-6, 1e-4, 1e-2, 0.5)


def sdp_part(builder: Builder, rival: int, multipliers: Any, value: float) -> dict[str, Any] | None:
    """The proof of one margin as it stands in the file, or None where the checker would not accept any bound > 0.

    `multipliers` has the attributes of `certify.bounds.sdp.target.Multipliers`; `value` is about what they prove.
    """
    held = _json(multipliers)
    read = read_multipliers(held, builder.proved, len(builder.chain.centre))
    forms, constants = margin_forms(builder.question.claim, builder.question.network, [rival])
    margin = (forms, constants[0])
    for share in _SHARES:
        bound = exact(np.ldexp(np.floor(np.ldexp(value - share * abs(value), 30)), -30))
        t = Fraction(bound.values, 1 << bound.scale)
        if t > 0 and proves(builder.question.network, builder.question.claim.region, builder.proved, margin, read, t):
            return {"rival": rival, "bound": as_json(bound), "multipliers": held}
    return None


def _json(m: Any) -> dict[str, Any]:
    layers = {name: [as_json(rounded(v, _BITS)) for v in getattr(m, name)] for name in ("alpha",)}
    layers |= {name: [as_json(_positive(v)) for v in getattr(m, name)] for name in ("beta", "gamma")}
    tau = Dyadic(max(int(np.ceil(np.ldexp(m.tau, _BITS))), 0), _BITS)
    sides = {name: as_json(_positive(getattr(m, name))) for name in ("nu", "above", "below")}
    return {**layers, "tau": as_json(tau), "pixels": [int(i) for i in m.pixels], **sides}


def _positive(values: np.ndarray) -> Dyadic:
    return rounded(np.maximum(values, 0.0), _BITS)
