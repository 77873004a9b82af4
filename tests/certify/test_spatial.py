"""Vector fields: interpolation, intervals, planes, smooth fields, the dual bound, and what is verified with them.

The references are grids, samples, scipy and cvxpy; none of them shares code with the package beyond `deform`, which
is checked against its definition first.
"""

import inspect
import itertools
from dataclasses import replace
from fractions import Fraction

import highspy
import numpy as np
import pytest
import torch
from certify_cases import seeded
from onnx_cases import Case
from scipy.optimize import linprog
from shared_data import SHARED
from sklearn.datasets import load_digits
from torch import nn

import certify
from certify.bounds import CROWN, METHODS, AlphaCROWN, TriangleLP
from certify.bounds.base import Bounds, place
from certify.bounds.flow_rows import add_flow_rows
from certify.bounds.linear_model import Question, linear_model
from certify.cli import main
from certify.errors import InvalidInputError, InvalidTypeError
from certify.ir.from_torch import graph_from_torch
from certify.properties import margins_of_labels
from certify.regions.spatial import Deformation, VectorField
from certify.regions.spatial.ball import Ball
from certify.regions.spatial.bilinear import deform, patches
from certify.regions.spatial.deformations import Deformations, pixel_box
from certify.regions.spatial.edges import OnEdges
from certify.regions.spatial.planes import planes_below
from certify.regions.spatial.vector_field import image_of
from certify.search import Deadline
from certify.search.milp import MixedIntegerModel
from certify.setup import plan_of

INF = float("inf")
NORMS = (1.0, 2.0, INF)
DELTAS = (0.3, 1.0, 1.4, 2.6)
by_norm = pytest.mark.parametrize("norm", NORMS)
by_delta = pytest.mark.parametrize("delta", DELTAS)


def random_images(count, channels, height, width, seed):
    """Half of the channels black and white, as digits nearly are."""
    images = torch.rand((count, channels, height, width), generator=seeded(seed), dtype=torch.float64)
    images[:, ::2] = (images[:, ::2] > 0.5).double()
    return images


def inside(delta, norm, count, seed):
    """Vectors of the disc, a third of them on its rim."""
    generator = seeded(seed)
    vectors = (2 * torch.rand((count, 2), generator=generator, dtype=torch.float64) - 1) * delta
    length = torch.linalg.vector_norm(vectors, norm, dim=1)
    push = (length > delta) | (torch.rand(count, generator=generator) < 0.3)
    vectors = torch.where(push[:, None], vectors * (delta / length)[:, None], vectors)
    return vectors * (1 - 1e-15)


def constant_fields(vectors, height, width):
    return vectors[:, :, None, None].expand(-1, 2, height, width)


def interpolated(image, x, y):
    """I(x, y) of one channel by the definition of the source, pixel values by a rule."""
    height, width = image.shape
    x, y = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
    total = 0.0
    for column in range(width):
        for row in range(height):
            total += float(image[row, column]) * max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row))
    return total


def test_the_deformed_image_is_the_interpolation_at_the_moved_pixels():
    image = torch.rand((1, 2, 4, 5), generator=seeded(0), dtype=torch.float64)
    field = 3 * torch.randn((1, 2, 4, 5), generator=seeded(1), dtype=torch.float64)
    moved = deform(image, field)
    for row in range(4):
        for column in range(5):
            x, y = column + float(field[0, 0, row, column]), row + float(field[0, 1, row, column])
            for channel in range(2):
                assert float(moved[0, channel, row, column]) == pytest.approx(
                    interpolated(image[0, channel], x, y), abs=1e-12
                )


def test_whole_pixels_are_shifts_and_no_field_is_the_image():
    image = torch.rand((1, 1, 5, 6), generator=seeded(2), dtype=torch.float64)
    right = constant_fields(torch.tensor([[1.0, 0.0]]).double(), 5, 6)
    down = constant_fields(torch.tensor([[0.0, 1.0]]).double(), 5, 6)
    torch.testing.assert_close(deform(image, right)[..., :-1], image[..., 1:])
    torch.testing.assert_close(deform(image, down)[..., :-1, :], image[..., 1:, :])
    torch.testing.assert_close(deform(image, 0 * right), image)


