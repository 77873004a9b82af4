"""Vector fields, pixel by pixel: interpolation, exact ranges and planes.

The references are grids, samples and exact arithmetic; none shares code with the package beyond `deform`, which is
checked against its definition first.
"""

from fractions import Fraction

import numpy as np
import pytest
import torch
from certify_cases import seeded
from scipy.optimize import linprog
from shared_data import SHARED
from spatial_cases import INF, by_delta, by_norm, constant_fields, inside, interpolated, random_images

from certify.regions.spatial import VectorField
from certify.regions.spatial.ball import Ball
from certify.regions.spatial.bilinear import deform, patches
from certify.regions.spatial.planes import planes_below


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
