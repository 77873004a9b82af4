"""A second reading of margin proofs, in plain fractions and as plainly as the mathematics: slow, and shares nothing
with the checker but the file.

Quadratics are minimised by trying every candidate point, semidefinite forms keep the inputs as variables, and are
judged by elimination in fractions.
"""

from fractions import Fraction
from math import isqrt

HALF = Fraction(1, 2)


def number(held):
    def read(values):
        return [read(v) for v in values] if isinstance(values, list) else Fraction(values, 2 ** held["scale"])

    return None if held is None else read(held["values"])


class Region:
    def __init__(self, held):
        self.norm, lower, upper = held["norm"], number(held["lower"]), number(held["upper"])
        if self.norm == "box":
            self.centre = [(a + b) / 2 for a, b in zip(lower, upper, strict=True)]
            self.radius = None
        else:
            self.centre, self.radius = number(held["centre"]), number(held["radius"])
            lower = lower or [v - self.radius for v in self.centre]
            upper = upper or [v + self.radius for v in self.centre]
            lower = [max(a, v - self.radius) for a, v in zip(lower, self.centre, strict=True)]
            upper = [min(b, v + self.radius) for b, v in zip(upper, self.centre, strict=True)]
        self.lower = [a - v for a, v in zip(lower, self.centre, strict=True)]
        self.upper = [b - v for b, v in zip(upper, self.centre, strict=True)]

    def squared_length(self):
        corner = sum(max(a * a, b * b) for a, b in zip(self.lower, self.upper, strict=True))
        return min(corner, self.radius**2) if self.norm in ("l1", "l2") else corner

    def minimum(self, w, hint):
        """The best bound of min w.d that the hint and the plain formulas give."""
        sides = list(zip(w, self.lower, self.upper, strict=True))
        found = [sum(min(v * a, v * b) for v, a, b in sides)]
        if self.norm == "l2":
            found.append(-self.radius * root(sum(v * v for v in w)))
            if hint > 0:
                ends = [quadratic_minimum(v, hint, Fraction(0), a, b) for v, a, b in sides]
                found.append(sum(ends) - hint * self.radius**2 / 2)
        if self.norm == "l1":
            t = hint or max(abs(v) for v in w)
            found.append(-t * self.radius - sum(max(v - t, 0) * -a + max(-v - t, 0) * b for v, a, b in sides))
        return max(found)


def root(square):
    """Of a fraction, a little too large at most."""
    scaled = square.numerator * 4**220 // square.denominator
    return Fraction(isqrt(scaled) + 1, 2**220)


def quadratic_minimum(k, lam, z, low, high):
    """min over [low, high] of k s + lam/2 (s - z)^2."""
    points = [low, high]
    if lam > 0 and low <= z - k / lam <= high:
        points.append(z - k / lam)
    return min(k * s + lam / 2 * (s - z) ** 2 for s in points)


def neuron_minimum(c, g, lam, z, low, high):
    """min over [low, high] of c relu(s) - g s + lam/2 (s - z)^2: at an end, at 0, or where a side's slope vanishes."""
    points = [low, high, *([Fraction(0)] if low < 0 < high else [])]
    if lam > 0:
        points += [s for s in (z - (c - g) / lam,) if max(low, 0) <= s <= high]
        points += [s for s in (z + g / lam,) if low <= s <= min(high, 0)]
    return min(c * max(s, 0) - g * s + lam / 2 * (s - z) ** 2 for s in points)


