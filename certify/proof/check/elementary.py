"""Logarithms and exponentials of rationals between rational bounds, by series with integer remainders."""

from fractions import Fraction
from math import ceil, floor

_BITS = 96
_ONE = 1 << _BITS
_TERMS = 40  # of a series in (1/3)^2: 9^-40 < 2^-126


def log_below(x: Fraction) -> Fraction:
    """A lower bound of log x, x > 0."""
    return _log(x)[0]


def log_above(x: Fraction) -> Fraction:
    """An upper bound of log x, x > 0."""
    return _log(x)[1]


def _log(x: Fraction) -> tuple[Fraction, Fraction]:
    """x = m 2^k with m in [1/2, 2]: log m + k log 2."""
    assert x > 0
    k = x.numerator.bit_length() - x.denominator.bit_length()
    m = x / Fraction(2) ** k
    low, high = _log_near_one(m)
    low2, high2 = _log_near_one(Fraction(2))
    return low + k * (low2 if k >= 0 else high2), high + k * (high2 if k >= 0 else low2)


def _log_near_one(m: Fraction) -> tuple[Fraction, Fraction]:
    """2 atanh z, z = (m - 1) / (m + 1) in [-1/3, 1/3], whose series has terms of one sign."""
    if m < 1:
        low, high = _log_near_one(1 / m)
        return -high, -low
    z = (m - 1) / (m + 1)
    assert 3 * z <= 1
    down = floor(z * _ONE)
    up, square_down, square_up = down + 1, down * down >> _BITS, ((down + 1) ** 2 >> _BITS) + 1
    below, above, power_down, power_up = 0, 0, down, up
    for j in range(_TERMS):
        below += power_down // (2 * j + 1)
        above += power_up // (2 * j + 1) + 1
        power_down, power_up = power_down * square_down >> _BITS, (power_up * square_up >> _BITS) + 1
    above += 2 * power_up  # the rest of the series is below power / (1 - 1/9)
    return Fraction(2 * below, _ONE), Fraction(2 * above, _ONE)


def exp_above(x: Fraction) -> Fraction:
    """An upper bound of exp x for x <= 0."""
    assert x <= 0
    if x < -64:
        return Fraction(1, 1 << 92)  # exp(-64) < 2^-92
    halvings = max(0, (ceil(-x)).bit_length() + 1)
    small = ceil(x / (1 << halvings) * _ONE)  # in (-1/2, 0]; rounding it up rounds exp up
    term, total = _ONE, _ONE
    for j in range(1, 33):  # an even number of terms after 1: the alternating series ends on a positive term
        term = -((-term * small >> _BITS) // j)
        total += term + 2
    for _ in range(halvings):
        total = (total * total >> _BITS) + 1
    return Fraction(total, _ONE)


def softplus_above(x: Fraction) -> Fraction:
    """An upper bound of log(1 + exp x)."""
    return max(x, Fraction(0)) + log_above(1 + exp_above(-abs(x)))


def entropy_below(q: Fraction) -> Fraction:
    """A lower bound of -q log q - (1 - q) log(1 - q), 0 <= q <= 1."""
    if q in (0, 1):
        return Fraction(0)
    return -q * log_above(q) - (1 - q) * log_above(1 - q)
