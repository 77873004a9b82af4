import inspect

import pytest
import torch
from certify_cases import METHODS, centres, mlp, randomised, regions_around, seeded
from certify_laws import margins_below_samples, samples_stay_inside
from torch import nn
from torch_cases import TORCH_CASES, Fn

import certify
from certify.ir.from_torch import graph_from_torch
from certify.ir.ops import Linear, Sum
from certify.ir.torch_names import CREATORS, MOVES, QUERIES, SAME
from certify.ir.torch_rules import RULES
from certify.properties import Margins

by_case = pytest.mark.parametrize("name", TORCH_CASES)


@by_case
def test_the_graph_is_the_module(name):
    module, shape = TORCH_CASES[name]
    graph = graph_from_torch(module, input_shape=shape)
    inputs = 3 * torch.randn((20, *shape), generator=seeded(1), dtype=torch.float64)
    expected = module.double()(inputs.clone())
    assert graph.output_shape == (expected.shape[1:] or (1,))
    torch.testing.assert_close(graph(inputs), expected.reshape(20, *graph.output_shape), rtol=1e-11, atol=1e-11)


@by_case
def test_bounds_of_every_function_hold(name):
    module, shape = TORCH_CASES[name]
    graph = graph_from_torch(module, input_shape=shape)
    n, m = (torch.Size(s).numel() for s in (graph.input_shape, graph.output_shape))
    kind = ("box", "l2", "linf in domain")[len(name) % 3]
    region = regions_around(centres(n, 2, 3), 0.2)[kind]
    rows = torch.randn((2, 2, m), generator=seeded(4), dtype=torch.float64)
    margins = Margins(rows, rows[..., 0], torch.zeros(2, 2, dtype=torch.long), torch.zeros(2, dtype=torch.bool))
    for method in METHODS[:3]:  # the rest on random networks
        samples_stay_inside(graph, region, method(graph, region), seed=5, count=5)
        margins_below_samples(method, graph, region, margins, seed=6, count=5)


def test_every_function_has_a_case():
    assert set(RULES) <= {name.split(",")[0] for name in TORCH_CASES}


def test_every_function_has_one_meaning():
    sets = [set(RULES), MOVES, SAME, CREATORS, QUERIES]
    assert sum(map(len, sets)) == len(set().union(*sets))


@pytest.mark.parametrize("name", sorted(MOVES - {"iter", "hsplit", "vsplit", "dsplit", "fliplr", "flipud"}))
def test_functions_that_move_entries_exist(name):
    assert any(hasattr(home, name) for home in (torch, torch.Tensor, torch.nn.functional)) or name == "getitem"


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_overridden_methods_are_followed():
    graph = graph_from_torch(nn.Sequential(Doubled(2, 3)))
    assert [type(n.op) for n in graph.nodes[1:]] == [Linear]


def test_hooks_are_followed():
    net = randomised(mlp(2, 3, 2), 0)
    net[0].register_forward_hook(lambda module, args, out: out + 1)
    graph = graph_from_torch(net)
    plain = graph_from_torch(randomised(mlp(2, 3, 2), 0))
    torch.testing.assert_close(graph.nodes[1].op.bias, plain.nodes[1].op.bias + 1)


def test_residual_networks_keep_their_sums():
    module, shape = TORCH_CASES["residual"]
    graph = graph_from_torch(module, input_shape=shape)
    assert sum(isinstance(n.op, Sum) for n in graph.nodes) == 1


@pytest.mark.parametrize(
    ("network", "error", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.GELU())), certify.UnsupportedOp, r"'1\.0'.*GELU.*'gelu'"),
        (Fn(lambda x: x * x), certify.UnsupportedOp, "depends on the input"),
        (Fn(lambda x: x if x.sum() > 0 else -x), certify.UnsupportedOp, "'gt' is not supported"),
        (Fn(lambda x: x * float(x.sum())), certify.UnsupportedOp, "the network itself"),
        (Fn(lambda x: (x, x)), certify.UnsupportedOp, "returns a tuple"),
        (Fn(lambda x: torch.ones(1, 2)), certify.UnsupportedOp, "returns a Tensor"),
        (Fn(lambda x: x.reshape(7)), certify.InvalidInputError, "check input_shape"),
        (Fn(lambda x: x.max(1)[0]), certify.UnsupportedOp, "use amax"),
        (Fn(lambda x: x.clamp(torch.zeros(2), None)), certify.UnsupportedOp, "one number for each limit"),
        (Fn(lambda x: x.view(1, -1) if len(x) == 1 else x[:3]), certify.ImportMismatchError, "returns shape"),
        (Fn(lambda x: x + torch.rand(2, dtype=torch.float64)), certify.ImportMismatchError, "differs"),
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)).train(), certify.TrainModeError, r"'1'.*call \.eval\(\)"),
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).train(), certify.TrainModeError, r"call \.eval\(\)"),
        (
            nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)).eval(),
            certify.UnsupportedOp,
            "no running statistics",
        ),
        (nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 3)), certify.InvalidInputError, "with 2 inputs was given"),
        (nn.Sequential(nn.Linear(2, 3), nn.Flatten(0)), certify.UnsupportedOp, "flattens the batch axis"),
        ("network.pt", certify.InvalidTypeError, "expected a torch.nn.Module"),
    ],
)
def test_what_cannot_be_read_is_named(network, error, message):
    with pytest.raises(error, match=message):
        inspect.unwrap(graph_from_torch)(network, input_shape=(2,))


@pytest.mark.parametrize("network", [nn.Sequential(nn.ReLU()), nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(2, 2))])
def test_an_unknown_input_shape_has_to_be_given(network):
    with pytest.raises(certify.InvalidInputError, match="pass input_shape="):
        graph_from_torch(network)


def test_train_mode_without_random_layers_is_fine():
    assert len(graph_from_torch(mlp(2, 3, 2).train()).nodes) == 4


def test_weights_have_to_be_finite():
    net = mlp(2, 3, 2)
    with torch.no_grad():
        net[0].weight[0, 0] = torch.nan
    with pytest.raises(certify.InvalidInputError, match=r"0\.weight of the network has NaN"):
        graph_from_torch(net)


def test_import_leaves_the_network_and_the_global_generator_alone():
    net = randomised(mlp(2, 3, 2), 0)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.random.get_rng_state()
    graph_from_torch(net)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[k], v) and v.dtype == torch.float32 for k, v in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
