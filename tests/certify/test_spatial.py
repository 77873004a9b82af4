"""What is verified about vector fields: every method, the exact end, counterexamples, bad input, the command line."""

import inspect
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from certify_cases import seeded
from onnx_cases import Case
from shared_data import SHARED
from sklearn.datasets import load_digits
from spatial_cases import INF, NORMS, by_norm
from torch import nn

import certify
from certify.bounds import CROWN, METHODS, AlphaCROWN, TriangleLP
from certify.bounds.base import Bounds, place
from certify.bounds.linear_model import Question, linear_model
from certify.cli import main
from certify.errors import InvalidInputError, InvalidTypeError
from certify.ir.from_torch import graph_from_torch
from certify.properties import margins_of_labels
from certify.regions.spatial import Deformation, VectorField
from certify.regions.spatial.bilinear import deform
from certify.regions.spatial.edges import OnEdges
from certify.regions.spatial.vector_field import image_of
from certify.search import Deadline
from certify.search.milp import MixedIntegerModel
from certify.setup import plan_of


def small_networks(seed=0):
    torch.manual_seed(seed)
    dense = nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    convolutional = nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(27, 6), nn.ReLU(), nn.Linear(6, 3)
    )
    return {"dense": dense.eval(), "convolutional": convolutional.eval()}


