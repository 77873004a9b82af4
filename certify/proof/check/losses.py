"""The losses of training in exact arithmetic: the dual value from below, the loss of given outputs from above."""

from collections.abc import Callable, Sequence
from fractions import Fraction

from certify.proof.artefact import require
from certify.proof.check.elementary import entropy_below, softplus_above

Numbers = Sequence[Fraction]


def dual_value(loss: str, v: Numbers, targets: Numbers, weights: Numbers) -> Fraction:
    """A lower bound of D(v) = min over outputs f of sum_i c_i l(f_i, y_i) + v_i f_i; rejects v outside the domain."""
    if loss == "squared":
        return sum((a * y - a * a / (2 * c) for a, y, c in zip(v, targets, weights, strict=True)), Fraction(0))
    shares = [a * y / c for a, y, c in zip(v, targets, weights, strict=True)]
    require(all(0 <= q <= 1 for q in shares), "the dual point is outside the domain of the loss")
    if loss == "hinge":
        return sum((q * c for q, c in zip(shares, weights, strict=True)), Fraction(0))
    return sum((c * _coarse_below(entropy_below(q)) for q, c in zip(shares, weights, strict=True)), Fraction(0))


def _coarse_below(value: Fraction) -> Fraction:
    """Rounded down to 2^-90, so that sums stay short."""
    return Fraction((value.numerator << 90) // value.denominator, 1 << 90)


def _coarse_above(value: Fraction) -> Fraction:
    return -_coarse_below(-value)


def loss_value(loss: str, outputs: Numbers, targets: Numbers, weights: Numbers) -> Fraction:
    """An upper bound of sum_i c_i l(f_i, y_i)."""
    one: Callable[[Fraction, Fraction], Fraction] = _SAMPLE[loss]
    return sum((c * one(f, y) for f, y, c in zip(outputs, targets, weights, strict=True)), Fraction(0))


_SAMPLE: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "squared": lambda f, y: (f - y) ** 2 / 2,
    "hinge": lambda f, y: max(Fraction(0), 1 - y * f),
    "logistic": lambda f, y: _coarse_above(softplus_above(_coarse_above(-y * f))),
}

LOSSES = tuple(_SAMPLE)
SIGN_LOSSES = ("hinge", "logistic")  # with targets -1 and +1
