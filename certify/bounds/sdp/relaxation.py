"""The semidefinite relaxation of a target as a `Program`, in scaled coordinates, and back to multipliers.

Coordinates are (1, v, y_1, ..., y_L): v are coordinates of the input (`certify.bounds.sdp.inputs`), y_k the unstable
neurons of layer k in units of their bounds. Dead neurons are left out and active ones substituted. With y = relu(z) and
w = y - z, every unstable neuron has

    y w = 0 ,     y (u - y) >= 0 ,     w (-l - w) >= 0 ,

which imply y >= 0, w >= 0 and the triangle (Raghunathan, Steinhardt & Liang, "Semidefinite relaxations for certifying
robustness to adversarial examples", NeurIPS 2018, with the second kind of bound added). Products of the factors y, w,
u - y, -l - w of two neurons are at least 0 too (the reformulation-linearisation of Sherali & Adams); there are many,
and those that a moment matrix violates are added, as cuts.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from certify.bounds.sdp.inputs import Inputs
from certify.bounds.sdp.program import Matrix, Program, Vector
from certify.bounds.sdp.target import Cuts, Multipliers, Target

# Units of neurons are at least this share of the last layer's mean width: smaller ones would be badly scaled.
_LEAST_UNIT = 0.2
_DOUBLINGS = 60
_FIRST_CUT = 0.02


@dataclass(frozen=True, eq=False)
class _Neurons:
    """The unstable neurons of a layer: y, z as forms, and units of y and w."""

    y: Matrix
    z: Matrix
    lower: Vector
    upper: Vector
    unit_y: Vector
    unit_w: Vector


def _no_pairs() -> Int[np.ndarray, "cuts 2"]:
    return np.zeros((0, 2), int)


@dataclass(frozen=True, eq=False)
class Relaxation:
    """A target with coordinates for its input.

    Attributes:
        target: what is bounded.
        inputs: the coordinates.
        pairs: the products that are cuts: rows of `target.factors`.
    """

    target: Target
    inputs: Inputs
    pairs: Int[np.ndarray, "cuts 2"] = field(default_factory=_no_pairs)

    @property
    def size(self) -> int:
        """Of the moment matrix."""
        return 1 + self.inputs.rank + sum(map(len, self.target.unstable))

    @cached_property
    def unit(self) -> float:
        """The least unit of a neuron."""
        widths = self.target.upper[-1] - self.target.lower[-1]
        return max(_LEAST_UNIT * float(widths.mean()), np.finfo(float).tiny)

    @cached_property
    def _layers(self) -> tuple[list[_Neurons], Vector, list[Matrix]]:
        """Unstable neurons of all layers, the objective, and z of all neurons, as forms on the coordinates."""
        target, inputs = self.target, self.inputs
        (W, b), at = target.layers[0], 1 + inputs.rank
        z = np.zeros((len(W), self.size))
        z[:, 0] = W @ (target.offsets.centre + inputs.middle) + b
        z[:, 1:at] = W @ inputs.map
        found, every = [], []
        values = z
        for k, index in enumerate(target.unstable):
            if k > 0:
                W, b = target.layers[k]
                z = W @ values
                z[:, 0] += b
            every.append(z)
            values = np.where(target.active[k][:, None], z, 0.0)
            low, high = target.lower[k][index], target.upper[k][index]
            units = np.maximum(high, self.unit), np.maximum(-low, self.unit)
            values[index, at + np.arange(len(index))] = units[0]
            at += len(index)
            found.append(_Neurons(values[index], z[index], low, high, *units))
        objective = target.objective @ values
        objective[0] += target.constant
        return found, objective, every

    @cached_property
    def program(self) -> Program:
        """Products neuron by neuron, layer by layer, then the cuts and those of pixels; then the ball or the box."""
        factors, objective = self._factors[0], self._layers[1]
        forms, neurons = [np.eye(1, self.size), factors], sum(map(len, self.target.unstable))
        first = 1 + 4 * np.arange(neurons)
        left = [np.stack([first, first, first + 1], 1).ravel(), 1 + self.pairs[:, 0]]
        right = [np.stack([first + 1, first + 2, first + 3], 1).ravel(), 1 + self.pairs[:, 1]]
        if self.inputs.radius is not None and len(self.inputs.pixels):
            lower, upper, _, _ = self._walls
            forms += [lower, upper]
            walls = 1 + len(factors) + np.arange(len(lower))
            left.append(walls)
            right.append(walls + len(lower))
        first, second = (np.concatenate(v) for v in (left, right))
        equal = np.zeros(len(first), bool)
        equal[: 3 * neurons : 3] = True
        return Program(np.concatenate(forms).T, first, second, equal, objective, self._groups)

    @cached_property
    def _factors(self) -> tuple[Matrix, Vector]:
        """The rows of `target.factors` as forms in units, and these units."""
        layers, one = self._layers[0], np.eye(1, self.size)
        forms, units = [np.zeros((0, self.size))], [np.zeros(0)]
        for layer in layers:
            found = _factors_of(layer, one)
            forms.append(found[0])
            units.append(found[1])
        for k, i in self.target.split:
            z, low, high = self._layers[2][k][i], float(self.target.lower[k][i]), float(self.target.upper[k][i])
            unit = max(high - low, self.unit)
            forms += [(z - low * one) / unit, (high * one - z) / unit]
            units.append(np.full(2, unit))
        return np.concatenate(forms), np.concatenate(units)

    def doubtful(self, moments: Matrix) -> tuple[int, int] | None:
        """(layer, neuron) of the unstable neuron with the largest min(y, w) at the mean; None where all are stable."""
        F, units = self._factors
        means = F @ (moments[0] / moments[0, 0]) * units
        count = 4 * sum(map(len, self.target.unstable))
        if not count:
            return None
        worst = 4 * int(np.minimum(means[:count:4], means[1:count:4]).argmax())
        layer, neuron, _ = self.target.factors[worst].tolist()
        return layer, neuron

    def violated(self, moments: Matrix, count: int, least: float = 1e-3) -> Int[np.ndarray, "some 2"]:
        """The pairs, beyond those that are cuts, whose product a moment matrix has below -least, the worst first."""
        F = self._factors[0]
        products = F @ (moments / moments[0, 0]) @ F.T
        products[np.tril_indices(len(F))] = 0
        products[self.pairs[:, 0], self.pairs[:, 1]] = 0
        worst = np.argsort(products, axis=None, kind="stable")[:count]
        pairs = np.stack(np.unravel_index(worst, products.shape), 1)
        return pairs[products.ravel()[worst] < -least]

    @property
    def _groups(self) -> Matrix:
        """The unit ball, or the sides of the unit box."""
        r = self.inputs.rank
        if not self.inputs.in_unit_ball:
            return np.eye(self.size)[1 : 1 + r]
        groups = np.zeros((1, self.size))
        groups[0, 1 : 1 + r] = 1
        return groups

    @cached_property
    def _walls(self) -> tuple[Matrix, Matrix, Vector, Vector]:
        """(d - lower) and (upper - d) of the pixels as forms, and their units."""
        offsets, inputs = self.target.offsets, self.inputs
        low, high = offsets.lower[inputs.pixels], offsets.upper[inputs.pixels]
        d = np.zeros((len(low), self.size))
        d[:, 0], d[:, 1 : 1 + inputs.rank] = inputs.middle[inputs.pixels], inputs.map[inputs.pixels]
        one = np.eye(1, self.size)
        units = (np.clip(-low, 0.3 * self._reach, self._reach), np.clip(high, 0.3 * self._reach, self._reach))
        return (d - low[:, None] * one) / units[0][:, None], (high[:, None] * one - d) / units[1][:, None], *units

    @property
    def _reach(self) -> float:
        assert self.inputs.radius is not None
        return self.inputs.radius

    def multipliers(self, y: Vector) -> Multipliers:
        """Of the constraints in their own units, from the program's; negative ones of inequalities become 0."""
        parts: list[list[Vector]] = [[], [], []]
        at = 0
        for layer in self._layers[0]:
            n = len(layer.lower)
            own = y[at : at + 3 * n].reshape(n, 3)
            at += 3 * n
            parts[0].append(own[:, 0] / (layer.unit_y * layer.unit_w))
            parts[1].append(np.maximum(own[:, 1], 0) / layer.unit_y**2)
            parts[2].append(np.maximum(own[:, 2], 0) / layer.unit_w**2)
        alpha, beta, gamma = map(tuple, parts)
        cuts, region = np.split(np.maximum(y[at:], 0), [len(self.pairs)])
        return Multipliers(alpha, beta, gamma, *self._region_multipliers(region), self._cuts(cuts))

    def cut_multipliers(self, y: Vector) -> Vector:
        """Of the pairs, from the program's."""
        first = 3 * sum(map(len, self.target.unstable))
        return y[first : first + len(self.pairs)]

    def _cuts(self, y: Vector) -> Cuts:
        """Those with a multiplier."""
        pairs, y = self.pairs[y > 0], y[y > 0]
        units = self._factors[1][pairs]
        left, right = (self.target.factors[side] for side in pairs.T)
        return Cuts(left, right, y / units.prod(1))

    def _region_multipliers(self, y: Vector) -> tuple[float, Int[np.ndarray, " p"], Vector, Vector, Vector]:
        inputs, p = self.inputs, self.inputs.pixels
        zero = np.zeros(len(p))
        if inputs.weights is not None:
            return 0.0, p, y[-1] * inputs.weights, zero, zero
        if inputs.radius is None:
            return 0.0, p, y / np.diag(inputs.map) ** 2, zero, zero
        if not len(p):
            return float(y[-1] / inputs.radius**2), p, zero, zero, zero
        _, _, unit_low, unit_high = self._walls
        return float(y[-1] / inputs.radius**2), p, y[:-1] / (unit_low * unit_high), zero, zero

    @cached_property
    def bounding(self) -> Bool[np.ndarray, " constraints"]:
        """Which of the program's constraints bound a variable: their multipliers make S definite."""
        program, neurons = self.program, 3 * sum(map(len, self.target.unstable))
        mask = np.zeros(len(program.inequality), bool)
        mask[1:neurons:3] = True
        mask[program.products :] = True
        return mask

    def start(self) -> Vector:
        """Multipliers for which S is positive definite below the constant: those that bound variables are doubled."""
        program = self.program
        y = np.where(program.equal, 0.0, 0.1)
        neurons = 3 * sum(map(len, self.target.unstable))
        y[neurons : neurons + len(self.pairs)] = _FIRST_CUT
        y = np.concatenate([y, np.zeros(len(program.groups))])
        bounding = self.bounding
        for doubling in range(_DOUBLINGS):
            y[bounding] = size = 0.1 * 2.0**doubling
            S = program.cost - program.adjoint(y)
            if np.linalg.eigvalsh(S[1:, 1:])[0] > 0.05 * size:
                break
        return y

    def passes(self, samples: int, seed: int = 0) -> Float[np.ndarray, "samples size"]:
        """Forward passes from random points of the region, in coordinates: their mean moments are feasible."""
        target, inputs = self.target, self.inputs
        v = inputs.sample(target, samples, np.random.default_rng(seed))
        columns = [np.ones((samples, 1)), v]
        value = target.offsets.centre + inputs.middle + v @ inputs.map.T
        for k, (W, b) in enumerate(target.layers):
            value = np.maximum(value @ W.T + b, 0)
            columns.append(value[:, target.unstable[k]] / self._layers[0][k].unit_y)
        return np.concatenate(columns, 1)

    def moments(self, samples: int = 2000, seed: int = 0, margin: float = 1e-2) -> Matrix:
        """Mean moments of forward passes, and a little more on the diagonal."""
        V = self.passes(samples, seed)
        X = V.T @ V / samples
        i = np.arange(1, self.size)
        X[i, i] += margin
        return X

    def offset_of(self, moments_or_dual: Vector) -> Vector:
        """d at given coordinates."""
        return self.inputs.middle + self.inputs.map @ moments_or_dual[: self.inputs.rank]


def _factors_of(layer: _Neurons, one: Matrix) -> tuple[Matrix, Vector]:
    """y, w, u - y, -l - w of every neuron in units, one after the other; and the units."""
    w = layer.y - layer.z
    y, w = layer.y / layer.unit_y[:, None], w / layer.unit_w[:, None]
    parts = [y, w, (layer.upper / layer.unit_y)[:, None] * one - y, (-layer.lower / layer.unit_w)[:, None] * one - w]
    units = [layer.unit_y, layer.unit_w, layer.unit_y, layer.unit_w]
    return np.stack(parts, 1).reshape(-1, one.shape[1]), np.stack(units, 1).ravel()
