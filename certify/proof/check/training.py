"""Proofs that no two-layer ReLU network of any width has an objective below a bound on given data.

For every network f(x) = sum_j a_j (x'u_j)_+ + b and every v in the domain of the loss (with 1'v = 0 if b is trained),

    sum_i c_i l(f(x_i), y_i) + (weight_decay / 2) sum_j (|u_j|^2 + a_j^2)  >=  D(v)

if |v'(Xu)_+| <= weight_decay for all unit vectors u: weak duality (Pilanci & Ergen, ICML 2020). A file holds v and, for
either sign, a tree of slabs whose leaves cover the sphere, with a proof for each leaf (``spheres``), or a tree of cones
(``simplices``). Both are about the distinct rows of X: samples with equal rows x count as one, with the sum of their
v_i, since they have the same (x'u)_+. A network in the file is evaluated exactly; each of its neurons is counted in
balanced form.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import Any

from certify.proof.artefact import Dyadic, Work, digest, dyadic, fields, integer, items, require
from certify.proof.check.exact import product, root_up, transposed
from certify.proof.check.given import Samples, compare_network, compare_samples
from certify.proof.check.losses import LOSSES, SIGN_LOSSES, dual_value, loss_value
from certify.proof.check.network import Network as Chain
from certify.proof.check.simplices import check_cones
from certify.proof.check.spheres import check_region, scaled_dual, scaled_rows
from certify.proof.check.trees import leaves_of

GIVEN = ("data", "samples", "network")  # what a caller may compare


@dataclass(frozen=True)
class Data:
    """A training problem.

    Attributes:
        X: n x d, a column of ones included if the first layer has biases.
        targets: n.
        weights: n, positive, or None for 1/n each.
        loss: squared, logistic or hinge; targets of the last two are -1 and +1.
        weight_decay: above zero.
        output_bias: whether an output bias is trained, without penalty.
    """

    X: Dyadic
    targets: Dyadic
    weights: Dyadic | None
    loss: str
    weight_decay: Dyadic
    output_bias: bool

    @property
    def shares(self) -> list[Fraction]:
        """c_i."""
        n = len(self.targets.values)
        if self.weights is None:
            return [Fraction(1, n)] * n
        return fractions(self.weights)

    @property
    def digest(self) -> str:
        """SHA-256 of the problem."""
        weights = "equal" if self.weights is None else self.weights
        return digest("training", self.X, self.targets, weights, self.loss, self.weight_decay, int(self.output_bias))


@dataclass(frozen=True)
class Network:
    """f(x) = sum_j a_j (x'w_j)_+ + bias, w_j the rows of W."""

    W: Dyadic
    a: Dyadic
    bias: Dyadic

    @property
    def digest(self) -> str:
        """SHA-256 of the weights."""
        return digest("two-layer network", self.W, self.a, self.bias)


@dataclass(frozen=True)
class Claim:
    """No network has an objective below ``bound``; that of ``network`` is at most ``objective``."""

    data: Data
    bound: Dyadic
    network: Network | None
    objective: Dyadic | None
    digest: str


def fractions(number: Dyadic) -> list[Fraction]:
    """The entries of a vector."""
    return [Fraction(v, 1 << number.scale) for v in number.values]


def fraction(number: Dyadic) -> Fraction:
    """A scalar."""
    return Fraction(number.values, 1 << number.scale)


def read_claim(value: Any) -> Claim:
    """The claim of a file."""
    held = fields(value, "the claim", "data", "bound", "network", "objective")
    data, bound = _read_data(held["data"]), dyadic(held["bound"], (), "the bound")
    network = None if held["network"] is None else _read_network(held["network"], len(data.X.values[0]))
    require((network is None) == (held["objective"] is None), "a network and its objective come together")
    objective = None if network is None else dyadic(held["objective"], (), "the objective", sign=0)
    require(data.output_bias or network is None or network.bias.values == 0, "the network has an output bias")
    more = () if network is None or objective is None else (network.digest, objective)
    return Claim(data, bound, network, objective, digest(data.digest, bound, *more))


def _read_data(value: Any) -> Data:
    names = ("X", "targets", "weights", "loss", "weight_decay", "output_bias")
    held = fields(value, "the data", *names)
    targets = dyadic(held["targets"], (None,), "the targets")
    n = len(targets.values)
    require(n > 0 and type(held["X"]) is dict and bool(held["X"].get("values")), "the data are empty")
    rows = items(held["X"].get("values"), n, "X")
    d = len(items(rows[0], None, "the first row of X"))
    require(d > 0, "X has no columns")
    weights = None if held["weights"] is None else dyadic(held["weights"], (n,), "the weights", sign=1)
    loss = held["loss"]
    require(type(loss) is str and loss in LOSSES, f"the loss {str(loss)[:20]!r} is unknown")
    signs = loss not in SIGN_LOSSES or all(abs(v) == 1 << targets.scale for v in targets.values)
    require(signs, "the targets of this loss have to be -1 and +1")
    decay = dyadic(held["weight_decay"], (), "the weight decay", sign=1)
    bias = integer(held["output_bias"], "output_bias", 0, 1)
    return Data(dyadic(held["X"], (n, d), "X"), targets, weights, loss, decay, bool(bias))


def _read_network(value: Any, d: int) -> Network:
    held = fields(value, "the network", "W", "a", "bias")
    a = dyadic(held["a"], (None,), "the output weights")
    return Network(
        dyadic(held["W"], (len(a.values), d), "the first layer"), a, dyadic(held["bias"], (), "the output bias")
    )


def check(
    claim: Claim,
    proof: Any,
    *,
    data: Data | None = None,
    samples: Samples | None = None,
    network: Network | Chain | None = None,
) -> tuple[str, ...]:
    """What is proved, in sentences; the caller's data and network have to be those of the claim.

    ``data`` fixes the settings too, ``samples`` the arrays only.

    Raises:
        RejectedError: something does not follow.
    """
    require(data is None or data.digest == claim.data.digest, "the proof is about other data or settings")
    held = claim.data
    labels = held.loss in SIGN_LOSSES
    compared = [] if samples is None else [compare_samples(samples, held.X, held.targets, held.weights, labels=labels)]
    compared += [] if network is None else [_compare(network, claim.network)]
    return (*_proved(claim, proof), *compared)


def _compare(network: Network | Chain, held: Network | None) -> str:
    require(held is not None, "the proof is about no network in particular")
    assert held is not None
    if isinstance(network, Chain):
        return compare_network(network, held.W, held.a, held.bias)
    require(held.digest == network.digest, "the proof is about another network")
    return "the network is the one given"


def _proved(claim: Claim, proof: Any) -> tuple[str, ...]:
    value = _proved_bound(claim.data, proof)
    require(fraction(claim.bound) <= value, f"the bound is not proved: only {float(value):.9g} is")
    if claim.network is None or claim.objective is None:
        return _sentences(claim)
    objective = objective_above(claim.data, claim.network)
    require(objective <= fraction(claim.objective), f"the objective is {float(objective):.9g}, not what is claimed")
    return (*_sentences(claim), *_network_sentences(claim))


def _proved_bound(data: Data, proof: Any) -> Fraction:
    """D(v), once |v'(Xu)_+| <= weight decay is proved."""
    held = fields(proof, "the proof", "v", "signs")
    v = dyadic(held["v"], (len(data.targets.values),), "v")
    require(not data.output_bias or sum(v.values) == 0, "v does not sum to zero, as an output bias demands")
    X, sums = distinct(data.X, v)
    rows, work = scaled_rows(X), Work()
    for sign, name, part in zip((1, -1), ("plus", "minus"), items(held["signs"], 2, "signs"), strict=True):
        if type(part) is dict and "cones" in part:
            check_cones(X, sums, sign, data.weight_decay, part, name, work)
            continue
        w = scaled_dual(rows, sums, sign)
        for leaf in leaves_of(part, len(X.values[0]), name):
            check_region(rows, w, data.weight_decay, leaf, work)
    return dual_value(data.loss, fractions(v), fractions(data.targets), data.shares)


def distinct(X: Dyadic, v: Dyadic) -> tuple[Dyadic, Dyadic]:
    """The distinct rows of X in the order in which they first appear, and the sums of v over the samples of each."""
    sums: dict[tuple[int, ...], int] = {}
    for row, value in zip(X.values, v.values, strict=True):
        sums[tuple(row)] = sums.get(tuple(row), 0) + value
    return Dyadic([list(row) for row in sums], X.scale), Dyadic(list(sums.values()), v.scale)


def objective_above(data: Data, network: Network) -> Fraction:
    """An upper bound of the network's objective with balanced neurons, which compute the same function."""
    hidden = product(data.X.values, transposed(network.W.values)) if network.a.values else [[]] * len(data.X.values)
    scale = data.X.scale + network.W.scale + network.a.scale
    bias = fraction(network.bias)
    outputs = [
        bias + Fraction(sum(max(h, 0) * a for h, a in zip(row, network.a.values, strict=True)), 1 << scale)
        for row in hidden
    ]
    masses = [
        root_up(sum(v * v for v in row) * a * a << 80)
        for row, a in zip(network.W.values, network.a.values, strict=True)
    ]
    mass = Fraction(sum(masses), 1 << (network.W.scale + network.a.scale + 40))
    loss = loss_value(data.loss, outputs, fractions(data.targets), data.shares)
    return loss + fraction(data.weight_decay) * mass


def _sentences(claim: Claim) -> tuple[str, ...]:
    data = claim.data
    n, d = len(data.X.values), len(data.X.values[0])
    bias = "with" if data.output_bias else "without"
    return (
        f"every two-layer ReLU network of any width has an objective of at least {_down(fraction(claim.bound))}",
        f"{n} samples, {d} columns, {data.loss} loss, weight decay {float(fraction(data.weight_decay)):.9g}, "
        f"{bias} an output bias; data and settings SHA-256 {data.digest}",
        f"claim SHA-256 {claim.digest}",
    )


def _network_sentences(claim: Claim) -> tuple[str, ...]:
    assert claim.network is not None
    assert claim.objective is not None
    objective, bound = fraction(claim.objective), fraction(claim.bound)
    gap = (objective - bound) / objective if objective else Fraction(0)
    return (
        f"the network has {len(claim.network.a.values)} neurons, SHA-256 {claim.network.digest}, "
        f"and an objective of at most {_up(objective)}",
        f"so it is within {_up(100 * gap, 4)} % of the global optimum, in real arithmetic on the stored numbers",
    )


def _down(value: Fraction, digits: int = 9) -> str:
    return f"{floor(value * 10**digits) / 10**digits:.{digits}f}"


def _up(value: Fraction, digits: int = 9) -> str:
    return f"{-floor(-value * 10**digits) / 10**digits:.{digits}f}"