def test_derivatives_of_the_deformed_image():
    image = torch.rand((1, 2, 4, 4), generator=seeded(3), dtype=torch.float64, requires_grad=True)
    field = (0.9 * torch.rand((1, 2, 4, 4), generator=seeded(4), dtype=torch.float64) + 0.02).requires_grad_()
    assert torch.autograd.gradcheck(deform, (image, field))


def least_by_search(values, ball):
    """The least interpolated value over a disc by a dense grid and local refinement, for one patch."""
    side, reach = 2 * ball.reach + 1, ball.reach
    patch = values.reshape(side, side).numpy()

    def value(vectors):
        x, y = np.clip(vectors, -reach, reach).T + reach
        left, top = np.minimum(np.floor(x), side - 2).astype(int), np.minimum(np.floor(y), side - 2).astype(int)
        s, t = x - left, y - top
        return (1 - s) * ((1 - t) * patch[top, left] + t * patch[top + 1, left]) + s * (
            (1 - t) * patch[top, left + 1] + t * patch[top + 1, left + 1]
        )

    def into(vectors):
        length = np.linalg.norm(vectors, ball.order, axis=1, keepdims=True)
        return vectors * np.minimum(1, ball.delta / np.maximum(length, 1e-300))

    line = np.linspace(-ball.delta, ball.delta, 101)
    grid = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    angle = np.linspace(0, 2 * np.pi, 2001)
    rim = np.stack([np.cos(angle), np.sin(angle)], 1)
    rim *= ball.delta / np.linalg.norm(rim, ball.order, axis=1, keepdims=True)
    whole = [(i, j) for i in range(-reach, reach + 1) for j in range(-reach, reach + 1)]
    points = np.concatenate([into(grid), rim, into(np.array(whole, dtype=float))])
    best, size = points[value(points).argsort()[:20]], 0.1 * ball.delta
    generator = np.random.default_rng(0)
    while size > 1e-9:  # a cloud around the best points, that shrinks
        cloud = (best[:, None] + size * generator.uniform(-1, 1, (1, 60, 2))).reshape(-1, 2)
        # The rim itself: pushed out, and along it.
        outward = cloud * (ball.delta / np.maximum(np.linalg.norm(cloud, ball.order, axis=1, keepdims=True), 1e-300))
        cloud = np.concatenate([best, into(cloud), outward])
        best, size = cloud[value(cloud).argsort()[:20]], size * 0.6
    return float(value(best).min())


@by_norm
@by_delta
def test_intervals_are_those_of_a_search(norm, delta):
    ball = Ball(delta, norm)
    around = patches(random_images(1, 2, 5, 5, 5), ball.reach)
    least, most = ball.extremes(around)
    generator = seeded(6)
    for _ in range(6):
        c, i, j = (int(torch.randint(0, n, (), generator=generator)) for n in (2, 5, 5))
        patch = around[0, c, i, j]
        assert -1e-11 < least_by_search(patch, ball) - float(least[0, c, i, j]) < 1e-9
        assert -1e-11 < float(most[0, c, i, j]) + least_by_search(-patch, ball) < 1e-9


@by_norm
def test_bilinear_forms_with_inner_stationary_points_on_the_rim(norm):
    """Saddles and products, whose least value is in the middle of a slanted piece of the rim."""
    for seed in range(5):
        corners = torch.randn(9, generator=seeded(100 + seed), dtype=torch.float64)
        corners[[2, 6]] -= 3.0
        for delta in (0.4, 0.9, 1.0):
            ball = Ball(delta, norm)
            assert float(ball.least(corners)) == pytest.approx(least_by_search(corners, ball), abs=1e-9)


