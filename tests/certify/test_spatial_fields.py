"""Smooth fields: sampling, projection, the dual bound of the limits of differences, and rows of linear programs.

The references are scipy, HiGHS and samples.
"""

from dataclasses import replace
from fractions import Fraction

import highspy
import numpy as np
import pytest
import torch
from certify_cases import seeded
from scipy.optimize import linprog
from spatial_cases import INF, by_norm, random_images

import certify
from certify.bounds.flow_rows import add_flow_rows
from certify.regions.spatial import Deformation, VectorField
from certify.regions.spatial.ball import Ball
from certify.regions.spatial.bilinear import deform, patches
from certify.regions.spatial.deformations import Deformations, pixel_box


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