@pytest.mark.parametrize(
    ("norm", "name", "gamma"),
    [
        (INF, "dense", 0.1),
        (2.0, "convolutional", 0.1),
        (2.0, "dense", None),
        *(pytest.param(*v, marks=pytest.mark.slow) for v in ((2.0, "dense", 0.1), (INF, "convolutional", 0.1))),
        *(pytest.param(*v, marks=pytest.mark.slow) for v in ((INF, "dense", None), (1.0, "convolutional", 0.1))),
    ],
)
def test_margins_of_fields_stay_above_every_method(norm, name, gamma):
    network = small_networks()[name]
    image = torch.rand((1, 1, 6, 6), generator=seeded(40), dtype=torch.float64)
    deformation = Deformation(0.5, norm, gamma)
    graph, outer = graph_from_torch(network, input_shape=(1, 6, 6)), deformation.canvas(image).outer
    margins = margins_of_labels(torch.tensor([1]), 3)
    flows = deformation.flows(image).select([0] * 400)
    points = deform(image.expand(400, -1, -1, -1), flows.fields(flows.sample(seeded(41))))
    values = margins.select([0] * 400).of_outputs(graph(points))
    methods = [CROWN(), AlphaCROWN(steps_margins=8, steps_hidden=3)]
    for method in [*methods, TriangleLP()] if name == "dense" and norm == INF else methods:
        bounds = method(graph, outer)
        assert (method.margins(graph, outer, bounds, margins) <= values.amin(0) + 1e-9).all()
        for k in range(1, len(graph.nodes)):
            low, high = bounds[k]
            at = graph.values(points)[k]
            assert ((at >= low - 1e-9) & (at <= high + 1e-9)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", small_networks())
def test_smoother_fields_have_better_margins(name):
    network = small_networks()[name]
    image = torch.rand((1, 1, 6, 6), generator=seeded(42), dtype=torch.float64)
    graph, margins = graph_from_torch(network, input_shape=(1, 6, 6)), margins_of_labels(torch.tensor([1]), 3)

    def bound(method, gamma):
        outer = Deformation(0.6, INF, gamma).canvas(image).outer
        return method.margins(graph, outer, method(graph, outer, Bounds()), margins)

    at_image = margins.of_outputs(graph(image))
    for method in (CROWN(), AlphaCROWN(steps_margins=10, steps_hidden=4)):
        found = [bound(method, gamma) for gamma in (None, 0.2, 0.0)]
        slack = 0.05 * (at_image - found[0])
        for looser, tighter in itertools.pairwise(found):
            assert (tighter >= looser - slack).all()
        assert (found[-1] > found[0] + 2 * slack).all()


def quick(method):
    """A method by name after a short attack."""
    return replace(plan_of(method), attack=certify.PGD(steps=40, restarts=1))


class Brightness(nn.Module):
    """Class 1 where the top left pixel is brighter than the threshold."""

    def __init__(self, threshold):
        super().__init__()
        self.flat = nn.Flatten()
        self.linear = nn.Linear(16, 2)
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.weight[1, 0] = 1.0
            self.linear.bias[:] = torch.tensor([threshold, 0.0])

    def forward(self, x):
        return self.linear(self.flat(x))


def test_a_verdict_turns_where_the_pixel_s_interval_says():
    """The pixel of an edge between 1 and 0 falls to 1 - delta."""
    image = np.zeros((4, 4))
    image[:, 0] = 1.0
    for delta, status in ((0.49, certify.Status.VERIFIED), (0.51, certify.Status.FALSIFIED)):
        for gamma in (None, 0.1, 0.0):
            verdict = certify.verify(
                Brightness(0.5), image, label=1, region=VectorField(image, delta, gamma=gamma), method=quick("crown")
            )
            assert verdict.status is status
    field = torch.from_numpy(verdict.flow)[None]
    region = VectorField(image, 0.51, gamma=0.0)
    assert region.contains(field).all()
    shown = region.deform(field)[0, 0].float().numpy()
    assert np.array_equal(shown.reshape(4, 4), verdict.counterexample)
    output = Brightness(0.5)(torch.from_numpy(verdict.counterexample)[None])
    assert int(output.argmax()) == 0


@by_norm
@pytest.mark.parametrize("gamma", [None, 0.2])
def test_counterexamples_are_fields_that_the_network_itself_confirms(norm, gamma):
    network = small_networks(3)["convolutional"]
    images = torch.rand((8, 1, 6, 6), generator=seeded(43)).double()
    with torch.no_grad():  # all classes near each other
        network[-1].bias -= network(images.float()).mean(0)
    labels = network(images.float()).argmax(1)
    report = certify.certified_accuracy(
        network, images, labels, region=Deformation(1.5, norm, gamma), method="crown", domain=(0, 1)
    )
    assert report.counterexamples
    assert report.counterexamples.keys() == report.flows.keys()
    for k, image in report.counterexamples.items():
        region = VectorField(images[k], 1.5, norm, gamma)
        field = torch.from_numpy(report.flows[k])[None]
        assert region.contains(field).all()
        torch.testing.assert_close(region.deform(field)[0].float(), torch.from_numpy(image))
        assert int(network(torch.from_numpy(image)[None]).argmax()) != int(labels[k])
    assert report.certified <= report.attacked <= report.clean == 1.0
    assert "vector fields" in str(report)


def test_accuracy_and_single_answers_agree_and_are_kept(tmp_path):
    network = small_networks(3)["dense"]
    images = torch.rand((2, 6, 6), generator=seeded(44)).double()
    labels = network(images.float()).argmax(1)
    deformation, plan = Deformation(0.3, 2, 0.1), certify.Plan("crown", (CROWN(),), attack=certify.PGD(4, 1))
    results = tmp_path / "answers.jsonl"
    report = certify.certified_accuracy(network, images, labels, region=deformation, method=plan, results=results)
    again = certify.certified_accuracy(network, images, labels, region=deformation, method=plan, results=results)
    assert list(report.statuses) == list(again.statuses)
    with pytest.raises(certify.ResultsFileError):
        certify.certified_accuracy(
            network, images, labels, region=Deformation(0.3, 2, 0.2), method=plan, results=results
        )
    for k in range(2):
        verdict = certify.verify(network, images[k], label=int(labels[k]), region=deformation, method=plan)
        assert verdict.status is report.statuses[k]


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown", "alpha-crown", "lp", "milp", "sdp-crown", "auto"])
def test_without_a_limit_of_differences_it_is_a_box_for_every_method(method):
    network = small_networks()["dense"]
    image = torch.rand((6, 6), generator=seeded(45)).double()
    label = int(network(image[None].float()).argmax())
    field = VectorField(image.float().double(), 0.1)
    low, high = (v.flatten() for v in field.intervals())
    verdict = certify.verify(network, image.float(), label=label, region=field, method=quick(method))
    middle = ((low + high) / 2).reshape(6, 6)
    radius = ((high - low) / 2).max()
    ball = certify.verify(
        network,
        middle,
        label=label,
        eps=float(radius) + 1e-6,
        domain=(low.reshape(6, 6), high.reshape(6, 6)),
        method=quick(method),
    )
    assert verdict.status is ball.status
    if verdict.status is certify.Status.VERIFIED and method != "auto":
        assert verdict.worst_margin == pytest.approx(ball.worst_margin, rel=0.02, abs=1e-3)


BAD = [
    ({"delta": -0.1}, InvalidInputError, "delta is -0.1"),
    ({"delta": float("nan")}, InvalidInputError, "delta is nan"),
    ({"delta": INF}, InvalidInputError, "delta is inf"),
    ({"delta": 99.0}, InvalidInputError, "at most 8"),
    ({"delta": "wide"}, InvalidTypeError, "delta is 'wide'"),
    ({"delta": 0.1, "gamma": -1}, InvalidInputError, "gamma is -1"),
    ({"delta": 0.1, "gamma": float("nan")}, InvalidInputError, "gamma is nan"),
    ({"delta": 0.1, "norm": 3}, InvalidInputError, "norm is 3"),
    ({"delta": 0.1, "norm": "l7"}, InvalidInputError, "norm is 'l7'"),
    ({"delta": 0.1, "padding": "zeros"}, InvalidInputError, "padding is 'zeros'"),
]


@pytest.mark.parametrize(("given", "error", "message"), BAD)
def test_bad_limits_are_named(given, error, message):
    with pytest.raises(error, match=message):
        Deformation(**given)
    with pytest.raises(error, match=message):
        VectorField(np.zeros((4, 4)), **given)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((28, 28, 3), "channels last.*moveaxis"),
        ((28, 28, 1), "channels last.*moveaxis"),
        ((10, 28, 28), "looks like a batch of 10"),
        ((2, 1, 28, 28), "a batch; expected one image"),
        ((784,), "reshape it"),
        ((1, 1, 1, 4, 4), "expected \\(height, width\\)"),
    ],
)
def test_layouts_that_are_no_image_are_named(shape, message):
    with pytest.raises(InvalidInputError, match=message):
        image_of(np.zeros(shape))


