"""Boxes in training, the losses made from them, and their theory."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from certify_cases import centres, mlp, randomised, seeded
from torch import nn
from torch_cases import TORCH_CASES

from certify import CertifyError, InvalidInputError, UnsupportedOp, graph_from_torch, training, verify
from certify.bounds import CROWN, IBP, METHODS
from certify.ir.torch_rules import RULES as READ
from certify.properties import margins_of_labels
from certify.regions import Box
from certify.training.attacks import Attack
from certify.training.losses import LOSSES, box_around
from certify.training.rules import RULES

WHOLE = ()  # of a whole batch
EXPRESSIVE = [training.CCIBP(), training.MTLIBP(), training.ExpIBP()]


class Branches(nn.Module):
    """Shared values, sums of branches, constants, a view with a literal batch size."""

    def __init__(self):
        super().__init__()
        self.first, self.left, self.right = (
            nn.Conv2d(1, 3, 3, padding=1),
            nn.Conv2d(3, 2, 1),
            nn.Conv2d(3, 2, 3, padding=1),
        )
        self.last = nn.Linear(2 * 9, 4)

    def forward(self, x):
        shared = torch.relu(self.first(x) - 0.1)
        both = torch.relu(self.left(shared) + 2 * self.right(shared))
        pooled = nn.functional.avg_pool2d(both, 2)
        return self.last(pooled.view(x.size(0), -1)) / 1.5


def networks():
    conv = nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12, 8),
        nn.ReLU(),
        nn.Linear(8, 4),
    )
    return {
        "dense": (mlp(6, 9, 8, 4), (6,)),
        "one score": (mlp(6, 9, 1), (6,)),
        "batch norm": (randomised(conv, 3), (1, 6, 6)),
        "branches": (randomised(Branches(), 4), (1, 6, 6)),
        "tanh": (randomised(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), 5), (6,)),
    }


NETWORKS = {name: (network.double().eval(), shape) for name, (network, shape) in networks().items()}
by_network = pytest.mark.parametrize("name", NETWORKS)


def batch_for(network, shape, count=7, seed=0):
    x = torch.rand((count, *shape), generator=seeded(seed), dtype=torch.float64)
    classes = network(x).shape[1]
    return x, torch.randint(0, max(2, classes), (count,), generator=seeded(seed + 1))


# ---- boxes


def test_every_function_that_verify_reads_has_a_rule():
    assert set(READ) == set(RULES)


@pytest.mark.parametrize("name", TORCH_CASES)
def test_boxes_contain_outputs(name):
    module, shape = TORCH_CASES[name]
    module = copy.deepcopy(module).double()
    centre = centres(math.prod(shape), 3, 7).double().reshape(3, *shape)
    radius = 0.3 * torch.rand(centre.shape, generator=seeded(8), dtype=torch.float64)
    if name in WHOLE:
        with pytest.raises(UnsupportedOp, match="amax"):
            training.enclose(module, centre, radius)
        return
    enclosure = training.enclose(module, centre, radius, centre + radius)
    for seed in range(20):
        step = (2 * torch.rand(centre.shape, generator=seeded(seed), dtype=torch.float64) - 1).sign() ** (seed % 2)
        step = step * torch.rand(centre.shape, generator=seeded(seed + 50), dtype=torch.float64)
        inside = module((centre + radius * step).clone())
        assert bool((inside >= enclosure.lower - 1e-9).all() and (inside <= enclosure.upper + 1e-9).all())
    torch.testing.assert_close(enclosure.points, module((centre + radius).clone()))


@by_network
@pytest.mark.parametrize("method", ["ibp", "crown-ibp"])
def test_bounds_are_those_of_the_ladder(name, method):
    """Two programs that share no code. The ladder keeps the better of the substituted bound and the interval."""
    network, shape = NETWORKS[name]
    x, y = batch_for(network, shape)
    graph = graph_from_torch(network, input_shape=shape, simplified=False)
    region = Box((x - 0.07).flatten(1), (x + 0.07).flatten(1))
    margins = margins_of_labels(y, graph.output_shape[0])
    checked = IBP() if method == "ibp" else CROWN(hidden=False)
    expected = checked.margins(graph, region, checked(graph, region), margins)
    output = training.enclose(network, x, torch.full_like(x, 0.07))
    bounds = training.margin_bounds(output, y)
    if method == "crown-ibp":
        bounds = torch.maximum(bounds, training.backward_margin_bounds(output, y))
        if name == "tanh":
            assert bool((bounds <= expected + 1e-9).all())  # intervals stand for tanh
            return
    torch.testing.assert_close(bounds, expected, rtol=1e-9, atol=1e-9)


def test_a_box_without_width_is_a_point():
    for network, shape in NETWORKS.values():
        x, y = batch_for(network, shape)
        output = training.enclose(network, x, torch.zeros_like(x))
        exact = training.margins_of(network(x), y)
        torch.testing.assert_close(training.margin_bounds(output, y), exact)
        torch.testing.assert_close(training.backward_margin_bounds(output, y), exact)


def test_batch_norm_takes_the_statistics_of_the_points():
    network, shape = copy.deepcopy(NETWORKS["batch norm"][0]).train(), (1, 6, 6)
    twin = copy.deepcopy(network)
    x, _ = batch_for(twin.eval(), shape)
    points = x + 0.1
    output = training.enclose(network, x, torch.full_like(x, 0.2), points)
    expected = twin.train()(points)
    torch.testing.assert_close(output.points, expected)
    for name, buffer in network.named_buffers():
        torch.testing.assert_close(buffer, twin.get_buffer(name))
    # The same map, with the statistics of the points fixed, stays inside.
    fixed = copy.deepcopy(network)
    hidden = network[0](points)
    fixed[1].running_mean, fixed[1].running_var = (
        hidden.mean((0, 2, 3)).detach(),
        hidden.var((0, 2, 3), unbiased=False).detach(),
    )
    for seed in range(20):
        inside = fixed.eval()(x + 0.2 * (2 * torch.rand(x.shape, generator=seeded(seed), dtype=torch.float64) - 1))
        assert bool((inside >= output.lower - 1e-9).all() and (inside <= output.upper + 1e-9).all())


def test_dropout_drops_the_same_of_box_and_points():
    network = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Dropout(0.5)).double().train()
    x = torch.rand((5, 6), generator=seeded(0), dtype=torch.float64)
    output = training.enclose(network, x, torch.full_like(x, 0.1), x + 0.1)
    dropped = output.points == 0
    assert 0.2 < dropped.double().mean() < 0.95
    assert bool((output.lower <= output.points + 1e-12).all() and (output.points <= output.upper + 1e-12).all())


# ---- attacks


@by_network
def test_attacks_stay_inside_and_raise_the_loss(name):
    network, shape = NETWORKS[name]
    x, y = batch_for(network, shape)
    centre, radius = box_around(x, 0.2, (0.0, 1.0))
    torch.manual_seed(0)
    points = Attack(steps=10)(network, y, centre, radius)
    assert bool(
        ((points - centre).abs() <= radius + 1e-12).all() and (points >= -1e-12).all() and (points <= 1 + 1e-12).all()
    )
    losses = [training.log_losses(training.margins_of(network(v), y)).sum() for v in (points, x)]
    assert losses[0] > losses[1]


def test_attacks_leave_no_trace():
    network = copy.deepcopy(NETWORKS["batch norm"][0]).train()
    before = copy.deepcopy(network.state_dict())
    x, y = batch_for(copy.deepcopy(network).eval(), (1, 6, 6))
    training.PGD(network, y, x, torch.full_like(x, 0.1))
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert network.training
    assert all(p.grad is None for p in network.parameters())


# ---- losses


@by_network
@pytest.mark.parametrize("loss", EXPRESSIVE, ids=lambda v: v.name)
def test_expressive_losses_are_between_their_ends(name, loss):
    """L_adv <= CC <= MTL, L_adv <= Exp <= MTL, and each rises with alpha (De Palma et al. 2024)."""
    network, shape = NETWORKS[name]
    x, y = batch_for(network, shape)

    def value(loss, alpha):
        torch.manual_seed(0)
        return float(loss(network, x, y, 0.1, alpha).detach())

    torch.manual_seed(0)
    attacked = float(training.Adversarial(training.FGSM)(network, x, y, 0.1).detach())
    proved = float(training.IBP()(network, x, y, 0.1).detach())
    values = [value(loss, alpha) for alpha in (0.0, 0.1, 0.4, 0.7, 1.0)]
    assert attacked < proved
    assert values[0] == pytest.approx(attacked, rel=1e-12)
    assert values[-1] == pytest.approx(proved, rel=1e-12)
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(values))
    for alpha in (0.1, 0.4, 0.7):
        assert attacked - 1e-12 <= value(loss, alpha) <= value(training.MTLIBP(), alpha) + 1e-12


@by_network
def test_sabr_goes_from_attack_to_intervals(name):
    network, shape = NETWORKS[name]
    x, y = batch_for(network, shape)
    torch.manual_seed(0)
    attacked = float(training.Adversarial()(network, x, y, 0.1, domain=(0, 1)).detach())
    values = []
    for alpha in (0.0, 0.3, 1.0):
        torch.manual_seed(0)
        values.append(float(training.SABR()(network, x, y, 0.1, alpha, domain=(0, 1)).detach()))
    assert values[0] == pytest.approx(attacked, rel=1e-12)
    assert values[2] == pytest.approx(float(training.IBP()(network, x, y, 0.1, domain=(0, 1)).detach()), rel=1e-12)
    assert values[0] < values[1] < values[2]


@by_network
@pytest.mark.parametrize("method", LOSSES)
def test_at_radius_zero_all_are_the_cross_entropy(name, method):
    network, shape = NETWORKS[name]
    x, y = batch_for(network, shape)
    scores = network(x)
    if scores.shape[1] == 1:
        scores = torch.cat([torch.zeros_like(scores), scores], dim=1)
    expected = nn.functional.cross_entropy(scores, y)
    torch.testing.assert_close(LOSSES[method](network, x, y, 0.0, 0.3), expected)


@by_network
@pytest.mark.parametrize("method", [m for m in LOSSES if m not in ("pgd", "fgsm", "sabr")])
def test_gradients_are_those_of_finite_differences(name, method):
    """Of losses whose attacked inputs do not move with the weights."""
    network, shape = NETWORKS[name]
    network = copy.deepcopy(network)
    loss = LOSSES[method]
    if hasattr(loss, "attack"):
        loss = type(loss)(Attack(steps=0))
    x, y = batch_for(network, shape)

    def value():
        torch.manual_seed(0)
        return loss(network, x, y, 0.03, 0.4)

    gradients = torch.autograd.grad(value(), list(network.parameters()))
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        direction = torch.randn(parameter.shape, generator=seeded(3), dtype=torch.float64)
        with torch.no_grad():
            parameter += 1e-6 * direction
            above = value()
            parameter -= 2e-6 * direction
            below = value()
            parameter += 1e-6 * direction
        assert float((above - below) / 2e-6) == pytest.approx(float((gradient * direction).sum()), rel=2e-4, abs=1e-7)


def test_domains_cut_the_box():
    x = torch.tensor([[0.0, 0.5, 0.95]], dtype=torch.float64)
    centre, radius = box_around(x, 0.1, (0, 1))
    torch.testing.assert_close(centre - radius, torch.tensor([[0.0, 0.4, 0.85]], dtype=torch.float64))
    torch.testing.assert_close(centre + radius, torch.tensor([[0.1, 0.6, 1.0]], dtype=torch.float64))


def test_large_margins_give_finite_exponential_losses():
    margins = torch.tensor([[800.0], [-800.0]], dtype=torch.float64, requires_grad=True)
    value = training.ExpIBP().combine(margins, margins - 50, 0.3).sum()
    value.backward()
    assert bool(torch.isfinite(value) & torch.isfinite(margins.grad).all())


# ---- what helps them


def test_initial_weights_double_the_radius_of_every_layer():
    torch.manual_seed(0)
    layer = training.initialise(nn.Sequential(nn.Conv2d(16, 64, 5)))[0]
    assert float(layer.weight.detach().abs().flatten(1).sum(1).mean()) == pytest.approx(2, rel=0.03)
    assert not layer.bias.any()


@torch.no_grad()
def test_stability_is_zero_for_even_layers_and_positive_for_dead_ones():
    even = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU()).double()
    even[0].weight.copy_(torch.diag(torch.tensor([1.0, -1.0, 1.0, -1.0])))
    x = torch.tensor([[0.2, 0.2, 0.9, 0.9]], dtype=torch.float64)
    assert float(training.stability(training.enclose(even, x, torch.full_like(x, 0.1)))) == 0
    wide = copy.deepcopy(even)
    wide[0].weight *= 4  # the width grows by 4: 1/2 - 1/4, over 1/2
    assert float(training.stability(training.enclose(wide, x, torch.full_like(x, 0.1)))) == pytest.approx(0.5)
    dead = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).double()
    dead[0].weight.copy_(torch.eye(4))
    dead[0].bias.fill_(-5.0)
    assert float(training.stability(training.enclose(dead, x, torch.full_like(x, 0.1)))) == pytest.approx(2)


@torch.no_grad()
def test_contrast_makes_points_of_boxes_on_one_side():
    layer = training.Contrast(0.4, 0.6)
    x = torch.tensor([[0.0, 0.1, 0.9, 1.0, 0.35, 0.5, 0.62]], dtype=torch.float64)
    box = training.enclose(layer, x, torch.full_like(x, 0.3))
    torch.testing.assert_close(box.lower, torch.tensor([[0, 0, 1, 1, 0, 0, 0]], dtype=torch.float64))
    torch.testing.assert_close(box.upper, torch.tensor([[0, 0, 1, 1, 1, 1, 1]], dtype=torch.float64))
    torch.testing.assert_close(layer(x)[0, 4:], torch.tensor([0, 0.5, 1], dtype=torch.float64))

    # What follows sees no more of the rest than that: `verify` proves a larger margin by intervals.
    sums = nn.Linear(7, 2).double()
    sums.weight.copy_(torch.tensor([[0, 0, 1.0, 1.0, 0, 0, 0], [1.0, 1.0, 0, 0, 0, 0, 0]]))
    sums.bias.zero_()
    networks = (sums, nn.Sequential(layer, sums))
    margins = [verify(n, x[0], label=0, eps=0.3, method="ibp").worst_margin for n in networks]
    assert margins == pytest.approx([0.6, 2])


@pytest.mark.parametrize("limits", [(0.6, 0.4), (0.5, 0.5), (math.nan, 1), (0, math.inf)])
def test_limits_of_contrast_are_in_order(limits):
    with pytest.raises(InvalidInputError, match="the lower one first"):
        training.Contrast(*limits)


@torch.no_grad()
def test_l1_norm_leaves_biases_out():
    network = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(8, 3)).double()
    for p in network.parameters():
        p.fill_(-0.5)
    assert float(training.l1_norm(network)) == pytest.approx(0.5 * (8 + 24))


@pytest.mark.parametrize(
    "ramp", [training.Ramp(0.3, 1.0, 4.0), training.Ramp(0.1, 0.0, 2.0, start=0.9), training.Ramp(0.2)]
)
def test_ramps_move_one_way_between_their_ends(ramp):
    values = [ramp(t) for t in np.linspace(0, 8, 200)]
    low, high = sorted((ramp.start, ramp.end))
    assert all(low <= v <= high for v in values)
    steps = np.diff(values)
    assert (steps >= -1e-12).all() if ramp.end > ramp.start else (steps <= 1e-12).all()
    assert values[-1] == ramp.end


# ---- bad input


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eps": -0.1}, "eps is -0.1"),
        ({"eps": math.nan}, "eps is nan"),
        ({"alpha": 1.2}, "alpha is 1.2"),
        ({"y": torch.tensor([0, 9])}, "labels go from 0 to 9"),
        ({"y": torch.tensor([0.0, 1.0])}, "class number"),
        ({"y": torch.tensor([0])}, "class number"),
        ({"x": torch.full((2, 6), 3.0, dtype=torch.float64), "domain": (0, 1)}, "outside the domain"),
        ({"x": torch.zeros((2, 6), dtype=torch.long)}, "no tensors of real numbers"),
    ],
)
def test_bad_batches_are_refused(changes, words):
    network = NETWORKS["dense"][0]
    given = {"x": torch.rand((2, 6), dtype=torch.float64), "y": torch.tensor([0, 1]), "eps": 0.1, "alpha": 0.5}
    with pytest.raises(CertifyError, match=words):
        training.MTLIBP()(network, **(given | changes))


def test_operations_without_bounds_are_named():
    class Softmax(nn.Module):
        def forward(self, x):
            return torch.softmax(x, 1)

    x = torch.rand(2, 3)
    with pytest.raises(UnsupportedOp, match="softmax"):
        training.IBP()(nn.Sequential(nn.Linear(3, 3), Softmax()), x, torch.tensor([0, 1]), 0.1)
    with pytest.raises(UnsupportedOp, match="the other factor depends on the input"):
        training.IBP()(Squared(), x, torch.tensor([0, 1]), 0.1)
    with pytest.raises(InvalidInputError, match="a row of scores"):
        training.IBP()(nn.Sequential(nn.Unflatten(1, (3, 1))), x, torch.tensor([0, 1]), 0.1)


class Squared(nn.Module):
    def forward(self, x):
        return x * x


def test_methods_have_the_ladder_s_names_where_they_are_its_bounds():
    assert {"ibp", "crown-ibp"} <= set(METHODS) & set(LOSSES)
