"""A first look by descent in numpy: its gradient, its promises, and that it spares torch."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from random_graphs import random_graph

from certify.ir.build import Builder
from certify.ir.ops import AbstractAffine, ReLU, Window
from certify.properties.query import Case
from certify.search import glance as module
from certify.search.glance import glance, glances, promising


def plain_graphs(count):
    """Random networks of affine operations and ReLUs, with numpy arrays."""
    found = []
    for seed in range(200):
        graph = random_graph(seed)
        if all(isinstance(node.op, AbstractAffine | ReLU) for node in graph.nodes[1:]):
            found.append((seed, graph.map_arrays(np.asarray)))
        if len(found) == count:
            return found
    raise AssertionError(len(found))


def case_of(graph, rng, rows=2):
    n, m = int(np.prod(graph.input_shape)), int(np.prod(graph.output_shape))
    centre = rng.uniform(size=n)
    return Case(centre - 0.5, centre + 0.5, rng.standard_normal((rows, m)), rng.standard_normal(rows))


@pytest.mark.parametrize(("seed", "graph"), plain_graphs(12))
def test_slopes_are_those_of_the_largest_condition(seed, graph):
    rng = np.random.default_rng(seed)
    case = case_of(graph, rng)
    points = rng.uniform(case.lower, case.upper, (6, len(case.lower)))
    slack, gradient = module._slopes(graph, case, points)
    expected = (graph(points).reshape((6, -1)) @ case.A.T - case.b).max(1)
    np.testing.assert_allclose(slack, expected, rtol=1e-12, atol=1e-12)
    way = rng.standard_normal(points.shape)
    step = 1e-7
    ahead, behind = (module._slopes(graph, case, points + s * way)[0] for s in (step, -step))
    smooth = np.abs(ahead + behind - 2 * slack) < 1e-10 * (1 + np.abs(slack))  # no kink on the way
    assert smooth.any()
    rise = (ahead - behind) / (2 * step)
    np.testing.assert_allclose((gradient * way).sum(1)[smooth], rise[smooth], rtol=1e-5, atol=1e-5)


def test_descent_finds_a_corner_and_only_what_is_confirmed_counts():
    graph = plain_graphs(1)[0][1]
    rng = np.random.default_rng(0)
    case = case_of(graph, rng, rows=1)
    points = rng.uniform(case.lower, case.upper, (4000, len(case.lower)))
    least = float((graph(points).reshape((4000, -1)) @ case.A[0]).min())
    reached = Case(case.lower, case.upper, case.A, np.array([least]))
    asked = []
    assert glance(graph, reached, lambda x: asked.append(x) or True, 0)
    (point,) = asked
    assert ((point >= case.lower) & (point <= case.upper)).all()
    assert float(case.A[0] @ graph(point[None]).ravel()) <= least
    assert not glance(graph, reached, lambda x: False, 0)
    beyond = Case(case.lower, case.upper, case.A, np.array([least - 100.0]))
    assert not glance(graph, beyond, lambda x: True, 0)


def test_the_nearest_case_is_looked_at_first(monkeypatch):
    graph = plain_graphs(1)[0][1]
    case = case_of(graph, np.random.default_rng(0), rows=1)
    cases = [replace(case, b=case.b + shift, written_b=None) for shift in (-3.0, 1.0, -1.0)]
    assert promising(graph, cases) == [cases[1], cases[2], cases[0]]
    monkeypatch.setattr(module, "glances", lambda graph: 1)
    assert promising(graph, cases) == [cases[1]]
    monkeypatch.setattr(module, "glances", lambda graph: 0)
    assert promising(graph, cases) == []


def test_the_work_of_a_convolution_is_that_of_its_results():
    """A kernel as large as the image: one product for each of its entries."""
    builder = Builder((2, 10, 10))
    window = Window((10, 10), (1, 1), (0, 0), (0, 0), (1, 1))
    value = builder.conv(builder.input, np.ones((5, 2, 10, 10)), None, window)
    graph = builder.finish(value)
    assert module._work(graph, graph.output) == 5 * 2 * 100


def test_only_small_networks_of_known_operations_are_worth_a_look(monkeypatch):
    graph = plain_graphs(1)[0][1]
    assert glances(graph) > 10
    monkeypatch.setattr(module, "_MOST", 1000)
    assert glances(graph) == 0
    smooth = next(g for g in map(random_graph, range(100)) if "Tanh" in {type(n.op).__name__ for n in g.nodes})
    assert glances(smooth.map_arrays(np.asarray)) == 0


@pytest.mark.parametrize("free", [36, 3])
def test_a_convolution_with_a_witness_is_answered_without_torch(tmp_path, free):
    """Also where few inputs are free: a branch that skips a ReLU is no chain."""
    pytest.importorskip("onnxruntime")
    from onnx_cases import Case as Nodes
    from onnx_cases import ints, normal

    nodes = [("Conv", "x w", {}), ("Relu", "0", {}), ("Add", "1 0", {}), ("Reshape", "2 s", {}), ("MatMul", "3 m", {})]
    # Whatever is drawn, the output is large where all inputs are 1.
    constants = {"w": np.abs(normal(2, 1, 3, 3)), "s": ints(1, 32), "m": np.abs(normal(32, 1))}
    (tmp_path / "net.onnx").write_bytes(Nodes((1, 1, 6, 6), nodes, constants).model())
    lines = ["(declare-const Y_0 Real)", "(assert (>= Y_0 0.25))"]
    for i in range(36):
        low = -1 if i < free else 1
        lines += [f"(declare-const X_{i} Real)", f"(assert (>= X_{i} {low}))", f"(assert (<= X_{i} 1))"]
    (tmp_path / "q.vnnlib").write_text("\n".join(lines))
    code = (
        "import sys; from certify.cli import main;"
        "status = main(['verify', sys.argv[1] + '/q.vnnlib', '--network', 'N=' + sys.argv[1] + '/net.onnx']);"
        "sys.exit(status or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split("\n")[0]) == (0, "sat"), done.stderr
