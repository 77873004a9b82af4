import cvxpy as cp
import numpy as np
import pytest
import torch
from certify_cases import REGIONS, centres, regions_around, seeded
from scipy.optimize import linprog

import certify.regions
from certify.errors import InvalidInputError
from certify.regions import AbstractRegion, Box, LpBall
from certify.regions.multipliers import ball_scale

by_region = pytest.mark.parametrize("name", REGIONS)


def region_of(name, seed, n=6, batch=8, eps=0.35):
    return regions_around(centres(n, batch, seed), eps)[name]


def constraints(region, k, x):
    """The region of input k as cvxpy constraints, written from its definition."""
    if isinstance(region, Box):
        return [x >= region.lower[k].numpy(), x <= region.upper[k].numpy()]
    order = {"linf": "inf", "l2": 2, "l1": 1}[region.norm]
    rules = [cp.norm(x - region.centre[k].numpy(), order) <= region.eps]
    if region.lower is not None:
        rules += [x >= region.lower[k].numpy(), x <= region.upper[k].numpy()]
    return rules


def solved(objective, rules):
    problem = cp.Problem(cp.Minimize(objective), rules)
    problem.solve(solver=cp.CLARABEL)
    return problem.value


def test_every_region_is_listed():
    kinds = {type(r) for r in regions_around(centres(2, 1, 0), 0.1).values()}
    public = [getattr(certify.regions, name) for name in certify.regions.__all__]
    assert {c for c in public if isinstance(c, type) and c is not AbstractRegion} == kinds


@by_region
def test_minimum_of_a_linear_form_is_the_solver_s(name):
    region = region_of(name, 1)
    rows = torch.randn(8, 3, 6, generator=seeded(2), dtype=torch.float64)
    rows[0, 0], rows[1, 0, :5] = 0.0, 0.0
    computed = region.minimum(rows)
    for k in range(8):
        for j in range(3):
            x = cp.Variable(6)
            exact = solved(rows[k, j].numpy() @ x, constraints(region, k, x))
            assert computed[k, j].item() == pytest.approx(exact, abs=2e-6)


@by_region
def test_minimum_is_below_every_sample_and_shared_rows_are_rows(name):
    region = region_of(name, 3, batch=30)
    rows = torch.randn(1, 5, 6, generator=seeded(4), dtype=torch.float64)
    low = region.minimum(rows)
    torch.testing.assert_close(low, region.minimum(rows.expand(30, -1, -1)), rtol=1e-12, atol=1e-12)
    some = torch.tensor([7, 2, 2])
    torch.testing.assert_close(low[some], region.minimum(rows.expand(3, -1, -1), some), rtol=1e-12, atol=1e-12)
    generator = seeded(5)
    for _ in range(100):
        assert (torch.einsum("tn,bn->bt", rows[0], region.sample(generator)) >= low).all()


@by_region
def test_minimiser_is_in_the_region_and_reaches_the_minimum(name):
    region = region_of(name, 31, batch=30)
    rows = torch.randn(30, 6, generator=seeded(32), dtype=torch.float64)
    rows[0], rows[1, :5] = 0.0, 0.0
    points = region.minimiser(rows)
    assert region.contains(points, tolerance=1e-12).all()
    torch.testing.assert_close((rows * points).sum(1), region.minimum(rows[:, None])[:, 0], rtol=1e-9, atol=1e-9)


def test_l1_minimum_in_a_domain_against_linprog():
    region = region_of("l1 in domain", 6, eps=0.9)
    rows = torch.randn(8, 1, 6, generator=seeded(7), dtype=torch.float64)
    computed = region.minimum(rows)[:, 0]
    for k in range(8):
        c = region.centre[k].numpy()
        w = rows[k, 0].numpy()
        # d = p - q with p, q >= 0, sum(p + q) <= eps
        bounds = [(0, 1 - v) for v in c] + [(0, v) for v in c]
        result = linprog(np.concatenate([w, -w]), np.ones((1, 12)), [region.eps], bounds=bounds, method="highs")
        assert computed[k].item() == pytest.approx(result.fun + w @ c, abs=1e-9)


@by_region
def test_projection_is_the_nearest_point(name):
    region = region_of(name, 8)
    points = region.centre + torch.randn(8, 6, generator=seeded(9), dtype=torch.float64)
    points[0] = region.centre[0]
    projected = region.project(points)
    assert region.contains(projected, tolerance=1e-9).all()
    torch.testing.assert_close(region.project(projected), projected, rtol=0, atol=1e-9)
    for k in range(8):
        x = cp.Variable(6)
        exact = solved(cp.sum_squares(x - points[k].numpy()), constraints(region, k, x))
        assert (projected[k] - points[k]).square().sum().item() == pytest.approx(exact, abs=1e-5)


