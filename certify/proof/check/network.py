"""A chain of dense layers, z_k = W_k x_{k-1} + b_k, x_k = relu(z_k), the last one without ReLU; exactly."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from certify.proof.artefact import Dyadic, digest, dyadic, fields, integer, items, require

_DEEPEST = 1000
_WIDEST = 10**6


@dataclass(frozen=True)
class Network:
    """The layers (W, b): weights `out x in` and biases `out`, as dyadic rationals."""

    layers: tuple[tuple[Dyadic, Dyadic], ...]

    @property
    def widths(self) -> list[int]:
        """Of the input, the hidden layers and the output."""
        return [len(self.layers[0][0].values[0]), *(len(b.values) for _, b in self.layers)]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the values of all weights and biases, whatever scales they are written at."""
        return digest(*(part for layer in self.layers for part in layer))


def read_network(value: Any) -> tuple[list[int], str, Network | None]:
    """Widths, digest, and the layers if they are embedded; embedded layers have to have that digest."""
    held = fields(value, "the network", "widths", "digest", "layers")
    widths = [integer(n, "a width", 1, _WIDEST) for n in items(held["widths"], None, "the widths")]
    require(2 <= len(widths) <= _DEEPEST, "the network has no layers, or too many")
    require(type(held["digest"]) is str and len(held["digest"]) == 64, "the digest of the network is no SHA-256")
    if held["layers"] is None:
        return widths, held["digest"], None
    network = Network(tuple(_layers(held["layers"], widths)))
    require(network.digest == held["digest"], "the embedded weights are not those that the digest is of")
    return widths, network.digest, network


def _layers(value: Any, widths: Sequence[int]) -> list[tuple[Dyadic, Dyadic]]:
    layers = []
    for k, layer in enumerate(items(value, len(widths) - 1, "the layers")):
        parts = fields(layer, f"layer {k}", "weight", "bias")
        shape = (widths[k + 1], widths[k])
        weight = dyadic(parts["weight"], shape, f"the weight of layer {k}")
        layers.append((weight, dyadic(parts["bias"], shape[:1], f"the bias of layer {k}")))
    return layers
