"""From neurons to torch modules and back."""

import pytest
import torch
from convexnn_cases import normal, random_neurons
from torch import nn

from convexnn.errors import ConvexNNError, UnsupportedNetworkError
from convexnn.network import from_torch, layers_of, penalty, to_torch
from convexnn.neurons import no_neurons

biases = pytest.mark.parametrize(("hidden_bias", "output_bias"), [(h, o) for h in (False, True) for o in (False, True)])


def inputs(d, hidden_bias, n=40):
    """What the module sees, and the columns that the neurons see."""
    X = normal(n, d, seed=9)
    return X, torch.cat([X, torch.ones(n, 1, dtype=torch.float64)], 1) if hidden_bias else X


def made(k=6, d=3, K=2, *, hidden_bias=True, output_bias=True):
    neurons = random_neurons(k, d + hidden_bias, K, seed=k)
    if not output_bias:
        neurons.bias.zero_()
    return neurons


@biases
@pytest.mark.parametrize(("k", "d", "K"), [(1, 1, 1), (6, 3, 2), (30, 5, 10)])
def test_round_trip(k, d, K, hidden_bias, output_bias):
    neurons = made(k, d, K, hidden_bias=hidden_bias, output_bias=output_bias)
    network = to_torch(neurons, hidden_bias=hidden_bias, output_bias=output_bias)
    X, columns = inputs(d, hidden_bias)
    with torch.no_grad():
        torch.testing.assert_close(network(X), neurons(columns), rtol=1e-12, atol=1e-12)
    back = from_torch(network)
    for given, returned in ((neurons.W, back.W), (neurons.A, back.A), (neurons.bias, back.bias)):
        assert torch.equal(given, returned)
    assert penalty(network) == pytest.approx(float(neurons.half_squared_norm()), rel=1e-14)
    assert [type(layer) for layer in network] == [nn.Linear, nn.ReLU, nn.Linear]
    assert (network[0].bias is not None, network[2].bias is not None) == (hidden_bias, output_bias)
    assert all(p.requires_grad and p.is_contiguous() for p in network.parameters())


@biases
def test_no_neurons(hidden_bias, output_bias):
    bias = torch.tensor([1.5, -2.0], dtype=torch.float64) * output_bias
    network = to_torch(no_neurons(3 + hidden_bias, bias), hidden_bias=hidden_bias, output_bias=output_bias)
    with torch.no_grad():
        torch.testing.assert_close(network(normal(5, 3, seed=0)), bias.expand(5, 2))
    assert penalty(network) == 0.0
    assert len(from_torch(network).balanced()) == 0


def test_the_module_owns_its_weights():
    neurons = made()
    network = to_torch(neurons, hidden_bias=True, output_bias=True)
    with torch.no_grad():
        network[0].weight.zero_()
    assert float(neurons.W.abs().sum()) > 0


class Written(nn.Module):
    """How people write it: ``relu`` is what stands between the two layers."""

    def __init__(self, relu, d=3, k=5, K=2, bias=True):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(d, k, bias=bias), nn.Linear(k, K, bias=bias)
        self.relu = relu

    def forward(self, x):
        return self.fc2(self.relu(self.fc1(x)))


class Flattening(Written):
    def forward(self, x):
        return super().forward(x.flatten(1))


class Reversed(nn.Module):
    """The layers are named and registered in the other order than they are used."""

    def __init__(self):
        super().__init__()
        self.last, self.first = nn.Linear(5, 1), nn.Linear(3, 5)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))


class UnusedArgument(Written):
    def __init__(self):
        super().__init__(torch.relu)

    def forward(self, x, mask=None):
        return super().forward(x)


SUPPORTED = {
    "sequential": lambda: nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)),
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Linear(3, 5), nn.ReLU()), nn.Sequential(nn.Linear(5, 2))),
    "identity": lambda: nn.Sequential(nn.Flatten(), nn.Identity(), nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)),
    "dropout": lambda: nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 2)).eval(),
    "torch.relu": lambda: Written(torch.relu),
    "functional": lambda: Written(nn.functional.relu),
    "module": lambda: Written(nn.ReLU(inplace=True)),
    "method": lambda: Written(lambda x: x.relu()),
    "no bias": lambda: Written(torch.relu, bias=False),
    "reversed": Reversed,
    "float32": lambda: nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).float(),
    "unused argument": UnusedArgument,
    "frozen": lambda: nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).requires_grad_(False),
}


