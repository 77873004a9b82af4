"""From neurons to torch modules and back."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

from convexnn.errors import UnsupportedNetworkError
from convexnn.neurons import Neurons

_EXPECTED = "a network of the form Linear, ReLU, Linear (Identity, Dropout and Flatten are passed over)"


def to_torch(neurons: Neurons, *, hidden_bias: bool, output_bias: bool) -> nn.Sequential:
    """Sequential(Linear(d, k), ReLU(), Linear(k, K)), k >= 1; with hidden_bias the last column of W is the bias."""
    if len(neurons) == 0:  # torch.nn.Linear warns about layers of width zero
        neurons = replace(
            neurons,
            W=neurons.W.new_zeros((1, neurons.W.shape[1])),
            A=neurons.A.new_zeros((1, neurons.n_outputs)),
        )
    W, b = (neurons.W[:, :-1], neurons.W[:, -1]) if hidden_bias else (neurons.W, None)
    return nn.Sequential(
        linear_layer(W, b), nn.ReLU(), linear_layer(neurons.A.T, neurons.bias if output_bias else None)
    )


def linear_layer(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A layer with these weights (outputs, inputs), and a bias where there is one."""
    layer = nn.utils.skip_init(
        nn.Linear,
        weight.shape[1],
        weight.shape[0],
        bias=bias is not None,
        dtype=weight.dtype,
        device=weight.device,
    )
    layer.weight = nn.Parameter(weight.clone().contiguous())
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone())
    return layer


def layers_of(network: Any) -> tuple[nn.Linear, nn.Linear]:
    """The two linear layers of a module that computes Linear, ReLU, Linear, however it is written."""
    if not isinstance(network, nn.Module):
        raise UnsupportedNetworkError(f"got {type(network).__name__}, which is no torch module; expected {_EXPECTED}.")
    _require_plain(network)
    try:
        traced = fx.symbolic_trace(network)
    except Exception as error:
        raise UnsupportedNetworkError(f"the module cannot be traced ({error}); expected {_EXPECTED}.") from error
    found = [part for node in traced.graph.nodes if (part := _part(node, traced)) is not None]
    _check_chain(traced)
    kinds = ["ReLU" if part == "relu" else "Linear" for part in found]
    if kinds != ["Linear", "ReLU", "Linear"]:
        raise UnsupportedNetworkError(f"the module computes {', '.join(kinds) or 'nothing'}; expected {_EXPECTED}.")
    first, last = found[0], found[2]
    if not isinstance(first, nn.Linear) or not isinstance(last, nn.Linear):
        raise UnsupportedNetworkError(f"expected {_EXPECTED}.")
    return first, last


def _require_plain(network: nn.Module) -> None:
    """Raise where the weights do not tell the function, or are no real numbers in memory."""
    for module in network.modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise UnsupportedNetworkError(
                f"the module has a {type(module).__name__} with forward hooks, which can change what it computes; "
                "remove the hooks (old weight_norm and spectral_norm: torch.nn.utils.remove_weight_norm, "
                "remove_spectral_norm)."
            )
    for name, value in network.named_parameters():
        if not value.is_floating_point() or value.is_meta or nn.parameter.is_lazy(value):
            kind = "no values yet" if value.is_meta or nn.parameter.is_lazy(value) else f"the type {value.dtype}"
            raise UnsupportedNetworkError(f"the weights {name!r} have {kind}; real numbers are expected.")


def _check_chain(traced: fx.GraphModule) -> None:
    """Each node takes what the one before it gives and nothing else; further inputs may lie idle."""
    first, *others = traced.graph.nodes
    nodes = [first, *(node for node in others if node.op != "placeholder" or node.users)]
    for before, node in pairwise(nodes):
        if node.all_input_nodes != [before]:
            reason = f"{node.name} does not take what {before.name} gives, and that alone"
            raise UnsupportedNetworkError(f"the module is no chain of layers: {reason}; expected {_EXPECTED}.")


def _part(node: fx.Node, traced: fx.GraphModule) -> "nn.Linear | str | None":
    """A linear layer, "relu", or None for what changes nothing."""
    if node.op in ("placeholder", "output"):
        return None
    if node.op == "call_module":
        return _module_part(traced.get_submodule(str(node.target)))
    if node.target in (torch.relu, nn.functional.relu, "relu", torch.relu_):
        return "relu"
    raise UnsupportedNetworkError(f"the module calls {node.target!s}; expected {_EXPECTED}.")


def _module_part(module: nn.Module) -> "nn.Linear | str | None":
    if isinstance(module, nn.Linear):
        return module
    if isinstance(module, nn.ReLU):
        return "relu"
    if isinstance(module, (nn.Identity, nn.Flatten)) or (isinstance(module, nn.Dropout) and not module.training):
        return None
    if isinstance(module, nn.Dropout):
        raise UnsupportedNetworkError("the module has Dropout in training mode; call network.eval() first.")
    raise UnsupportedNetworkError(f"the module has a {type(module).__name__}; expected {_EXPECTED}.")


def from_torch(network: nn.Module) -> Neurons:
    """Neurons in float64; a first-layer bias becomes the last column of W."""
    first, last = layers_of(network)
    W, A = first.weight.detach().double(), last.weight.detach().double().T
    if first.bias is not None:
        W = torch.cat([W, first.bias.detach().double()[:, None]], 1)
    bias = A.new_zeros(A.shape[1]) if last.bias is None else last.bias.detach().double()
    return Neurons(W, A, bias)


def penalty(network: nn.Module) -> float:
    """(||W||^2 + ||b||^2 + ||A||^2) / 2 of the weights as they stand; the output bias is free."""
    first, last = layers_of(network)
    parts = [first.weight, last.weight] + ([first.bias] if first.bias is not None else [])
    return 0.5 * sum(float((part.detach().double() ** 2).sum()) for part in parts)