@by_norm
@pytest.mark.parametrize("delta", [0.4, 0.9, 1.0, 1.7])
def test_no_point_of_the_rim_is_below_the_least(norm, delta):
    """Thousands of patches on thousands of points of the rim; between these F rises by little."""
    ball = Ball(delta, norm)
    patch = torch.randn((3000, (2 * ball.reach + 1) ** 2), generator=seeded(102), dtype=torch.float64)
    angle = np.linspace(0, 2 * np.pi, 1501)
    rim = np.stack([np.cos(angle), np.sin(angle)], 1)
    rim *= delta / np.linalg.norm(rim, norm, axis=1, keepdims=True)
    lowest = (patch @ torch.from_numpy(ball.weights(rim))).amin(1)
    inner = (patch @ torch.from_numpy(ball.weights(ball.points))).amin(1)
    least = ball.least(patch)
    assert (least <= torch.minimum(lowest, inner) + 1e-13).all()
    assert (least >= torch.minimum(lowest, inner) - 1e-4).all()


def exact_value(patch, x, y, reach):
    """The interpolation at a point in rational numbers."""
    column, row = (min(int(np.floor(v)), reach - 1) for v in (x, y))
    s, t, side = x - column, y - row, 2 * reach + 1
    corner = [[patch[(row + reach + j) * side + column + reach + i] for i in (0, 1)] for j in (0, 1)]
    above, below = ((1 - s) * left + s * right for left, right in corner)
    return (1 - t) * above + t * below


@by_norm
def test_the_least_value_is_rounded_down(norm):
    """Points of the disc with rational coordinates, in exact arithmetic: none is below, not by a roundoff."""
    delta = 0.3
    ball = Ball(delta, norm)
    patch = torch.randn((150, 9), generator=seeded(103), dtype=torch.float64)
    least, d = ball.least(patch).tolist(), Fraction(delta)
    points = [(d, 0), (-d, 0), (0, d), (0, -d), (0, 0)]
    points += [(x * d, y * d) for x in (-1, 1) for y in (-1, 1)] if norm == INF else []
    tight = 0
    for low, row in zip(least, patch.tolist(), strict=True):
        exact = [Fraction(v) for v in row]
        value = min(exact_value(exact, Fraction(x), Fraction(y), 1) for x, y in points)
        assert Fraction(low) <= value
        tight += value - Fraction(low) < Fraction(1, 10**10)
    assert tight > 20


def test_the_least_of_x_times_y_on_a_disc():
    """-delta^2 / 2 on the circle, -delta^2 / 4 on the diamond, -delta^2 on the square."""
    product = torch.tensor([[1.0, 0, -1], [0, 0, 0], [-1, 0, 1]]).double().flatten()
    for norm, share in ((2.0, 1 / 2), (1.0, 1 / 4), (INF, 1.0)):
        assert float(Ball(0.8, norm).least(product)) == pytest.approx(-share * 0.64, abs=1e-12)


@pytest.mark.slow
@by_norm
@pytest.mark.parametrize("delta", [0.1, 0.2, 0.5, 1.5])
def test_intervals_on_digits(norm, delta):
    path = SHARED / "data" / "mnist.npz"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    images = torch.from_numpy(np.load(path)["x_test"][:3]).double()[:, None] / 255
    ball = Ball(delta, norm)
    around = patches(images, ball.reach)
    least, most = ball.extremes(around)
    busy = (around.amax(-1) > around.amin(-1)).nonzero()
    for index in busy[torch.randperm(len(busy), generator=seeded(7))[:60]]:
        patch = around[tuple(index)]
        assert -1e-11 < least_by_search(patch, ball) - float(least[tuple(index)]) < 1e-9
        assert -1e-11 < float(most[tuple(index)]) + least_by_search(-patch, ball) < 1e-9


def check_planes(images, delta, norm, count, seed):
    ball = Ball(delta, norm)
    around, (_, _, height, width) = patches(images, ball.reach), images.shape
    below, above = planes_below(ball, around), planes_below(ball, -around)
    for vectors in inside(delta, norm, count, seed).split(20_000):
        moved = deform(images.expand(len(vectors), -1, -1, -1), constant_fields(vectors, height, width))
        for sign, (height_at, slope) in ((1, below), (-1, above)):
            plane = height_at + torch.einsum("bchwk,nk->nchw", slope, vectors)
            assert (plane <= sign * moved + 1e-15).all()