@by_region
def test_bounding_box_is_the_smallest(name):
    region = region_of(name, 10)
    lower, upper = region.bounding_box()
    unit = torch.eye(6, dtype=torch.float64)[None]
    torch.testing.assert_close(lower, region.minimum(unit), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(upper, -region.minimum(-unit), rtol=1e-9, atol=1e-9)


@by_region
def test_samples_are_contained_and_reach_far(name):
    region = region_of(name, 11, batch=4)
    generator = seeded(12)
    samples = torch.stack([region.sample(generator) for _ in range(300)])
    assert all(region.contains(s, tolerance=1e-12).all() for s in samples)
    if name != "point":
        assert (samples.amax(0) - samples.amin(0)).amin() > 0.1


@by_region
def test_another_precision_contains_the_region(name):
    region = region_of(name, 13)
    small = region.to(torch.float32)
    lower, upper = region.bounding_box()
    low, high = small.bounding_box()
    assert (low.double() <= lower).all()
    assert (high.double() >= upper).all()
    assert (low.double() >= lower - 1e-5).all()
    generator = seeded(14)
    for _ in range(50):
        assert small.contains(region.sample(generator), tolerance=1e-12).all()


@by_region
def test_selecting_inputs_selects_their_regions(name):
    region = region_of(name, 15)
    rows = torch.randn(8, 2, 6, generator=seeded(16), dtype=torch.float64)
    torch.testing.assert_close(region.select([3, 1]).minimum(rows[[3, 1]]), region.minimum(rows)[[3, 1]])


@pytest.mark.parametrize("norm", certify.regions.NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_representable_points_are_strictly_inside(norm, dtype):
    """With no tolerance, in float64: what a counterexample in single precision has to obey."""
    centre = centres(40, 50, 17).to(dtype).double()
    lower, upper = torch.full_like(centre, -0.1), torch.full_like(centre, 1.0)
    region = LpBall(centre, 0.1, norm, lower, upper)
    far = centre + torch.randn(50, 40, generator=seeded(18), dtype=torch.float64)
    points = region.representable(far, dtype)
    assert points.dtype == dtype
    assert region.contains(points).all()
    inside = region.project(far)
    assert (points.double() - inside).abs().max() < 1e-4


def test_ball_scale_by_hand():
    weights = torch.tensor([[3.0, 4.0], [3.0, 4.0], [0.0, 2.0]]).double()
    caps = torch.tensor([[9.0, 9.0], [9.0, 1.0], [1.0, 0.5]]).double()
    scale = ball_scale(weights, caps, 2.0)
    # free: 2/5; second entry capped: sqrt(4 - 1)/3; all caps inside the ball: infinite
    assert scale.tolist() == pytest.approx([0.4, 3**0.5 / 3, float("inf")])


def test_a_zero_row_and_a_zero_radius():
    region = LpBall(centres(3, 2, 19), 0.0, "l1")
    rows = torch.randn(2, 2, 3, generator=seeded(20), dtype=torch.float64)
    exact = torch.einsum("btn,bn->bt", rows, region.centre)
    torch.testing.assert_close(region.minimum(rows), exact, rtol=1e-12, atol=1e-12)
    assert (LpBall(centres(3, 2, 19), 0.2, "l2").minimum(0 * rows).abs() < 1e-12).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda c: LpBall(c, -0.1), "eps is -0.1"),
        (lambda c: LpBall(c, float("nan")), "eps is nan"),
        (lambda c: LpBall(c, 0.1, "l3"), "norm is 'l3'"),
        (lambda c: LpBall(c * torch.nan, 0.1), "NaN"),
        (lambda c: LpBall(c, 0.1, "l2", c + 1, c - 1), "above its upper limit"),
        (lambda c: LpBall(c, 0.1, "l2", c + 1, c + 2), "lies outside the domain"),
        (lambda c: LpBall(c, 0.1, "l2", c - 1), "needs both limits"),
        (lambda c: Box(c, c - 1), "above its upper limit"),
        (lambda c: Box(c, c * torch.inf), "NaN or infinite"),
    ],
)
def test_bad_regions_say_what_is_wrong(build, message):
    with pytest.raises(InvalidInputError, match=message):
        build(0.1 + centres(3, 2, 21))