class Reading:
    """A document read; `layers` are pairs of fractions (W, b)."""

    def __init__(self, document, layers):
        self.layers = layers
        claim, self.proof = document["claim"], document["proof"]
        self.region, self.label = Region(claim["region"]), claim["label"]
        x, self.middles = self.region.centre, []
        for W, b in layers[:-1]:
            z = [sum(w * v for w, v in zip(row, x, strict=True)) + c for row, c in zip(W, b, strict=True)]
            self.middles.append(z)
            x = [max(v, Fraction(0)) for v in z]
        self.hidden = [(number(h["lower"]), number(h["upper"])) for h in self.proof["hidden"]]
        norms = self.proof["squared_norms"]
        self.radii, square = [], self.region.squared_length()
        for held in norms or []:
            square *= number(held)
            self.radii.append(square)

    def form_minimum(self, k, c, constant, rows, r):
        """The bound of c.relu(z_k) + constant that row r of the hints gives."""
        total = constant
        for j in range(k, 0, -1):
            low, high = self.hidden[j - 1]
            free = [i for i in range(len(low)) if (low[i] < 0 < high[i]) or (low[i] >= 0 and rows["free"] == "live")]
            stored = dict(zip(free, number(rows["slopes"][j - 1])[r], strict=True))
            lam = number(rows["lam"][j - 1])[r]
            # What follows the form is cut off at some scale; a proof does not depend on where.
            scale = 2 ** max(rows["slopes"][j - 1]["scale"], 64)
            g = [
                stored.get(i, Fraction(c[i] * scale // 1, scale) if low[i] >= 0 else Fraction(0)) for i in range(len(c))
            ]
            for i in range(len(c)):
                total += neuron_minimum(c[i], g[i], lam, self.middles[j - 1][i], low[i], high[i])
            total -= lam * self.radii[j - 1] / 2 if lam else 0
            W, b = self.layers[j - 1]
            total += sum(p * q for p, q in zip(g, b, strict=True))
            c = [sum(p * row[i] for p, row in zip(g, W, strict=True)) for i in range(len(W[0]))]
        total += sum(p * q for p, q in zip(c, self.region.centre, strict=True))
        return total + self.region.minimum(c, number(rows["end"])[r])

    def hidden_minima(self, k):
        """What the file proves of layer k: lower bounds of all entries, then of their negatives."""
        W, b = self.layers[k - 1]
        rows, n = self.proof["hidden"][k - 1]["rows"], len(b)
        return [
            self.form_minimum(k - 1, [sign * v for v in W[i]], sign * b[i], rows, i + (0 if sign > 0 else n))
            for sign in (1, -1)
            for i in range(n)
        ]

    def margin(self, rival):
        """c, c0 of the margin as a form on the last hidden layer."""
        W, b = self.layers[-1]
        if len(b) == 1:
            sign = 1 if self.label == 1 else -1
            return [sign * v for v in W[0]], sign * b[0]
        return [p - q for p, q in zip(W[self.label], W[rival], strict=True)], b[self.label] - b[rival]

    def margin_minima(self):
        """What the file proves of the margins by slopes, by rival."""
        held = self.proof["slopes"]
        if held is None:
            return {}
        depth = len(self.layers) - 1
        return {t: self.form_minimum(depth, *self.margin(t), held["rows"], r) for r, t in enumerate(held["rivals"])}

    def holds(self):
        """Whether every claim follows."""
        for k, (low, high) in enumerate(self.hidden, 1):
            found = self.hidden_minima(k)
            if any(a > v for a, v in zip([*low, *(-b for b in high)], found, strict=True)):
                return False
        slopes, bounds = self.proof["slopes"], {}
        if slopes is not None:
            bounds = dict(zip(slopes["rivals"], number(slopes["bounds"]), strict=True))
        if any(bounds[t] > v for t, v in self.margin_minima().items()):
            return False
        for part in self.proof["sdp"]:
            bounds[part["rival"]] = number(part["bound"])
            nodes, leaves = list(part["order"]), list(part["leaves"])
            if not self.in_all_cases(part, nodes, leaves, self.hidden) or nodes or leaves:
                return False
        classes = max(len(self.layers[-1][1]), 2)
        return set(bounds) == set(range(classes)) - {self.label} and min(bounds.values()) > 0

    def in_all_cases(self, part, nodes, leaves, hidden):
        """Whether the bound follows in the cases that the first nodes part these bounds in; removes what it reads."""
        if not nodes:
            return False
        node = nodes.pop(0)
        if not node:
            return bool(leaves) and self.semidefinite(part, leaves.pop(0), hidden)
        k, i = node
        low, high = hidden[k]
        if not low[i] < 0 < high[i]:
            return False
        for half in ((low, [*high[:i], Fraction(0), *high[i + 1 :]]), ([*low[:i], Fraction(0), *low[i + 1 :]], high)):
            if not self.in_all_cases(part, nodes, leaves, [*hidden[:k], half, *hidden[k + 1 :]]):
                return False
        return True

    def semidefinite(self, part, m, hidden):
        """Whether the Lagrangian less the bound is positive semidefinite in (1, d, y), by elimination."""
        unstable = [[i for i in range(len(a)) if a[i] < 0 < b[i]] for a, b in hidden]
        n = len(self.region.centre)
        size = 1 + n + sum(map(len, unstable))
        unit = [[Fraction(int(i == j)) for j in range(size)] for i in range(size)]
        S = [[Fraction(0)] * size for _ in range(size)]

        def subtract(weight, a, b):
            for i in range(size):
                for j in range(size):
                    S[i][j] -= weight * HALF * (a[i] * b[j] + b[i] * a[j])

        def combined(*terms):
            return [sum(w * f[i] for w, f in terms) for i in range(size)]

        place, factors = 1 + n, {}
        forms = [combined((v, unit[0]), (Fraction(1), unit[1 + i])) for i, v in enumerate(self.region.centre)]
        for k, ((W, b), (low, high)) in enumerate(zip(self.layers[:-1], hidden, strict=True)):
            z = [combined((c, unit[0]), *zip(row, forms, strict=True)) for row, c in zip(W, b, strict=True)]
            forms = [f if low[i] >= 0 else [Fraction(0)] * size for i, f in enumerate(z)]
            for i, f in enumerate(z):
                factors[k, i, 4] = combined((Fraction(1), f), (-low[i], unit[0]))
                factors[k, i, 5] = combined((high[i], unit[0]), (Fraction(-1), f))
            for q, i in enumerate(unstable[k]):
                y = unit[place]
                w = combined((Fraction(1), y), (Fraction(-1), z[i]))
                under, over = (combined((v, unit[0]), (Fraction(-1), f)) for v, f in ((high[i], y), (-low[i], w)))
                factors |= {(k, i, kind): f for kind, f in enumerate((y, w, under, over))}
                subtract(number(m["alpha"][k])[q], y, w)
                subtract(number(m["beta"][k])[q], y, under)
                subtract(number(m["gamma"][k])[q], w, over)
                forms[i] = y
                place += 1
        c, c0 = self.margin(part["rival"])
        subtract(Fraction(-1), unit[0], combined((c0, unit[0]), *zip(c, forms, strict=True)))
        tau = number(m["tau"])
        subtract(tau, unit[0], combined((self.region.squared_length(), unit[0])))
        for i in range(n):
            subtract(-tau, unit[1 + i], unit[1 + i])
        sides = (number(m[name]) for name in ("nu", "above", "below"))
        for i, nu, above, below in zip(m["pixels"], *sides, strict=True):
            under = combined((Fraction(1), unit[1 + i]), (-self.region.lower[i], unit[0]))
            over = combined((Fraction(-1), unit[1 + i]), (self.region.upper[i], unit[0]))
            subtract(nu, under, over)
            subtract(above, under, unit[0])
            subtract(below, over, unit[0])
        cuts = m["cuts"]
        for left, right, kappa in zip(cuts["left"], cuts["right"], number(cuts["kappa"]), strict=True):
            if tuple(left) not in factors or tuple(right) not in factors or kappa < 0:
                return False
            subtract(kappa, factors[tuple(left)], factors[tuple(right)])
        S[0][0] -= number(part["bound"])
        return positive_semidefinite(S)


def positive_semidefinite(S):
    """By symmetric elimination: every pivot is positive, or 0 with a row of zeros."""
    S = [list(row) for row in S]
    for k in range(len(S)):
        if S[k][k] < 0 or (S[k][k] == 0 and any(S[k][k:])):
            return False
        for i in range(k + 1, len(S)):
            if S[i][k]:
                factor = S[i][k] / S[k][k]
                for j in range(k, len(S)):
                    S[i][j] -= factor * S[k][j]
    return True
