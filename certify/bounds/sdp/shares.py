"""The ellipsoid around a box that gives the best bound, found by rounds of programs that have it fixed.

With multipliers nu_i of the sides of a box, of (d_i - lower_i)(upper_i - d_i) >= 0, every input is a coordinate of the
program. With only their sum free and their shares w_i given, the region is one ellipsoid and the program as small as
that of a ball. The bound is concave in nu, and with m_i = mean of ((d_i - middle_i) / half_i)^2 in the moments a share
is best where m_i = 1: it has to grow where m_i > 1. For given moments of the first layer nu_i^2 is proportional to
nu_i^2 m_i there, so that w_i <- w_i m_i^(1/2) is the multiplicative algorithm for optimal designs (Titterington,
"Algorithms for computing D-optimal designs on a finite design space", 1976; Yu, "Monotonic convergence of a general
algorithm for computing optimal designs", Annals of Statistics 38, 2010). But these moments change with w, and the
exponent 1/2 oscillates: every input has an exponent of its own, which grows as long as m_i stays on one side of 1 and
is halved where it changes sides (as step sizes in Rprop, Riedmiller & Braun 1993).
"""

from dataclasses import dataclass

import numpy as np

from certify.bounds.sdp.inputs import half_widths
from certify.bounds.sdp.program import Vector
from certify.bounds.sdp.target import Multipliers, Target

_FIRST, _GROWTH, _HALVED, _MOST = 0.2, 1.2, 0.5, 0.3
# Shares are at least this part of the mean share; moments count as at least this.
_LEAST_SHARE, _LEAST_MOMENT = 1e-4, 1e-3
# What every input has, as part of the mean, beside its share in the slope at the start.
_EVEN = 0.3


@dataclass(frozen=True, eq=False)
class Shares:
    """Of the inputs in an ellipsoid, and how they change.

    Attributes:
        values: w times the squared half widths; positive, their sum is 1.
        exponents: of m.
        logarithms: of m in the round before; 0 before the first.
    """

    values: Vector
    exponents: Vector
    logarithms: Vector

    @staticmethod
    def of(target: Target, known: Multipliers | None = None) -> "Shares":
        """Those of a similar target, or the ones that are optimal for a linear function, and a little for all."""
        half = half_widths(target.offsets)
        if known is None:
            linear = np.abs(_slope(target)) * half
            values = linear + _EVEN * max(float(linear.mean()), np.finfo(float).tiny)
        else:
            values = np.zeros(len(half))
            values[known.pixels] = known.nu * half[known.pixels] ** 2
        return Shares(_shares(values), np.full(len(half), _FIRST), np.zeros(len(half)))

    def after(self, squares: Vector) -> "Shares":
        """The next ones; `squares` are m."""
        logarithms = np.log(np.maximum(squares, _LEAST_MOMENT))
        turned = logarithms * self.logarithms < 0
        exponents = np.where(turned, _HALVED * self.exponents, np.minimum(_GROWTH * self.exponents, _MOST))
        exponents = np.where(self.logarithms == 0, self.exponents, exponents)
        return Shares(_shares(self.values * np.exp(exponents * logarithms)), exponents, logarithms)

    def towards(self, better: "Shares") -> "Shares":
        """Half the way to shares with a better bound, which is concave there; the next steps are shorter."""
        values = _shares(self.values + better.values)
        return Shares(values, _HALVED * self.exponents, np.zeros(len(values)))


def _shares(values: Vector) -> Vector:
    values = np.maximum(values, max(_LEAST_SHARE * float(values.mean()), np.finfo(float).tiny))
    return values / values.sum()


def _slope(target: Target) -> Vector:
    """Of the objective in the inputs, unstable neurons taken as half active."""
    row = target.objective
    for (W, _), low, high in reversed(list(zip(target.layers, target.lower, target.upper, strict=True))):
        row = (row * np.where(high <= 0, 0.0, np.where(low >= 0, 1.0, 0.5))) @ W
    return row
