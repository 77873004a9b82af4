import inspect
from math import prod

import numpy as np
import pytest
import torch
from certify_cases import NETWORKS, OPERATIONS, graph_of, seeded
from certify_laws import adjoint_matches_forward, relaxation_brackets

import certify
from certify.bounds import METHODS
from certify.ir import ops, simplify
from certify.ir.build import Builder
from certify.ir.graph import Graph
from certify.ir.ops import (
    AbstractAffine,
    AbstractOp,
    AxisLinear,
    Concat,
    Conv,
    ConvTranspose,
    Linear,
    Maximum,
    ReLU,
    Reshape,
    Scale,
    Select,
    Sum,
    Window,
)
from certify.regions import Box
from certify.relaxations import RELAXATIONS, relaxation_of


def normal(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


SAME = Window((3, 2), (2, 1), (1, 0), (0, 1), (1, 2))

# name -> (operation, shapes of what it reads)
AFFINE = {
    "Linear": (Linear(normal(4, 6), normal(4, seed=1)), (6,)),
    "AxisLinear": (AxisLinear(normal(4, 6), normal(4, seed=1)), (2, 3, 6)),
    "Scale": (Scale(normal(6), normal(6, seed=1)), (6,)),
    "Scale by channel": (Scale(normal(3, 1, 1), normal(1, 1, 1, seed=1)), (3, 2, 4)),
    "Reshape": (Reshape((2, 3), (6,)), (2, 3)),
    "Select": (Select((2, 3), np.array([[5, 5], [-1, 0]])), (2, 3)),
    "Select often": (Select((2,), np.arange(90).reshape(9, 10) % 3 - 1), (2,)),
    "Concat": (Concat(1, (2, 1, 3)), (2, 2, 2), (2, 1, 2), (2, 3, 2)),
    "Sum": (Sum((1.0, -2.5, 0.5)), (3, 2), (3, 2), (3, 2)),
    "Maximum": (Maximum(), (4,), (4,)),
    "Conv 1d": (Conv(normal(4, 3, 2), normal(4), (7,), Window((2,), (3,), (2,), (2,), (2,))), (3, 7)),
    "Conv 2d": (Conv(normal(4, 3, 3, 2), normal(4), (5, 6), SAME), (3, 5, 6)),
    "Conv to many": (Conv(normal(5, 1, 2), normal(5), (6,), Window((2,), (1,), (0,), (0,), (1,))), (1, 6)),
    "Conv in groups": (Conv(normal(6, 2, 3, 2), normal(6), (6, 5), SAME, 3), (6, 6, 5)),
    "Conv 3d": (
        Conv(normal(2, 1, 2, 2, 2), normal(2), (3, 4, 3), Window((2,) * 3, (1, 2, 1), (0,) * 3, (0,) * 3, (1,) * 3)),
        (1, 3, 4, 3),
    ),
    "ConvTranspose": (ConvTranspose(normal(4, 3, 3, 2), normal(3), (6, 5), SAME), (4, 3, 4)),
    "ConvTranspose in groups": (ConvTranspose(normal(6, 2, 3, 2), normal(6), (5, 5), SAME, 3), (6, 2, 4)),
}


def test_every_operation_is_listed_and_has_its_rule():
    concrete = [
        c
        for _, c in inspect.getmembers(ops, inspect.isclass)
        if issubclass(c, AbstractOp) and not c.__name__.startswith("Abstract")
    ]
    assert set(concrete) == set(OPERATIONS)
    assert {c for c in concrete if issubclass(c, AbstractAffine)} == {type(op) for op, *_ in AFFINE.values()}
    rest = {c for c in concrete if not issubclass(c, AbstractAffine)} - {ops.Input}
    assert rest == set(RELAXATIONS)


@pytest.mark.parametrize("name", AFFINE)
def test_affine_operations_know_their_transpose(name):
    op, *shapes = AFFINE[name]
    adjoint_matches_forward(op, tuple(shapes), seed=3)


@pytest.mark.parametrize("name", AFFINE)
def test_terms_pay_for_the_longest_sum_in_either_direction(name):
    op, *shapes = AFFINE[name]
    out = op.output_shape(*shapes)
    rows = op.adjoint(torch.eye(prod(out), dtype=torch.float64).reshape((1, -1, *out)))
    used = torch.cat([row.reshape((prod(out), -1)) != 0 for row in rows], dim=1)
    # A sum of one product is exact where the factor is 1, and one rounding is within the slack where it is not.
    assert max(int(used.sum(1).max()), int(used.sum(0).max())) <= max(op.terms, 1)


@pytest.mark.parametrize("name", AFFINE)
def test_affine_operations_refuse_other_shapes(name):
    op, *shapes = AFFINE[name]
    with pytest.raises(certify.InvalidInputError, match=r"was given|cannot|expected"):
        op.output_shape((*shapes[0], 9), *shapes[1:])


@pytest.mark.parametrize("kind", RELAXATIONS)
def test_relaxations_bracket_their_operation(kind):
    relaxation_brackets(RELAXATIONS[kind], kind(), seed=4)


def test_an_operation_without_a_relaxation_is_named():
    with pytest.raises(certify.UnsupportedOp, match="Linear has no relaxation"):
        relaxation_of(AFFINE["Linear"][0])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_graph_is_the_network(name):
    network, shape = NETWORKS[name]
    inputs = 2 * normal(50, *shape, seed=5)
    expected = network.double()(inputs)
    if name != "float64":
        network.float()
    torch.testing.assert_close(graph_of(name)(inputs), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NETWORKS)
def test_simplified_graphs_have_no_two_affine_nodes_in_a_row(name):
    graph = graph_of(name)
    for node in graph.nodes[1:]:
        for i in node.inputs:
            both = isinstance(node.op, Linear | Scale) and isinstance(graph.nodes[i].op, Linear | Scale)
            assert not both


def test_batch_norm_folds_into_its_neighbours():
    kinds = [type(n.op).__name__ for n in graph_of("batch-norm").nodes]
    # The one between two ReLUs has no linear layer to go into.
    assert kinds == ["Input", "Linear", "ReLU", "Scale", "ReLU", "Linear", "ReLU", "Linear"]


def residual(weight, bias):
    """x -> relu(x) and then the same tensor twice: once through a linear layer, once through a scale."""
    graph = Graph.start((3,)).append(ReLU())
    return graph.append(Linear(weight, bias), 1).append(Scale(bias, bias), 1)


def test_simplify_leaves_a_node_with_two_readers_alone():
    graph = Graph.start((3,)).append(Linear(normal(3, 3), normal(3))).append(ReLU())
    graph = graph.append(Linear(normal(3, 3, seed=6), normal(3)), 1).append(Sum((1.0, 1.0)), 2, 3)
    inputs = normal(20, 3, seed=7)
    assert len(simplify(graph).nodes) == 5
    torch.testing.assert_close(simplify(graph)(inputs), graph(inputs))


def test_simplify_counts_the_readers_of_an_identity_it_drops():
    graph = Graph.start((3,)).append(Linear(normal(3, 3), normal(3))).append(Reshape((3,), (3,)))
    graph = graph.append(ReLU()).append(Linear(normal(3, 3, seed=6), normal(3)), 2).append(Sum((1.0, 1.0)), 3, 4)
    inputs = normal(20, 3, seed=7)
    assert len(simplify(graph).nodes) == 5
    torch.testing.assert_close(simplify(graph)(inputs), graph(inputs))


def test_simplify_drops_what_nobody_reads():
    graph = Graph.start((3,)).append(ReLU()).append(Linear(normal(2, 3), normal(2)), 0)
    assert [type(n.op) for n in simplify(graph).nodes[1:]] == [Linear]


def test_simplify_merges_chains_and_drops_identities():
    graph = Graph.start((2, 3)).append(Reshape((2, 3), (2, 3))).append(Reshape((2, 3), (3, 2)))
    graph = graph.append(Reshape((3, 2), (6,)))
    for seed in range(3):
        graph = graph.append(Linear(normal(6, 6, seed=seed), normal(6, seed=seed)))
        graph = graph.append(Scale(normal(6, seed=seed), normal(6, seed=seed)))
        graph = graph.append(Scale(normal(6, seed=seed + 9), normal(6, seed=seed)))
    small = simplify(graph)
    assert len(small.nodes) == 3
    inputs = normal(20, 2, 3, seed=8)
    torch.testing.assert_close(small(inputs), graph(inputs), rtol=1e-11, atol=1e-11)


def test_methods_follow_branches():
    """Two readers of one node, one of them dead: what later residual sums need."""
    graph = residual(normal(3, 3), normal(3, seed=1))
    region = Box(-torch.ones(2, 3).double(), torch.ones(2, 3).double())
    for method in METHODS.values():
        bounds = method(graph, region)
        for _ in range(20):
            value = graph(region.sample(seeded(9)))
            assert (bounds.lower[graph.output] <= value + 1e-12).all()
            assert (bounds.upper[graph.output] >= value - 1e-12).all()


def test_graphs_run_on_numpy_too():
    graph = graph_of("batch-norm")
    inputs = normal(10, 4, seed=10)
    plain = graph.map_arrays(lambda v: v.numpy())
    assert plain(inputs.numpy()) == pytest.approx(graph(inputs).numpy(), abs=1e-12)


def test_nodes_read_only_earlier_nodes():
    with pytest.raises(certify.InvalidInputError, match="can only read nodes 0 to 0"):
        Graph.start((3,)).append(ReLU(), 1)


def test_every_weight_of_a_built_graph_can_be_written():
    """torch warns of arrays that cannot; a constant seen in another shape must not be a view of a broadcast."""
    builder = Builder((4,))
    value = builder.reshape(builder.pointwise(builder.input, ReLU()), (2, 2))
    graph = builder.finish(builder.scale(value, np.arange(1.0, 5.0).reshape(2, 2), np.ones((2, 2))))
    assert all(array.flags.writeable for node in graph.nodes for array in node.op.weights.values())