@by_norm
@by_delta
def test_planes_hold_on_samples(norm, delta):
    check_planes(random_images(1, 2, 5, 6, 8), delta, norm, 4000, 9)


@by_norm
def test_planes_of_a_region_hold_on_both_sides(norm):
    region = VectorField(random_images(1, 2, 5, 6, 80)[0], 0.7, norm, 0.2)
    fields = region.sample(300)
    moved = region.deform(fields)
    (low, up), (high, down) = region.planes()
    gap = 0.0
    for sign, height, slope in ((1, low, up), (-1, high, down)):
        plane = height + slope[..., 0] * fields[:, None, 0] + slope[..., 1] * fields[:, None, 1]
        assert (sign * (moved - plane) >= -1e-14).all()
        gap += float((sign * (moved - plane)).mean())
    lower, upper = region.intervals()
    assert gap < float((upper - lower).mean())


@pytest.mark.slow
@by_norm
@pytest.mark.parametrize("delta", [0.3, 0.5, 1.4])
def test_planes_hold_on_a_million_samples(norm, delta):
    check_planes(random_images(1, 2, 6, 6, 10), delta, norm, 1_000_000, 11)


@by_norm
@by_delta
def test_planes_are_highest_in_the_middle_and_not_below_those_of_the_square(norm, delta):
    """The least total gap is the highest plane at 0: an LP over dense points of the disc bounds it from above."""
    ball, square = Ball(delta, norm), Ball(delta, INF)
    around = patches(random_images(1, 2, 4, 4, 12), ball.reach)
    height, _ = planes_below(ball, around)
    assert (height >= planes_below(square, around)[0] - 1e-12).all()
    points = np.concatenate([ball.points, inside(delta, norm, 3000, 13).numpy()])
    values = around.reshape(-1, around.shape[-1]).numpy() @ ball.weights(points)
    for k in range(0, len(values), 5):
        best = linprog(
            [-1, 0, 0], np.column_stack([np.ones(len(points)), points]), values[k], bounds=[(None, None)] * 3
        )
        slack = 1e-9 if norm == INF else 0.02 * delta
        assert -best.fun - slack <= height.flatten()[k] <= -best.fun + 1e-3


@by_norm
@pytest.mark.parametrize("gamma", [None, 0.4, 0.1, 0.0])
def test_fields_are_sampled_projected_and_pulled_inside(norm, gamma):
    flows = Deformation(0.7, norm, gamma).flows(torch.zeros((4, 1, 5, 6)).double())
    generator = seeded(14)
    for _ in range(5):
        points = flows.sample(generator)
        assert flows.contains(points).all()
        torch.testing.assert_close(flows.project(points), points, atol=1e-9, rtol=1e-9)
        assert flows.contains(flows.minimiser(points)).all()
        assert not flows.contains(points + 3).any()
        uneven = torch.zeros((4, 2, 5, 6), dtype=torch.float64)
        uneven[:, 1, ::2, ::2] = 0.6
        assert flows.contains(uneven.flatten(1)).all() == (gamma is None)


@by_norm
@pytest.mark.parametrize("gamma", [0.3, 0.1])
def test_projection_is_the_solver_s(norm, gamma):
    import cvxpy as cp

    flows = Deformation(0.6, norm, gamma).flows(torch.zeros((1, 1, 4, 4)).double())
    point = torch.randn((1, 32), generator=seeded(15), dtype=torch.float64)
    v = [cp.Variable((4, 4)) for _ in range(2)]
    rules = [cp.abs(c[1:] - c[:-1]) <= gamma for c in v] + [cp.abs(c[:, 1:] - c[:, :-1]) <= gamma for c in v]
    rules += [cp.norm(cp.hstack([v[0][i, j], v[1][i, j]]), norm) <= 0.6 for i in range(4) for j in range(4)]
    wanted = flows.fields(point)[0].numpy()
    problem = cp.Problem(cp.Minimize(sum(cp.sum_squares(c - w) for c, w in zip(v, wanted, strict=True))), rules)
    problem.solve(solver=cp.CLARABEL)
    ours = float((flows.project(point) - point).square().sum())
    assert problem.value - 1e-6 <= ours <= 1.05 * problem.value


