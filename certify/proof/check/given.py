"""What the caller brings, compared with the claim of a training proof number by number."""

from dataclasses import dataclass

from certify.proof.artefact import Dyadic, require
from certify.proof.check.network import Network as Chain

_WEIGHT_BITS = 44  # that proportional weights agree in: training divides them by their sum


@dataclass(frozen=True)
class Samples:
    """The caller's own arrays.

    Attributes:
        X: n x d, without the column of ones that stands for biases.
        y: n targets.
        weights: n, of any sum; None where all samples count alike.
    """

    X: Dyadic
    y: Dyadic
    weights: Dyadic | None = None


def same(a: Dyadic, b: Dyadic) -> bool:
    """Whether two arrays hold the same numbers, whatever their scales."""
    return a.reduced() == b.reduced()


def compare_samples(samples: Samples, X: Dyadic, targets: Dyadic, weights: Dyadic | None, labels: bool) -> str:
    """Reject unless the claim's arrays are the caller's; says what was compared.

    A last column of ones in the claim that the caller's X lacks stands for the biases of the first layer. With
    ``labels`` the claim's targets are -1 and +1, and the caller's may be 0 and 1.
    """
    n, d = len(X.values), len(X.values[0])
    rows = samples.X.values
    require(len(rows) == n, f"the proof is about {n} samples, the data given are {len(rows)}")
    biases = len(rows[0]) == d - 1
    require(biases or len(rows[0]) == d, f"the proof is about {d} columns, the data given have {len(rows[0])}")
    own = samples.X if not biases else Dyadic([[*row, 1 << samples.X.scale] for row in rows], samples.X.scale)
    require(same(own, X), "the inputs X of the proof are not those given")
    y = samples.y.reduced()
    zeros = labels and y.scale == 0 and set(y.values) <= {0, 1}
    y = Dyadic([2 * v - 1 for v in y.values], 0) if zeros else y
    require(same(y, targets), "the targets y of the proof are not those given")
    _compare_weights(samples.weights, weights)
    told = [" with a column of ones for the biases of the first layer"] * biases
    told += [" with -1 for the label 0"] * zeros
    return "X and y are those given" + ",".join(["", *told])


def _compare_weights(given: Dyadic | None, held: Dyadic | None) -> None:
    """Reject unless they are proportional up to the rounding of a division: training scales weights to sum one."""
    if given is None or held is None:
        other = given if held is None else held
        require(other is None or len(set(other.values)) == 1, "the proof weighs samples unlike the data given")
        return
    total, whole = sum(given.values), sum(held.values)
    require(
        all(
            abs(a * whole - b * total) <= b * total >> _WEIGHT_BITS
            for a, b in zip(given.values, held.values, strict=True)
        ),
        "the weights of the proof are not those given",
    )


def compare_network(network: Chain, W: Dyadic, a: Dyadic, bias: Dyadic) -> str:
    """Reject unless the claim's network is the caller's, a chain of two layers with one output, weight by weight."""
    require(
        len(network.layers) == 2 and network.widths[-1] == 1,
        "the network given has another form: two layers, one output",
    )
    (first, inner), (last, outer) = network.layers
    width = len(W.values[0]) if W.values else len(first.values[0])
    if width == len(first.values[0]) + 1:
        scale = max(first.scale, inner.scale)
        rows = zip(first.at(scale), inner.at(scale), strict=True)
        first = Dyadic([[*row, b] for row, b in rows], scale)
    else:
        require(not any(inner.values), "the network given has biases in its first layer, that of the proof has none")
    held = same(first, W) and same(Dyadic(last.values[0], last.scale), a)
    require(held and same(Dyadic(outer.values[0], outer.scale), bias), "the proof is about another network")
    return "the network is the one given"
