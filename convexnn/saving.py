"""Networks on disk: ``.pt`` files that ``torch.load(weights_only=True)`` reads, and scaling layers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from convexnn.errors import InvalidInputError
from convexnn.network import layers_of

FORMAT = "convexnn network 1"
_ROUNDING = 1e-12  # of a column's largest entry: a deviation below it is no spread of the data


@dataclass(frozen=True)
class Standardisation:
    """Features are trained on as ``(x - mean) / scale``; it can be folded into a network and out again."""

    mean: Float64[np.ndarray, " d"]
    scale: Float64[np.ndarray, " d"]

    @classmethod
    def of(cls, X: Float64[np.ndarray, "n d"]) -> "Standardisation":
        """Mean and standard deviation of each column; a column that is constant up to rounding keeps the scale 1.

        The deviation of 569 times 0.1 is 1e-15: divided by it, a constant would get weights of 1e15.
        """
        scale = X.std(axis=0)
        return cls(X.mean(axis=0), np.where(scale > _ROUNDING * np.abs(X).max(axis=0), scale, 1.0))

    def apply(self, X: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, "n d"]:
        """Standardised samples."""
        return (X - self.mean) / self.scale

    def fold(self, network: torch.nn.Sequential) -> torch.nn.Sequential:
        """The network that takes raw features: ``folded(x) == network((x - mean) / scale)``."""
        weight, bias = first_layer(network)
        weight = weight / self.scale
        return with_first_layer(network, weight, bias - weight @ self.mean)

    def unfold(self, network: torch.nn.Sequential) -> torch.nn.Sequential:
        """The network that takes standardised features; undoes :meth:`fold`."""
        weight, bias = first_layer(network)
        return with_first_layer(network, weight * self.scale, bias + weight @ self.mean)


def first_layer(network: torch.nn.Sequential) -> tuple[np.ndarray, np.ndarray]:
    """Weights ``(k, d)`` and biases ``(k,)`` of the first layer, zeros where it has no bias."""
    layer, _ = layers_of(network)
    weight = layer.weight.detach().cpu().numpy()
    return weight, np.zeros(len(weight)) if layer.bias is None else layer.bias.detach().cpu().numpy()


def with_first_layer(
    network: torch.nn.Sequential, weight: Float64[np.ndarray, "k d"], bias: Float64[np.ndarray, " k"]
) -> torch.nn.Sequential:
    """A copy of the network with another first layer, which has a bias."""
    _, out = layers_of(network)
    copy = build(weight.shape[1], weight.shape[0], out.out_features, True, out.bias is not None)
    state = {"0.weight": torch.tensor(weight), "0.bias": torch.tensor(bias)}
    state |= {name: value for name, value in network.state_dict().items() if name.startswith("2.")}
    copy.load_state_dict(state)
    return copy


def build(d: int, k: int, outputs: int, hidden_bias: bool, output_bias: bool) -> torch.nn.Sequential:
    """An untrained ``Sequential(Linear, ReLU, Linear)`` in double precision."""
    return torch.nn.Sequential(
        torch.nn.Linear(d, k, bias=hidden_bias, dtype=torch.float64),
        torch.nn.ReLU(),
        torch.nn.Linear(k, outputs, bias=output_bias, dtype=torch.float64),
    )


def save_network(network: torch.nn.Sequential, path: str | Path, metadata: dict[str, Any] | None = None) -> None:
    """Write a trained network as a ``.pt`` file.

    Args:
        network: ``Sequential(Linear, ReLU, Linear)``.
        path: file to write.
        metadata: plain Python values (numbers, strings, lists, dictionaries) stored beside the weights.

    """
    state = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    torch.save({"format": FORMAT, "state_dict": state, "metadata": metadata or {}}, path)


def load_network(path: str | Path) -> tuple[torch.nn.Sequential, dict[str, Any]]:
    """Read what :func:`save_network` wrote; no code from the file is run.

    Args:
        path: file to read.

    Returns:
        The network, in double precision, and the metadata.

    Raises:
        InvalidInputError: the file is not one that ``save_network`` wrote.

    """
    stored = _read(path)
    state = stored["state_dict"]
    k, d = state["0.weight"].shape
    network = build(d, k, len(state["2.weight"]), "0.bias" in state, "2.bias" in state)
    network.load_state_dict(state)
    return network, stored["metadata"]


def _read(path: str | Path) -> dict[str, Any]:
    try:
        stored = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise InvalidInputError(f"there is no file {str(path)!r}") from None
    except Exception as error:
        raise InvalidInputError(f"{str(path)!r} is not a file that torch can load safely: {error}") from error
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise InvalidInputError(
            f"{str(path)!r} was not written by convexnn.saving.save_network (format {FORMAT!r}); "
            "load it with torch yourself and pass the module"
        )
    return stored