@by_norm
def test_minimum_over_fields_is_near_the_solver_s_and_below(norm):
    import cvxpy as cp

    flows = Deformation(0.6, norm, 0.2).flows(torch.zeros((1, 1, 4, 5)).double())
    rows = torch.randn((1, 3, 40), generator=seeded(16), dtype=torch.float64)
    bound = flows.minimum(rows)
    for k in range(3):
        v = [cp.Variable((4, 5)) for _ in range(2)]
        rules = [cp.abs(c[1:] - c[:-1]) <= 0.2 for c in v] + [cp.abs(c[:, 1:] - c[:, :-1]) <= 0.2 for c in v]
        rules += [cp.norm(cp.hstack([v[0][i, j], v[1][i, j]]), norm) <= 0.6 for i in range(4) for j in range(5)]
        row = flows.fields(rows[0, k : k + 1])[0].numpy()
        problem = cp.Problem(cp.Minimize(sum(cp.sum(cp.multiply(w, c)) for w, c in zip(row, v, strict=True))), rules)
        problem.solve(solver=cp.CLARABEL)
        assert problem.value * 1.05 <= float(bound[0, k]) <= problem.value + 1e-7
        at = float(flows.minimiser(rows[:, k]) @ rows[0, k])
        assert problem.value - 1e-7 <= at <= 0.15 * problem.value


def envelope_value(images, ball, gamma, row):
    """The dual's limit for t = inf: the coupled minimum with every pixel in the convex hull of its graph, by HiGHS."""
    _, channels, height, width = images.shape
    n, points = height * width, ball.points
    values = torch.einsum("chw,chwn->hwn", row.reshape(channels, height, width), patches(images, ball.reach)[0])
    costs = values.reshape(n, -1).numpy() @ ball.weights(points)
    k = len(points)
    index, rows = np.arange(n).reshape(height, width), []
    pairs = [*zip(index[:, :-1].ravel(), index[:, 1:].ravel(), strict=True)]
    pairs += [*zip(index[:-1].ravel(), index[1:].ravel(), strict=True)]
    for p, q in pairs:
        for axis in (0, 1):
            entry = np.zeros(n * k)
            entry[p * k : (p + 1) * k], entry[q * k : (q + 1) * k] = -points[:, axis], points[:, axis]
            rows += [entry, -entry]
    result = linprog(
        costs.ravel(), np.array(rows), np.full(len(rows), gamma), np.kron(np.eye(n), np.ones(k)), np.ones(n)
    )
    assert result.status == 0
    return result.fun


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("gamma", [0.5, 0.2, 0.05, 0.0])
def test_the_dual_bound_is_below_its_linear_program_and_near_it(channels, gamma):
    images, ball = random_images(1, channels, 5, 5, 17), Ball(0.6, INF)
    region = Deformations.of(images, ball, gamma)
    rows = torch.randn((1, 4, 25 * channels), generator=seeded(18), dtype=torch.float64)
    bound, box = region.minimum(rows)[0], pixel_box(images, ball).minimum(rows)[0]
    for k in range(4):
        exact = envelope_value(images, ball, gamma, rows[0, k])
        assert float(bound[k]) <= exact + 1e-9
        assert float(bound[k]) >= exact - 0.03 * (float(rows[0, k] @ images.flatten()) - exact)
    assert (bound >= box).all()