@pytest.mark.parametrize("kind", SUPPORTED)
def test_reads_every_way_of_writing_it(kind):
    torch.manual_seed(0)
    network = SUPPORTED[kind]()
    neurons = from_torch(network)
    first, _ = layers_of(network)
    X, columns = inputs(3, first.bias is not None)
    with torch.no_grad():
        expected = network(X.to(first.weight.dtype)).double()
    torch.testing.assert_close(neurons(columns), expected, rtol=1e-5, atol=1e-5)
    assert neurons.W.dtype == torch.float64


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x))) if x.sum() > 0 else x


class Skip(Branching):
    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x)) + x)


class Scaled(Branching):
    def forward(self, x):
        return 2 * self.fc2(torch.relu(self.fc1(x)))


class Ignoring(Branching):
    """Computes the layers and returns something else."""

    def forward(self, x):
        hidden = torch.relu(self.fc1(x))
        self.fc2(hidden)
        return x


class SkipsFirst(Branching):
    """The second layer never sees the ReLU."""

    def forward(self, x):
        torch.relu(self.fc1(x))
        return self.fc2(x)


class TwoInputs(Branching):
    def forward(self, x, y):
        return self.fc2(torch.relu(self.fc1(y)))


class InputTwice(Branching):
    """The second layer sees the ReLU of the first, and the first is used once more."""

    def forward(self, x):
        hidden = torch.relu(self.fc1(x))
        self.fc1(hidden)
        return self.fc2(hidden)


class TwoOutputs(Branching):
    def forward(self, x):
        hidden = torch.relu(self.fc1(x))
        return self.fc2(hidden), hidden


UNSUPPORTED = {
    "deep": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1)),
        "Linear, ReLU, Linear, ReLU, Linear",
    ),
    "linear": (lambda: nn.Linear(3, 1), "Linear"),
    "empty": (nn.Sequential, "nothing"),
    "tanh": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), "Tanh"),
    "batch norm": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1)),
        "BatchNorm1d",
    ),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Linear(4, 1)), "Conv2d"),
    "relu last": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1), nn.ReLU()), "Linear, Linear, ReLU"),
    "dropout in training": (lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 1)), "eval"),
    "branching": (Branching, "traced"),
    "skip": (Skip, "add"),
    "scaled": (Scaled, "mul"),
    "no module": (lambda: "network.pt", "str"),
    "weights": (lambda: torch.zeros(3, 3), "Tensor"),
    "functional": (lambda: Written(torch.sigmoid), "sigmoid"),
    "method": (lambda: Written(lambda x: x.clamp(min=0)), "clamp"),
    "flattening": (lambda: Flattening(torch.relu), "flatten"),
    "leaky": (lambda: Written(nn.LeakyReLU()), "LeakyReLU"),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_refuses_what_it_cannot_read_and_names_it(kind):
    make, named = UNSUPPORTED[kind]
    with pytest.raises(UnsupportedNetworkError, match=named) as caught:
        layers_of(make())
    assert "Linear, ReLU, Linear" in str(caught.value) or "eval" in str(caught.value)
    assert isinstance(caught.value, ConvexNNError)


@pytest.mark.parametrize("module", [Ignoring, SkipsFirst, TwoInputs, TwoOutputs, InputTwice])
def test_refuses_layers_that_are_not_a_chain(module):
    """The three layers occur in the right order, but the module does not compute their composition."""
    with pytest.raises(UnsupportedNetworkError):
        layers_of(module())


def plain():
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))


@pytest.mark.parametrize("place", [0, 1, 2, None])
@pytest.mark.parametrize("before", [True, False])
def test_refuses_hooks(place, before):
    """A hook can change the function, and the weights do not tell."""
    network = plain()
    module = network if place is None else network[place]
    if before:
        module.register_forward_pre_hook(lambda module, args: (-args[0],))
    else:
        module.register_forward_hook(lambda module, args, out: -out)
    with pytest.raises(UnsupportedNetworkError, match="hooks"):
        layers_of(network)


def test_follows_parametrised_weights():
    network = plain()
    nn.utils.parametrizations.weight_norm(network[0])
    X, columns = inputs(3, True)
    with torch.no_grad():
        torch.testing.assert_close(from_torch(network)(columns), network(X.float()).double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("told", ["complex64", "no values"])
def test_refuses_weights_that_are_no_real_numbers(told):
    layers = [nn.Linear(3, 5, dtype=torch.complex64), nn.ReLU(), nn.Linear(5, 1)]
    network = nn.Sequential(*layers) if told == "complex64" else plain().to("meta")
    with pytest.raises(UnsupportedNetworkError, match=told):
        layers_of(network)
