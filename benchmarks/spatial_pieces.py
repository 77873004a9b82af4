"""What certificates against vector fields are made of: ranges of pixels, planes, and bounds in order on 8 x 8 digits.

python -m benchmarks.spatial_pieces [--only intervals|planes|digits] [--quick]
"""

import itertools
import time
from math import inf

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import certify
from benchmarks.data import shared_file
from benchmarks.parts import run_parts
from certify.bounds import METHODS
from certify.bounds.base import place
from certify.bounds.linear_model import Question, linear_model
from certify.ir.from_torch import graph_from_torch
from certify.properties import margins_of_labels
from certify.regions.spatial.ball import Ball
from certify.regions.spatial.bilinear import deform, patches
from certify.regions.spatial.planes import planes_below
from certify.search import Deadline
from certify.search.milp import MixedIntegerModel

NORMS = (1.0, 2.0, inf)
DELTAS = (0.1, 0.2, 0.3, 0.5, 1.5)


def mnist(count: int) -> Tensor:
    return torch.from_numpy(np.load(shared_file("data/mnist.npz"))["x_test"][:count]).double()[:, None] / 255


def interpolated(patch: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Of one patch (side, side), at vectors from its middle."""
    side = len(patch)
    x, y = np.clip(vectors.T + side // 2, 0, side - 1)
    left, top = np.minimum(x.astype(int), side - 2), np.minimum(y.astype(int), side - 2)
    s, t = x - left, y - top
    above = (1 - s) * patch[top, left] + s * patch[top, left + 1]
    below = (1 - s) * patch[top + 1, left] + s * patch[top + 1, left + 1]
    return (1 - t) * above + t * below


def least_by_search(patch: np.ndarray, delta: float, norm: float) -> float:
    """A dense grid, the rim, the integer points, and clouds around the best points that shrink."""

    def into(vectors: np.ndarray, *, out: bool = False) -> np.ndarray:
        factor = delta / np.maximum(np.linalg.norm(vectors, norm, axis=1, keepdims=True), 1e-300)
        return vectors * (factor if out else np.minimum(1, factor))

    line, whole = np.linspace(-delta, delta, 101), np.arange(-2.0, 3.0)
    angle = np.linspace(0, 2 * np.pi, 2001)
    grids = [np.stack(np.meshgrid(v, v), -1).reshape(-1, 2) for v in (line, whole)]
    points = np.concatenate([*(into(g) for g in grids), into(np.stack([np.cos(angle), np.sin(angle)], 1), out=True)])
    best, size, generator = points[interpolated(patch, points).argsort()[:20]], 0.1 * delta, np.random.default_rng(0)
    while size > 1e-9:
        cloud = (best[:, None] + size * generator.uniform(-1, 1, (1, 60, 2))).reshape(-1, 2)
        cloud = np.concatenate([best, into(cloud), into(cloud, out=True)])
        best, size = cloud[interpolated(patch, cloud).argsort()[:20]], 0.6 * size
    return float(interpolated(patch, best).min())


def run_intervals(quick: bool) -> None:
    """Both ends of pixels' ranges against the search."""
    count = 10 if quick else 60
    print(f"\n### Ranges of {count} pixels each, both ends, against a search: largest differences\n")
    print("| t | delta | random images | MNIST |\n|---|---|---|---|")
    generator = torch.Generator().manual_seed(0)
    random = torch.rand((3, 1, 9, 9), generator=generator, dtype=torch.float64)
    for norm, delta in itertools.product(NORMS, DELTAS):
        cells = []
        for images in (random, mnist(3)):
            ball = Ball(delta, norm)
            around = patches(images, ball.reach)
            around = around[around.amax(-1) > around.amin(-1)]
            around = around[torch.randperm(len(around), generator=generator)[:count]]
            least, most = ball.extremes(around)
            side = 2 * ball.reach + 1
            searched = [
                [least_by_search(sign * v.reshape(side, side).numpy(), delta, norm) for sign in (1, -1)] for v in around
            ]
            low, high = np.array(searched).T
            above = np.concatenate([low - least.numpy(), most.numpy() + high])
            assert above.min() > -1e-12
            cells.append(above.max())
        print(f"| {norm:g} | {delta:g} | {cells[0]:.1e} | {cells[1]:.1e} |", flush=True)


def run_planes(quick: bool) -> None:
    """Planes on samples, and their gaps beside those of the square's planes, which the source uses for every norm."""
    samples = 20_000 if quick else 1_000_000
    image = mnist(1)
    busy = patches(image, 1)[0, 0]
    print(f"\n### Planes of an MNIST image, {samples} vectors on every pixel that moves\n")
    print("| t | delta | lowest distance | mean gap at v = 0 | with planes of the square |\n|---|---|---|---|---|")
    for norm, delta in itertools.product(NORMS, (0.1, 0.3, 0.5)):
        ball, square = Ball(delta, norm), Ball(delta, inf)
        around = busy[busy.amax(-1) > busy.amin(-1)]
        generator, lowest, gaps = np.random.default_rng(0), inf, []
        sides = [(sign * around, *planes_below(ball, sign * around)) for sign in (1, -1)]
        for _ in range(samples // 5000):
            vectors = generator.uniform(-delta, delta, (5000, 2))
            length = np.linalg.norm(vectors, norm, axis=1, keepdims=True)
            push = (length > delta) | (generator.uniform(size=(5000, 1)) < 0.2)
            vectors = np.where(push, vectors * (delta * (1 - 1e-15) / length), vectors)
            weights, where = torch.from_numpy(ball.weights(vectors)), torch.from_numpy(vectors)
            for values, height, slope in sides:
                distance = values @ weights - height[:, None] - slope @ where.T
                lowest = min(lowest, float(distance.min()))
        for chosen in (ball, square):
            gaps.append(sum(float((s * around[:, 4] - planes_below(chosen, s * around)[0]).mean()) for s in (1, -1)))
        assert lowest > -1e-14
        assert gaps[0] <= gaps[1] + 1e-12
        print(f"| {norm:g} | {delta:g} | {lowest:.1e} | {gaps[0]:.5f} | {gaps[1]:.5f} |", flush=True)


def digit_network() -> nn.Module:
    stored, layers = np.load(shared_file("nets/digits_64_20_20_10_adv.npz")), [nn.Flatten()]
    for i in range(3):
        layer = nn.Linear(*stored[f"W{i}"].shape[::-1])
        layer.load_state_dict({"weight": torch.from_numpy(stored[f"W{i}"]), "bias": torch.from_numpy(stored[f"b{i}"])})
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def ladder(network: nn.Module, image: Tensor, deformation: certify.Deformation) -> list[float]:
    """Bounds of the hardest margin, loose ones first, and the least margin that descent on fields finds."""
    graph = place(graph_from_torch(network, input_shape=tuple(image.shape[2:])), image)
    margins = margins_of_labels(network(image[0].float()).argmax(1), 10)
    outer, values = deformation.canvas(image).outer, []
    for name in ("ibp", "crown", "alpha-crown", "lp"):
        bounds = METHODS[name](graph, outer)
        values.append(METHODS[name].margins(graph, outer, bounds, margins)[0])
    rival, question = int(values[-1].argmin()), Question(graph, outer, bounds)
    linear = linear_model(question, graph.output)
    objective = margins.rows[0, rival].double().numpy() @ linear.expressions[graph.output]
    constant = float(margins.constants[0, rival])
    claims = (linear.minimise(objective).value, MixedIntegerModel.of(question).minimise(objective, Deadline()).bound)
    flows = deformation.flows(image).select([0] * 32)
    fields, lowest = flows.sample(torch.Generator().manual_seed(0)), inf
    for step in range(60):
        fields = fields.detach().requires_grad_()
        points = deform(image.expand(32, -1, -1, -1), flows.fields(fields)).flatten(1)
        value = margins.select([0] * 32).of_outputs(graph(points))[:, rival]
        lowest = min(lowest, float(value.detach().min()))
        (gradient,) = torch.autograd.grad(value.sum(), fields)
        fields = flows.project(fields.detach() - 0.5 * deformation.delta * 0.93**step * gradient.sign())
    return [*(float(v[rival]) for v in values), *(claim + constant for claim in claims), lowest]


def run_digits(quick: bool) -> None:
    """The order of bounds."""
    network, count = digit_network(), 1 if quick else 10
    print(
        f"\n### digits_64_20_20_10_adv, 8 x 8, gamma 0.1: lower bounds of the hardest margin, mean of {count} images\n"
    )
    print("| t | delta | IBP | CROWN | alpha-CROWN | LP | its program | MILP | attack | out of order | s |")
    print("|---|" + "---|" * 10)
    for norm, delta in itertools.product((inf, 2.0, 1.0), (0.3, 0.5)):
        start, rows = time.process_time(), []
        for k in range(count):
            image = torch.from_numpy(load_digits().images[k] / 16.0)[None, None]
            rows.append(ladder(network, image, certify.Deformation(delta, norm, 0.1)))
        falls = sum(above < below - 1e-5 for row in rows for below, above in itertools.pairwise(row))
        assert all(row[-1] >= max(row[:4]) - 1e-9 for row in rows)
        means = " | ".join(f"{v:.3f}" for v in np.mean(rows, 0))
        seconds = (time.process_time() - start) / count
        print(f"| {norm:g} | {delta:g} | {means} | {falls} of {6 * count} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_parts(__doc__, {"intervals": run_intervals, "planes": run_planes, "digits": run_digits})