@by_norm
@pytest.mark.parametrize(
    ("channels", "delta", "gamma"),
    [
        (1, 0.5, 0.1),
        (3, 1.3, 0.4),
        (3, 1.3, 0.0),
        *(pytest.param(*v, marks=pytest.mark.slow) for v in ((3, 0.5, 0.1), (1, 1.3, 0.4), (1, 0.5, 0.7))),
    ],
)
def test_fields_stay_above_the_dual_bound_and_in_the_intervals(norm, channels, delta, gamma):
    images = random_images(1, channels, 6, 5, 19)
    region = Deformations.of(images, Ball(delta, norm), gamma)
    rows = torch.randn((1, 6, 30 * channels), generator=seeded(20), dtype=torch.float64)
    rows[0, 4], rows[0, 5] = 0.0, 0.0
    rows[0, 5, 7] = 1.0  # a single pixel: a window of its own
    bound = region.minimum(rows)[0]
    many = region.select([0] * 200)
    for fields in (many.flows.sample(seeded(21)), many.mean_field(many.weights_at(rows[0, :4].repeat(50, 1), 60))):
        points = deform(many.images, many.flows.fields(fields)).flatten(1)
        assert many.contains(points, 1e-12).all()
        assert many.flows.contains(fields).all()
        assert ((points @ rows[0].T) >= bound - 1e-12).all()
    assert float(bound[4]) == pytest.approx(0.0, abs=1e-9)
    assert float(bound[5]) == pytest.approx(float(region.lower[0, 7]), abs=1e-6)


@by_norm
def test_least_images_by_local_search_stay_above_the_bound(norm):
    """Projected descent on the field itself, from many starts: it does not pass the bound, and comes near it."""
    images = torch.rand((1, 1, 4, 4), generator=seeded(22), dtype=torch.float64)
    region = Deformations.of(images, Ball(0.5, norm), 0.2).select([0] * 64)
    row, flows = torch.randn(16, generator=seeded(23), dtype=torch.float64), region.flows
    fields, lowest = flows.sample(seeded(24)), INF
    for step in range(60):
        fields = fields.detach().requires_grad_()
        values = deform(region.images, flows.fields(fields)).flatten(1) @ row
        lowest = min(lowest, float(values.detach().min()))
        (gradient,) = torch.autograd.grad(values.sum(), fields)
        fields = flows.project(fields.detach() - 0.2 * 0.95**step * gradient.sign())
    bound, still = float(region.select([0]).minimum(row[None, None])), float(images.flatten() @ row)
    assert bound <= lowest
    assert lowest - bound <= 0.5 * (still - bound)


@by_norm
def test_smaller_gamma_is_never_looser_and_a_large_one_is_none(norm):
    images = random_images(2, 1, 6, 6, 30)
    rows = torch.randn((2, 5, 36), generator=seeded(31), dtype=torch.float64)
    box = Deformation(0.5, norm).canvas(images).outer
    spread = (rows @ images.flatten(1)[:, :, None])[..., 0] - box.minimum(rows)
    before = box.minimum(rows)
    for gamma in (0.9, 0.5, 0.25, 0.1, 0.03, 0.0):
        bound = Deformation(0.5, norm, gamma).canvas(images).outer.minimum(rows)
        # Exact up to the multipliers' accuracy.
        assert (bound >= before - 0.02 * spread).all()
        before = torch.maximum(bound, before)
    for gamma in (1.0, 7.0, INF):
        same = Deformation(0.5, norm, gamma).canvas(images).outer
        assert isinstance(same, certify.Box)
        assert torch.equal(same.minimum(rows), box.minimum(rows))
    assert ((before - box.minimum(rows)) / spread).mean() > 0.2


def test_pixels_that_cannot_move_count_exactly():
    """A constant image has one value; where one channel moves and another does not, both are told apart."""
    images = torch.full((1, 2, 5, 5), 0.3, dtype=torch.float64)
    images[0, 1] = 0.7
    rows = torch.randn((1, 40, 50), generator=seeded(81), dtype=torch.float64)
    bound = Deformations.of(images, Ball(0.5, 2.0), 0.1).minimum(rows)[0].tolist()
    parts = [Fraction(0.3), Fraction(0.7)]
    for low, row in zip(bound, rows[0].reshape(40, 2, 25).tolist(), strict=True):
        exact = sum(value * sum(map(Fraction, part)) for value, part in zip(parts, row, strict=True))
        assert 0 <= exact - Fraction(low) < Fraction(1, 10**11)
    images[0, 1, 2, 2] = 1.0
    region = Deformations.of(images, Ball(0.5, INF), 0.1)
    many = region.select([0] * 200)
    points = deform(many.images, many.flows.fields(many.flows.sample(seeded(82)))).flatten(1)
    bound, still = region.minimum(rows)[0], rows[0] @ images.flatten()
    assert (points @ rows[0].T >= bound - 1e-12).all()
    assert (bound >= region.box.minimum(rows)[0]).all()
    assert (bound < still).all()