def test_bad_questions_are_named():
    network, image = Brightness(0.5), np.ones((4, 4)) / 2
    field = VectorField(image, 0.1)
    for message, given in {
        "neither eps nor region": {},
        "beside a region": {"region": field, "eps": 0.1},
        "norm of its own": {"region": field, "norm": "l2"},
        "outside the domain": {"region": field, "domain": (0.6, 1)},
        "not the image of the region": {"region": VectorField(image + 0.1, 0.1)},
        "proof=None": {"region": field, "proof": "x.json"},
    }.items():
        with pytest.raises(InvalidInputError, match=message):
            certify.verify(network, image, label=1, **given)
    with pytest.raises(InvalidTypeError, match="expected a VectorField"):
        inspect.unwrap(certify.verify)(network, image, label=1, region=0.1)
    with pytest.raises(InvalidTypeError, match="expected a Deformation"):
        inspect.unwrap(certify.certified_accuracy)(network, image[None], [1], region=field)
    with pytest.raises(InvalidInputError, match="expected images"):
        certify.certified_accuracy(nn.Linear(16, 2), image.reshape(1, 16), [1], region=Deformation(0.1))


def test_no_movement_is_the_image_itself():
    image = np.ones((4, 4)) * 0.7
    for gamma in (None, 0.0):
        region = VectorField(image, 0.0, gamma=gamma)
        verdict = certify.verify(Brightness(0.5), image, label=1, region=region, method=quick("auto"))
        assert verdict.status is certify.Status.VERIFIED
        assert verdict.worst_margin == pytest.approx(0.2, abs=1e-6)


def test_differences_and_their_adjoint():
    generator = seeded(50)
    field = torch.randn((2, 2, 4, 5), generator=generator, dtype=torch.float64)
    edges = OnEdges.of(torch.randn((2, 2, 4, 5), generator=generator, dtype=torch.float64))
    of_field = OnEdges.of(field)
    inner = (of_field.along * edges.along).sum() + (of_field.down * edges.down).sum()
    torch.testing.assert_close(inner, (field * edges.adjoint()).sum())


DIGITS = SHARED / "nets" / "digits_64_20_20_10_adv.npz"


@pytest.mark.slow
@pytest.mark.skipif(not DIGITS.exists(), reason=f"{DIGITS} is absent")
@pytest.mark.parametrize("k", range(3))
def test_bounds_of_digits_are_ordered(k):
    """8 x 8 pixels: IBP <= CROWN <= alpha-CROWN <= LP <= its program <= MILP <= every field that an attack finds."""
    stored, layers = np.load(DIGITS), [nn.Flatten()]
    for i in range(3):
        layer = nn.Linear(*stored[f"W{i}"].shape[::-1])
        layer.load_state_dict({"weight": torch.from_numpy(stored[f"W{i}"]), "bias": torch.from_numpy(stored[f"b{i}"])})
        layers += [layer, nn.ReLU()]
    network, image = nn.Sequential(*layers[:-1]).eval(), torch.from_numpy(load_digits().images[k] / 16.0)[None, None]
    margins = margins_of_labels(network(image[0].float()).argmax(1), 10)
    graph = place(graph_from_torch(network, input_shape=(8, 8)), image)
    deformation = Deformation(0.4, INF, 0.1)
    outer = deformation.canvas(image).outer
    found = []
    for name in ("ibp", "crown", "alpha-crown", "lp"):
        bounds = METHODS[name](graph, outer)
        found.append(METHODS[name].margins(graph, outer, bounds, margins)[0])
    rival = int(found[-1].argmin())
    ladder = [float(v[rival]) for v in found]
    question = Question(graph, outer, bounds)
    linear = linear_model(question, graph.output)
    objective, constant = (
        margins.rows[0, rival].double().numpy() @ linear.expressions[graph.output],
        float(margins.constants[0, rival]),
    )
    ladder.append(linear.minimise(objective).value + constant)
    ladder.append(MixedIntegerModel.of(question).minimise(objective, Deadline()).bound + constant)
    flows = deformation.flows(image).select([0] * 32)
    fields, lowest = flows.sample(seeded(90)), INF
    for step in range(40):
        fields = fields.detach().requires_grad_()
        points = deform(image.expand(32, -1, -1, -1), flows.fields(fields)).flatten(1)
        value = margins.select([0] * 32).of_outputs(graph(points))[:, rival]
        lowest = min(lowest, float(value.detach().min()))
        (gradient,) = torch.autograd.grad(value.sum(), fields)
        fields = flows.project(fields.detach() - 0.2 * 0.93**step * gradient.sign())
    ladder.append(lowest)
    for below, above in itertools.pairwise(ladder):
        assert below <= above + 1e-5
    assert ladder[-1] > ladder[0]


