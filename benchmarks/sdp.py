"""Semidefinite certificates: verified images and seconds, and values against an independent solver.

    python -m benchmarks.sdp [--quick] [--limit 200] [--parts digits protocol adversarial boxes tightness
        tightness-boxes] [--proofs] [--log FILE]

digits: digits_64_20_20_10_adv, hidden bounds by linear programs; the dual and low-rank factors against cvxpy with
    Clarabel.
protocol: sdpcrown_mnist_mlp, l2 radius 1.0, the 200 protocol images, domain [0, 1]; all targets.
adversarial, boxes: chiu_ADV_MNIST, l2 radius 1.0 and l_inf radius 0.1, the first 50 images.
tightness, tightness-boxes: chiu_ADV_MNIST, these two regions, every target of the images from --first to --limit: the
    bound, with at most CASES cases of signs where one program is not within 1.5 %, against the margin that projected
    gradient descent reaches (200 steps, written here) from the centre and 14 random points, and from the inputs that
    the programs suggest as well.
--proofs: every image that "sdp" verifies is proved in a file, which the exact checker has to accept.
--log: a line of JSON for every image of protocol, adversarial and boxes as it is done; images in it are not run again.
Seconds are process time of one thread for an image that PGD does not attack, all rungs together and attack included.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import nn

import certify
from benchmarks.checked import accepted
from benchmarks.data import shared_file
from certify.bounds import METHODS, SDPCROWN, TriangleLP
from certify.bounds.dense import DenseNetwork
from certify.bounds.sdp import Inputs, Relaxation, Settings, Target, low_rank, solve, solve_cases, targets_of
from certify.ir.from_torch import graph_from_torch
from certify.ir.module import unmerged_graph
from certify.proof.emit.chain import exact_network
from certify.properties import margins_of_labels
from certify.regions import LpBall

QUICK = 20
CASES = 4


def network(name: str) -> nn.Sequential:
    stored = np.load(shared_file(f"nets/{name}.npz"))
    layers: list[nn.Module] = []
    for k in range(3):
        W, b = (torch.as_tensor(stored[f"{v}{k}"]) for v in "Wb")
        layer = nn.Linear(W.shape[1], W.shape[0], dtype=W.dtype)
        layer.load_state_dict({"weight": W, "bias": b})
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


@dataclass(frozen=True)
class Run:
    """What all images of a count have in common, and what names them in a log."""

    net: str
    method: str
    norm: str
    eps: float
    domain: tuple[int, int] | None
    proofs: bool

    def image(self, number: int, point: np.ndarray, label: int) -> "Image":
        """One image, verified and, where a file was asked for and written, checked."""
        net = network(self.net)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "image.proof" if self.proofs else None
            start = time.process_time()
            verdict = certify.verify(
                net,
                point,
                label=label,
                eps=self.eps,
                norm=self.norm,
                domain=self.domain,
                method=self.method,
                proof=path,
            )
            seconds = time.process_time() - start
            check = None
            if verdict.proof is not None:
                check = accepted(Path(verdict.proof), network=exact_network(unmerged_graph(net, (784,))))
        return Image(number, verdict.status.name, seconds, check)


@dataclass(frozen=True)
class Image:
    """What became of an image; `check`: seconds of the exact checker, and bytes, of a file it accepted."""

    number: int
    status: str
    seconds: float
    check: tuple[float, float] | None = None


@dataclass(frozen=True)
class Log:
    """Lines of JSON, one an image, so that a run that is ended goes on where it was."""

    path: Path | None

    def known(self, run: Run) -> dict[int, Image]:
        """The images of a run that are done."""
        if self.path is None or not self.path.exists():
            return {}
        lines = map(json.loads, self.path.read_text().splitlines())
        same = json.loads(json.dumps(asdict(run)))
        return {line["image"]["number"]: Image(**line["image"]) for line in lines if line["run"] == same}

    def add(self, run: Run, image: Image) -> None:
        """One more."""
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps({"run": asdict(run), "image": asdict(image)}) + "\n")


def summary(images: Sequence[Image]) -> str:
    """Verdicts and seconds."""
    statuses = [image.status for image in images]
    seconds = [image.seconds for image in images if image.status != "FALSIFIED"]
    checks = [image.check for image in images if image.check is not None]
    if checks:
        times, sizes = zip(*checks, strict=True)
        files = f"; {len(checks)} files accepted: {np.mean(times):.2f} s each, longest {max(times):.2f}, "
        files += f"mean {np.mean(sizes) / 1e3:.0f} kB, largest {max(sizes) / 1e3:.0f}"
    else:
        files = ""
    return (
        f"{statuses.count('VERIFIED'):4d} verified, {statuses.count('FALSIFIED'):3d} attacked or wrong of"
        f" {len(images)}; CPU s for an image not attacked: mean {np.mean(seconds):.2f},"
        f" median {np.median(seconds):.2f}, longest {max(seconds):.2f}{files}"
    )


def count(run: Run, limit: int, log: Log) -> str:
    stored, known = np.load(shared_file("nets/sdp_protocol_200_images.npz")), log.known(run)
    images = []
    for i, (x, y) in enumerate(zip(stored["x"].reshape(200, -1)[:limit], stored["y"][:limit], strict=True)):
        if i not in known:
            known[i] = run.image(i, x, int(y))
            log.add(run, known[i])
        images.append(known[i])
    return summary(images)


def protocol(name: str, options: argparse.Namespace, limit: int, ball: tuple[float, str] = (1.0, "l2")) -> None:
    print(f"\n{name}, {ball[1]} radius {ball[0]}, {limit} images")
    certify.verify(network(name), np.full(784, 0.5), label=0, eps=0.1, norm="l2", method="sdp-crown")  # imports
    for domain in ((0, 1), None) if ball[1] == "l2" else ((0, 1),):
        for method in options.methods:
            if method == "lipschitz" and domain is not None:
                continue  # it knows no domain
            where = "in [0, 1]" if domain else "no domain"
            run = Run(name, method, ball[1], ball[0], domain, options.proofs)
            print(f"  {method:>15} {where:>10} {count(run, limit, Log(options.log))}", flush=True)


def descended(net: nn.Module, region: LpBall, starts: torch.Tensor, row: torch.Tensor, constant: torch.Tensor) -> float:
    """The least margin row.y + constant that projected gradient descent reaches from some points (k x n)."""
    x, every = starts, region.select([0] * len(starts))
    best = torch.inf
    for step in range(200):
        x = x.detach().requires_grad_()
        margins = net(x) @ row + constant
        best = min(best, float(margins.detach().min()))
        (gradient,) = torch.autograd.grad(margins.sum(), x)
        along = gradient.sign() if region.norm == "linf" else gradient / gradient.norm(dim=1, keepdim=True)
        x = every.project(x.detach() - 0.25 * region.eps * 0.98**step * along)
    return best


@dataclass(frozen=True)
class Tight:
    """Of one target: what descent reaches from random points and, further, from suggested ones; bounds; seconds."""

    random: float
    suggested: float
    single: float
    bound: float
    seconds: float


def tight_targets(net: nn.Sequential, region: LpBall, label: int) -> Iterator[Tight]:
    """Every target of an input; none if descent finds an attack."""
    margins = margins_of_labels(torch.tensor([label]), 10)
    rows, constants = margins.rows[0], margins.constants[0]
    starts = torch.cat([region.centre, region.select([0] * 14).sample(torch.Generator().manual_seed(0))])
    random = [descended(net, region, starts, row, c) for row, c in zip(rows, constants, strict=True)]
    if min(random) <= 0:
        return
    graph = graph_from_torch(net)
    bounds = SDPCROWN()(graph, region)
    targets = targets_of(DenseNetwork.of(graph), region, bounds, rows.numpy(), constants.numpy())
    for target, reached, row, constant in zip(targets, random, rows, constants, strict=True):
        start = time.process_time()
        settings = Settings(tolerance=2e-3, enough=0.985 * reached)
        cases = solve_cases(target, settings, most=CASES)
        seconds = time.process_time() - start
        points = torch.as_tensor(np.stack(cases.points))
        better = min(reached, descended(net, region, points, row, constant))
        yield Tight(reached, better, cases.root.bound, cases.bound, seconds)


def tightness(images: range, radius: float, norm: str) -> None:
    net = network("chiu_ADV_MNIST").double()
    stored = np.load(shared_file("nets/sdp_protocol_200_images.npz"))
    found: list[Tight] = []
    for i in images:
        point = torch.as_tensor(stored["x"][i].reshape(1, -1), dtype=torch.float64)
        region = LpBall(point, radius, norm, torch.zeros_like(point), torch.ones_like(point))
        for t in tight_targets(net, region, int(stored["y"][i])):
            found.append(t)
            reached = f"descent {t.random:.4f}, from suggested points {t.suggested:.4f}"
            print(
                f"  image {i}: {t.single:.4f} proved, {t.bound:.4f} with cases; {reached}; {t.seconds:.1f} s",
                flush=True,
            )
    print(f"chiu_ADV_MNIST, {norm} radius {radius}, {len(images)} images, {len(found)} targets not attacked")
    if not found:
        return
    for reference in ("random", "suggested"):
        for name in ("single", "bound"):
            below = np.array([1 - getattr(t, name) / getattr(t, reference) for t in found])
            print(
                f"  descent from {reference} points, {'one program' if name == 'single' else 'with cases'}: "
                f"{np.mean(below <= 0.02):.0%} within 2 %, median {np.median(below):.2%} below, "
                f"most {below.max():.1%}"
            )
    print(f"  CPU s a target {np.mean([t.seconds for t in found]):.2f}", flush=True)


def by_clarabel(target: Target) -> tuple[float, float]:
    """The same relaxation, written without any scaling or structure; value and seconds of the solver call."""
    import cvxpy as cp

    o = target.offsets
    n, size = len(o.centre), 1 + len(o.centre) + sum(map(len, target.unstable))
    X, unit = cp.Variable((size, size), PSD=True), np.eye(size)
    values, at = [o.centre[:, None] * unit[0] + unit[1 : 1 + n]], 1 + n
    pairs, equal = [(unit[1 : 1 + n] - o.lower[:, None] * unit[0], o.upper[:, None] * unit[0] - unit[1 : 1 + n])], []
    for (W, b), unstable, active, low, high in zip(
        target.layers, target.unstable, target.active, target.lower, target.upper, strict=True
    ):
        z = W @ values[-1] + b[:, None] * unit[0]
        y = unit[at : at + len(unstable)]
        w, at = y - z[unstable], at + len(unstable)
        equal.append((y, w))
        pairs += [(y, high[unstable, None] * unit[0] - y), (w, -low[unstable, None] * unit[0] - w)]
        values.append(np.where(active[:, None], z, 0.0))
        values[-1][unstable] = y
    rules = [X[0, 0] == 1, *(cp.sum(cp.multiply(a @ X, b), axis=1) >= 0 for a, b in pairs)]
    rules += [cp.sum(cp.multiply(a @ X, b), axis=1) == 0 for a, b in equal]
    if o.radius is not None:
        rules.append(cp.trace(X[1 : 1 + n, 1 : 1 + n]) <= o.radius**2)
    problem = cp.Problem(cp.Minimize((target.objective @ values[-1]) @ X[0] + target.constant), rules)
    start = time.process_time()
    problem.solve(solver="CLARABEL")
    return float(problem.value), time.process_time() - start


def by_factors(target: Target) -> str:
    """Value, proved bound and seconds of low-rank factors on the same relaxation."""
    start = time.process_time()
    found = low_rank(Relaxation(target, Inputs.of(target, np.arange(len(target.offsets.centre)))))
    seconds = time.process_time() - start
    return (
        f"; rank {found.rank} {found.status.name.lower()}, {found.value:.6f} and {found.bound:.6f} proved in"
        f" {seconds:.3f} s"
    )


def digits(with_reference: bool) -> None:
    from sklearn.datasets import load_digits

    net = network("digits_64_20_20_10_adv")
    X, Y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(X))[1400:]
    X, Y = torch.tensor(X[order] / 16), torch.tensor(Y[order])
    right = (net(X).argmax(1) == Y).nonzero()[:2, 0].tolist()
    graph = graph_from_torch(net)
    print("\ndigits_64_20_20_10_adv, hidden bounds by linear programs, the nearest rival")
    for norm, eps in (("linf", 0.1), ("l2", 0.6)):
        for image, i in enumerate(right):
            x = X[i : i + 1]
            region = LpBall(x, eps, norm, torch.zeros_like(x), torch.ones_like(x))
            margins = margins_of_labels(Y[i : i + 1], 10)
            t = margins.rivals[0].tolist().index(int(net(x)[0].argsort()[-2]))
            bounds = TriangleLP()(graph, region)
            lp = float(TriangleLP().margins(graph, region, bounds, margins)[0, t])
            rows, constants = margins.rows[0].numpy(), margins.constants[0].numpy()
            target = targets_of(DenseNetwork.of(graph), region, bounds, rows, constants)[t]
            start = time.process_time()
            found = solve(target, Settings(tolerance=1e-5, cuts=()))
            seconds = time.process_time() - start
            more = solve(target, Settings(tolerance=1e-5)).bound
            text = f"  {norm:>4} {eps} image {image}: LP {lp:.5f}, SDP {found.bound:.6f} proved in {seconds:.3f} s"
            text += f", with cuts {more:.6f}"
            text += by_factors(target)
            if with_reference:
                value, longer = by_clarabel(target)
                text += f"; Clarabel {value:.6f} in {longer:.2f} s ({longer / seconds:.0f} times)"
            print(text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"the digits, and {QUICK} protocol images")
    parser.add_argument("--limit", type=int, default=200, help="the first images only")
    parser.add_argument("--first", type=int, default=0, help="images to leave out of the parts on tightness")
    every = ["digits", "protocol", "adversarial", "boxes", "tightness", "tightness-boxes"]
    parser.add_argument("--parts", nargs="+", choices=every, default=every)
    parser.add_argument(
        "--methods", nargs="+", choices=list(METHODS), default=["lipschitz", "sdp-crown-ball", "sdp-crown", "sdp"]
    )
    parser.add_argument("--proofs", action="store_true", help="write proof files and check them")
    parser.add_argument("--log", type=Path, help="where every image that is done is written, and known ones are read")
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts = options.parts if not options.quick else ["digits", "protocol"]
    if "digits" in parts:
        digits(with_reference=not options.quick)
    if "protocol" in parts:
        protocol("sdpcrown_mnist_mlp", options, QUICK if options.quick else options.limit)
    if "adversarial" in parts:
        protocol("chiu_ADV_MNIST", options, min(50, options.limit))
    if "boxes" in parts:
        protocol("chiu_ADV_MNIST", options, min(50, options.limit), (0.1, "linf"))
    if "tightness" in parts:
        tightness(range(options.first, options.limit), 1.0, "l2")
    if "tightness-boxes" in parts:
        tightness(range(options.first, options.limit), 0.1, "linf")


if __name__ == "__main__":
    main()