def test_a_row_of_one_pixel_is_bounded_by_its_range():
    images = random_images(1, 3, 4, 5, 87)
    for faint in (images, 0.4 + 0.01 * images):
        region = Deformations.of(faint, Ball(0.7, 2.0), 0.2)
        for sign, limit in ((1.0, region.lower), (-1.0, -region.upper)):
            bound = region.minimum(sign * torch.eye(60, dtype=torch.float64)[None])
            torch.testing.assert_close(bound, limit, atol=1e-9, rtol=0)


def test_rows_of_many_images_meet_their_own_image():
    images = torch.rand((3, 1, 5, 5), generator=seeded(83), dtype=torch.float64)
    images[1, :, :, :2], images[2, :, 3:] = 0.0, 1.0
    region = Deformations.of(images, Ball(0.5, INF), 0.1)
    rows = torch.randn((3, 4, 25), generator=seeded(84), dtype=torch.float64)
    together = region.minimum(rows)
    order = torch.tensor([2, 0])
    torch.testing.assert_close(region.minimum(rows[order], order), together[order], atol=1e-3, rtol=1e-3)
    for k in range(3):
        alone = region.select([k]).minimum(rows[k : k + 1])[0]
        torch.testing.assert_close(together[k], alone, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("norm", [2.0, INF])
def test_fields_near_an_image_make_it(norm):
    """Without a limit of differences, every image of the box is made by some field."""
    images = torch.rand((3, 1, 4, 5), generator=seeded(85), dtype=torch.float64)
    canvas = Deformation(0.8, norm).canvas(images)
    low, high = canvas.outer.lower, canvas.outer.upper
    wanted = low + (high - low) * (0.02 + 0.96 * torch.rand(low.shape, generator=seeded(86), dtype=torch.float64))
    torch.testing.assert_close(canvas.draw(canvas.fields_near(wanted)), wanted, atol=1e-9, rtol=0)
    colours = Deformation(0.8, norm).canvas(images.expand(-1, 3, -1, -1))
    thrice = wanted.repeat(1, 3)
    torch.testing.assert_close(colours.draw(colours.fields_near(thrice)), thrice, atol=1e-9, rtol=0)


def test_ranges_stay_between_the_pixels_around():
    images = random_images(1, 2, 5, 5, 88)
    images[0, 1] = 0.3
    box = pixel_box(images, Ball(0.7, 2.0))
    assert ((box.lower >= 0) & (box.upper <= 1)).all()
    assert (box.lower[0, 25:] == 0.3).all()
    assert (box.upper[0, 25:] == 0.3).all()


def flow_program(region, fixed=None):
    """Pixels in their ranges, and the fields of one image: the program, and a function that minimises on it."""
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    n, m = region.lower.shape[1], 2 * region.images[0, 0].numel()
    solver.addVars(n, region.lower[0].numpy(), region.upper[0].numpy())
    add_flow_rows(solver, region)
    if fixed is not None:
        solver.changeColsBounds(m, np.arange(n, n + m, dtype=np.int32), fixed, fixed)

    def least(of_pixels=None, of_field=None):
        costs = np.zeros(solver.getNumCol())
        costs[:n], costs[n : n + m] = (0 if v is None else v for v in (of_pixels, of_field))
        solver.changeColsCost(len(costs), np.arange(len(costs), dtype=np.int32), costs)
        solver.run()
        assert solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
        return solver.getInfo().objective_function_value

    return least


@by_norm
def test_fields_of_the_program_are_those_of_the_limits(norm):
    """In the disc and near their neighbours, and no others: linear functions of fields against a solver for norms."""
    import cvxpy as cp

    images, generator = random_images(1, 1, 3, 4, 91), np.random.default_rng(0)
    least = flow_program(Deformations.of(images, Ball(0.5, norm), 0.15))
    v = [cp.Variable((3, 4)) for _ in range(2)]
    rules = [cp.abs(c[1:] - c[:-1]) <= 0.15 for c in v] + [cp.abs(c[:, 1:] - c[:, :-1]) <= 0.15 for c in v]
    rules += [cp.norm(cp.hstack([v[0][i, j], v[1][i, j]]), norm) <= 0.5 for i in range(3) for j in range(4)]
    for _ in range(3):
        row = generator.standard_normal((2, 3, 4))
        problem = cp.Problem(cp.Minimize(sum(cp.sum(cp.multiply(w, c)) for w, c in zip(row, v, strict=True))), rules)
        problem.solve(solver=cp.CLARABEL)
        ours = least(of_field=row.ravel())
        assert ours <= problem.value + 1e-6
        assert ours >= problem.value * (1.03 if norm == 2 else 1.0) - 1e-6


@by_norm
@pytest.mark.parametrize("channels", [1, 2])
def test_pixels_of_the_program_follow_their_fields(norm, channels):
    """At a fixed field a pixel is between its planes and in its range; for the square it is in the hull's section."""
    images = random_images(1, channels, 3, 4, 92)
    region = Deformations.of(images, Ball(0.5, norm), 0.15)
    field = VectorField(images, 0.5, norm, 0.15).sample(1, seed=3)
    moved = deform(images, field).flatten().numpy()
    (low, up), (high, down) = VectorField(images, 0.5, norm, 0.15).planes()
    bottom, top = (
        (height + slope[..., 0] * field[0, 0] + slope[..., 1] * field[0, 1]).flatten().numpy()
        for height, slope in ((low, up), (high, down))
    )
    bottom, top = np.maximum(bottom, region.lower[0].numpy()), np.minimum(top, region.upper[0].numpy())
    least = flow_program(region, field.flatten().numpy())
    for k in range(len(moved)):
        unit = np.eye(len(moved))[k]
        lower, upper = least(unit), -least(-unit)
        assert lower - 1e-7 <= moved[k] <= upper + 1e-7
        if norm == INF:
            assert bottom[k] - 1e-7 <= lower
            assert upper <= top[k] + 1e-7
        else:
            assert (lower, upper) == pytest.approx((bottom[k], top[k]), abs=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_program_of_the_square_is_the_hull(channels):
    images, ball = random_images(1, channels, 4, 4, 93), Ball(0.6, INF)
    rows = torch.randn((4, 16 * channels), generator=seeded(94), dtype=torch.float64)
    least = flow_program(Deformations.of(images, ball, 0.2))
    for row in rows:
        assert least(row.numpy()) == pytest.approx(envelope_value(images, ball, 0.2, row), abs=1e-6)
    corner = np.repeat([0.6, -0.6], 16)
    still = flow_program(Deformations.of(images, ball, 0.2), corner)
    moved = deform(images, torch.from_numpy(corner).reshape(1, 2, 4, 4)).flatten()
    for row in rows:
        assert still(row.numpy()) == pytest.approx(float(row @ moved), abs=1e-6)


def test_single_precision_holds_the_region():
    images = torch.rand((1, 1, 5, 5), generator=seeded(32), dtype=torch.float64)
    region = Deformations.of(images, Ball(0.5, 2.0), 0.1)
    single = region.to(torch.float32)
    rows = torch.randn((1, 5, 25), generator=seeded(33), dtype=torch.float64)
    assert (single.minimum(rows.float()).double() <= region.minimum(rows) + 1e-4).all()
    assert (single.lower.double() <= region.lower).all()
    assert (single.upper.double() >= region.upper).all()
    # The images were rounded on the way: what is computed with them in double precision allows for it.
    still = Deformations.of(images.mean().expand(1, 1, 5, 5).contiguous(), Ball(0.5, 2.0), 0.1)
    back = still.to(torch.float32).to(torch.float64)
    wide = replace(back, lower=back.lower - 1, upper=back.upper + 1)  # so that the box has no say
    assert (wide.minimum(rows)[0] <= rows[0] @ still.images.flatten()).all()


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
