"""Bounds on balls and boxes together, and what they rest on: proved norms and definiteness."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from certify_cases import CHAINS, REGIONS, centres, graph_of, mlp, randomised, regions_around, seeded
from certify_laws import margins_below_samples, never_looser, samples_stay_inside
from torch import nn

from certify import UnsupportedOp
from certify.bounds import CROWN, IBP, SDP, SDPCROWN, LipNaive
from certify.bounds.ball import Balls, Choice, Layer, evaluate, proved
from certify.bounds.definite import is_definite, squared_norm
from certify.bounds.dense import DenseNetwork
from certify.bounds.sdp_crown import ascend, balls_between
from certify.ir.from_torch import graph_from_torch
from certify.properties import margins_of_labels
from certify.regions import LpBall

CHEAP = [
    LipNaive(),
    SDPCROWN(boxes=False, steps_margins=15, steps_hidden=5),
    SDPCROWN(steps_margins=15, steps_hidden=5),
]
by_name = pytest.mark.parametrize("name", ["deep", "one-output", "linear", "relu-first", "relu-last"])
by_region = pytest.mark.parametrize("region_name", REGIONS)


def region_for(graph, region_name, seed, batch=3, eps=0.3):
    n = torch.Size(graph.input_shape).numel()
    return regions_around(centres(n, batch, seed), eps)[region_name]


def margins_for(graph, batch):
    n = graph.output_shape[0]
    return margins_of_labels(torch.arange(batch) % max(n, 2), n)


# --- definiteness and norms ---


@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_definite_matrices_are_proved_and_others_never(n):
    g = np.random.default_rng(n)
    B = g.integers(-9, 10, (n, n)).astype(float)
    gram = B @ B.T
    zero = np.zeros((n, n))
    least = np.linalg.eigvalsh(gram)[0]
    if least > 1e-6:
        assert is_definite(gram, zero)
        assert not is_definite(gram - 1.0001 * least * np.eye(n), zero)
        assert is_definite(gram, np.full((n, n), 0.4 * least / n))
        assert not is_definite(gram, np.full((n, n), 1.1 * least))  # gram - radius * ones may be indefinite
    thin = B[:, : n - 1]
    assert not is_definite(thin @ thin.T, zero)  # exactly singular
    assert not is_definite(-gram, zero)


def test_definiteness_does_not_depend_on_units():
    g = np.random.default_rng(0)
    B = g.standard_normal((12, 12))
    units = 10.0 ** g.uniform(-8, 8, 12)
    A = (B @ B.T + 0.1 * np.eye(12)) * units[:, None] * units
    assert is_definite(A, np.zeros_like(A))
    A[0, 0] = np.nan
    assert not is_definite(A, np.zeros_like(A))


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (7, 3), (30, 30), (20, 200)])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_norm_bounds_are_above_and_close(shape, size):
    W = size * np.random.default_rng(shape[0]).standard_normal(shape)
    true = np.linalg.norm(W, 2)
    assert (1 - 1e-14) * true <= squared_norm(W) ** 0.5 <= (1 + 1e-9) * true


def test_norm_bounds_of_known_matrices():
    assert squared_norm(np.zeros((3, 4))) == 0.0
    H = np.array([[1.0, 1.0], [1.0, -1.0]])
    claim = Fraction(squared_norm(np.kron(H, H)))  # H (x) H has all singular values 2
    assert 4 < claim < 4 + Fraction(1, 10**8)


# --- the lemma ---


def lemma_case(seed, *, n=5, with_box=True):
    """One layer z = W x + b on the unit ball around 0, with its ball, and its box where wanted."""
    g = seeded(seed)
    W, b = torch.randn((n, 3), generator=g).double(), 0.5 * torch.randn(n, generator=g).double()
    region = LpBall(torch.zeros(1, 3).double(), 1.0, "l2")
    network = DenseNetwork(((W.numpy(), b.numpy()),), (np.eye(n), np.zeros(n)), ())
    length = torch.linalg.vector_norm(W, dim=1)
    box = ((b - length)[None], (b + length)[None])
    return balls_between(network, region, [box], boxes_used=with_box), W, b, g


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("with_box", [True, False])
def test_any_slopes_and_multipliers_bound_all_points(seed, with_box):
    balls, W, b, g = lemma_case(seed, with_box=with_box)
    rows = torch.randn((1, 40, 5), generator=g).double()
    slopes = rows * torch.rand((1, 40, 5), generator=g) + 0.2 * torch.randn((1, 40, 5), generator=g)
    weights = torch.exp(2 * torch.randn((1, 40, 1), generator=g)).double()
    if with_box:
        weights[:, ::4] = 0.0
    bound = proved(balls, rows, Choice((slopes.double(),), (weights,)))[0]
    x = torch.randn((4000, 3), generator=g).double()
    x = x / torch.linalg.vector_norm(x, dim=1, keepdim=True) * torch.rand((4000, 1), generator=g) ** 0.3
    values = (x @ W.T + b).clamp(min=0) @ rows[0].T
    assert (values >= bound).all()


@pytest.mark.parametrize("seed", range(4))
def test_the_box_only_helps_and_rounding_costs_little(seed):
    boxed, *_, g = lemma_case(seed)
    plain, *_ = lemma_case(seed, with_box=False)
    rows = torch.randn((1, 30, 5), generator=g).double()
    choice = Choice((rows * 0.5,), (torch.full((1, 30, 1), 0.7).double(),))
    with_box, without = evaluate(boxed, rows, choice), evaluate(plain, rows, choice)
    assert (with_box >= without - 1e-12).all()
    assert (with_box > without + 1e-3).any()
    for balls, value in ((boxed, with_box), (plain, without)):
        down = proved(balls, rows, choice)
        assert (down <= value).all()
        assert (down >= value - 1e-10 * (1 + value.abs())).all()


def test_the_lemma_equals_its_closed_form():
    """Chiu et al.: h = -(lam (R^2 - |m|^2) + |phi|^2 / lam) / 2, phi = min(c - g - lam m, g + lam m, 0)."""
    middle, radius = torch.tensor([0.3, -0.2, 0.5, -1.0]).double(), 0.75
    c, g, lam = torch.tensor([1.0, -2.0, 0.5, 1.5]).double(), torch.tensor([0.4, -0.7, 0.6, 0.1]).double(), 1.25
    far = torch.full((1, 1, 4), torch.inf).double()
    layer = Layer(
        torch.eye(4).double(),
        torch.zeros(4).double(),
        middle[None, None],
        torch.full((1, 1, 1), radius).double(),
        -far,
        far,
    )
    balls = Balls((layer,), LpBall(middle[None], radius, "l2"))
    found = evaluate(balls, c[None, None], Choice((g[None, None],), (torch.full((1, 1, 1), lam).double(),))).item()
    phi = torch.minimum(torch.minimum(c - g - lam * middle, g + lam * middle), torch.zeros(4).double())
    h = -(lam * (radius**2 - middle.square().sum()) + phi.square().sum() / lam) / 2
    assert found == pytest.approx((g @ middle - radius * g.norm() + h).item(), abs=1e-12)


def test_ascent_reaches_the_exact_minimum_of_one_neuron():
    """min -relu(w.x + b) over the unit ball is -(|w| + b), min relu is 0 here."""
    region = LpBall(torch.zeros(1, 2).double(), 1.0, "l2")
    network = DenseNetwork(((np.array([[0.6, 0.8]]), np.array([0.5])),), (np.eye(1), np.zeros(1)), ())
    box = (torch.tensor([[-0.5]]).double(), torch.tensor([[1.5]]).double())
    balls = balls_between(network, region, [box])
    rows = torch.tensor([[[-1.0], [1.0]]]).double()
    with torch.no_grad():
        found = proved(balls, rows, ascend(balls, rows, 200).choice)[0]
    assert found.tolist() == pytest.approx([-1.5, 0.0], abs=2e-2)
    assert found[0] <= -1.5
    assert found[1] <= 0.0


# --- the methods ---


@pytest.mark.parametrize("method", CHEAP, ids=lambda m: m.name)
@by_region
@by_name
def test_bounds_and_margins_hold_at_samples(name, region_name, method):
    graph = graph_of(name)
    region = region_for(graph, region_name, seed=71)
    bounds, margins = method(graph, region), margins_for(graph, 3)
    samples_stay_inside(graph, region, bounds, seed=72, count=8)
    margins_below_samples(method, graph, region, margins, seed=73, count=8)
    loose = CROWN() if isinstance(method, SDPCROWN) else IBP()
    known = loose(graph, region)
    never_looser(bounds, known)
    lower = method.margins(graph, region, known, margins)
    assert (lower >= loose.margins(graph, region, known, margins)).all()


@pytest.mark.parametrize("method", CHEAP, ids=lambda m: m.name)
def test_margins_hold_at_attacked_points(method):
    """Gradient descent on every margin, from many starts, on balls where the boxes are far from tight."""
    graph = graph_from_torch(randomised(mlp(6, 30, 30, 4), 3), input_shape=(6,))
    region = LpBall(centres(6, 2, 5), 0.7, "l2")
    margins = margins_for(graph, 2)
    lower = method.margins(graph, region, method(graph, region), margins)
    points = torch.cat([region.sample(seeded(k)) for k in range(40)])
    wide = LpBall(region.centre.repeat(40, 1), 0.7, "l2")
    for t in range(3):
        x = points.clone()
        for _ in range(60):
            x.requires_grad_(True)
            value = torch.einsum("bo,bo->b", margins.rows[:, t].repeat(40, 1), graph(x))
            (gradient,) = torch.autograd.grad(value.sum(), x)
            x = wide.project(x.detach() - 0.1 * wide.ascent_direction(gradient))
        value = torch.einsum("bo,bo->b", margins.rows[:, t].repeat(40, 1), graph(x)).reshape(40, 2)
        assert (value.amin(0) >= lower[:, t]).all()
        if method.name == "sdp-crown":
            assert (lower[:, t] >= value.amin(0) - 3.0).all()  # in the right place too, not just low


def test_balls_are_tighter_than_boxes_alone_on_wide_layers():
    """The point of the lemma: on l2 balls CROWN loses a factor of the square root of the width."""
    graph = graph_from_torch(randomised(mlp(50, 80, 80, 3), 4), input_shape=(50,))
    region = LpBall(0.5 + 0 * centres(50, 4, 6), 0.5, "l2")
    margins, known = margins_for(graph, 4), CROWN()(graph, region)
    crown = CROWN().margins(graph, region, known, margins).mean()
    both = SDPCROWN().margins(graph, region, SDPCROWN()(graph, region), margins).mean()
    ball = SDPCROWN(boxes=False).margins(graph, region, known, margins).mean()
    assert both > ball > crown + 0.2


def test_a_convolution_is_bounded_through_its_matrix():
    net = randomised(nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2)), 1)
    conv = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)).double().eval()
    graph = graph_from_torch(conv, input_shape=(1, 3, 3))
    network = DenseNetwork.of(graph)
    x = torch.rand(5, 9, generator=seeded(2)).double()
    (W, b), (V, a) = network.hidden[0], network.output
    values = (x @ torch.tensor(W).T + torch.tensor(b)).clamp(min=0) @ torch.tensor(V).T + torch.tensor(a)
    torch.testing.assert_close(values, conv(x.reshape(5, 1, 3, 3)), rtol=1e-12, atol=1e-12)
    region = LpBall(x, 0.4, "l2")
    margins_below_samples(SDPCROWN(), graph, region, margins_for(graph, 5), seed=3)
    assert DenseNetwork.of(graph_from_torch(net, input_shape=(12,))).nodes == (1,)


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)) + x)


@pytest.mark.parametrize("method", CHAINS, ids=lambda m: m.name)
@pytest.mark.parametrize(
    ("net", "shape", "words"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2)), (3,), "Sigmoid"),
        (Skip(), (3,), "whose product would be rounded|skips a ReLU"),
        (
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(2, 2)),
            (1, 4, 4),
            "would be rounded",
        ),
    ],
)
def test_networks_that_are_no_exact_chain_are_named(net, shape, words, method):
    graph = graph_from_torch(net.eval(), input_shape=shape)
    region = LpBall(torch.zeros(1, torch.Size(shape).numel()).double(), 0.1, "l2")
    with pytest.raises(UnsupportedOp, match=words):
        method(graph, region)


def test_time_over_leaves_valid_bounds():
    graph = graph_of("deep")
    region = region_for(graph, "l2", seed=81)
    for method in (SDPCROWN(stop=lambda: True), SDP(stop=lambda: True)):
        margins_below_samples(method, graph, region, margins_for(graph, 3), seed=82)