@pytest.mark.slow
def test_mixed_integer_programs_lie_between_their_linear_ones_and_fields():
    """HiGHS's claims on the programs with fields as variables: LP <= MILP <= every field; ours stay below fields."""
    network, image = small_networks()["dense"], torch.rand((1, 1, 6, 6), generator=seeded(60), dtype=torch.float64)
    graph = place(graph_from_torch(network, input_shape=(1, 6, 6)), image)
    margins = margins_of_labels(torch.tensor([1]), 3)
    for norm in NORMS:
        deformation = Deformation(0.5, norm, 0.1)
        outer = deformation.canvas(image).outer
        bounds = CROWN()(graph, outer)
        flows = deformation.flows(image).select([0] * 500)
        points = deform(image.expand(500, -1, -1, -1), flows.fields(flows.sample(seeded(61))))
        values = margins.select([0] * 500).of_outputs(graph(points)).amin(0)
        proved = CROWN().margins(graph, outer, bounds, margins)[0]
        question = Question(graph, outer, bounds)
        linear, mixed = linear_model(question, graph.output), MixedIntegerModel.of(question)
        for k in range(2):
            objective = margins.rows[0, k].numpy() @ linear.expressions[graph.output]
            loose = linear.minimise(objective)
            claim = mixed.minimise(objective, Deadline())
            assert loose.value <= claim.bound + 1e-5
            assert claim.bound <= values[k] + 1e-5
            assert proved[k] <= values[k]


SEARCH = certify.Plan("search", (certify.bounds.IBP(),), attack=None, complete=True, limit=60.0)


@pytest.mark.parametrize("method", ["milp", "lp", pytest.param(SEARCH, id="search", marks=pytest.mark.slow)])
def test_the_exact_end_answers_with_smooth_fields(method):
    network = small_networks()["dense"]
    image = torch.rand((6, 6), generator=seeded(62)).double()
    label = int(network(image[None].float()).argmax())
    region = VectorField(image.float().double(), 0.4, gamma=0.02)
    plan = quick(method) if isinstance(method, str) else method
    verdict = certify.verify(network, image.float(), label=label, region=region, method=plan)
    assert verdict.status is certify.Status.VERIFIED
    fields = region.sample(100)
    outputs = network(region.deform(fields).float())
    assert (outputs.argmax(1) == label).all()


def test_the_command_line_knows_fields(tmp_path, capsys):
    weight = torch.randn((3, 36), generator=seeded(64)).numpy()
    images = torch.rand((2, 1, 6, 6), generator=seeded(63)).numpy()
    nodes = [("Flatten", "x", {}), ("Gemm", "0 w b", {"transB": 1})]
    case = Case(("N", 1, 6, 6), nodes, {"w": weight, "b": np.zeros(3, np.float32)})
    (tmp_path / "net.onnx").write_bytes(case.model())
    np.savez(tmp_path / "data.npz", X=images, y=(images.reshape(2, 36) @ weight.T).argmax(1))
    files = ["accuracy", str(tmp_path / "net.onnx"), str(tmp_path / "data.npz")]
    assert main([*files, "--spatial", "--delta", "0.05", "--gamma", "0.01", "--norm", "l2", "--method", "ibp"]) == 0
    assert "vector fields of l2 length 0.05, gamma 0.01" in capsys.readouterr().out
    for wrong in (["--delta", "0.1"], ["--spatial"], ["--spatial", "--delta", "0.1", "--eps", "0.1"], []):
        assert main([*files, *wrong]) == 2
        assert "--spatial" in capsys.readouterr().err
    assert main([*files, "--spatial", "--delta", "-1"]) == 2
    assert "delta is -1" in capsys.readouterr().err
