"""Accuracy against proofs: one network for each loss and alpha, each judged by `certify.certified_accuracy`."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, SupportsFloat

from torch import nn

from certify.accuracy import AccuracyReport, certified_accuracy
from certify.errors import InvalidInputError, MissingDependencyError
from certify.search import Plan
from certify.training.loop import Recipe, fit
from certify.training.losses import AbstractLoss, Domain, loss_of


@dataclass(frozen=True, eq=False)
class FrontPoint:
    """One trained network.

    Attributes:
        method, alpha: how it was trained.
        network: in eval mode.
        report: what was found about it; `report.clean`, `report.attacked` and `report.certified` are fractions.
        seconds: of training, in this run.
    """

    method: str
    alpha: float
    network: nn.Module = field(repr=False)
    report: AccuracyReport = field(repr=False)
    seconds: float

    @property
    def natural(self) -> float:
        """Fraction labelled rightly."""
        return self.report.clean

    @property
    def certified(self) -> float:
        """Fraction proved to keep its label."""
        return self.report.certified

    def __str__(self) -> str:
        report = self.report
        return (
            f"{self.method:10s} alpha {self.alpha:<8g} natural {report.clean:7.2%}  attacked {report.attacked:7.2%}"
            f"  certified {report.certified:7.2%}  {self.seconds:6.1f} s"
        )


@dataclass(frozen=True, eq=False)
class Front:
    """The networks of all losses and weights; `efficient` are those that no other one beats in both figures."""

    points: tuple[FrontPoint, ...]

    def of(self, method: str) -> "Front":
        """The networks of one loss."""
        return Front(tuple(p for p in self.points if p.method == method))

    @property
    def efficient(self) -> tuple[FrontPoint, ...]:
        """Networks with no other one better in one figure and no worse in the other, by natural accuracy."""
        kept = [p for p in self.points if not any(_beats(q, p) for q in self.points)]
        return tuple(sorted(kept, key=lambda p: (p.natural, p.certified)))

    def best(self, *, natural: float = 0.0) -> FrontPoint:
        """The highest certified accuracy among networks of at least this natural accuracy.

        Raises:
            InvalidInputError: where there is none.
        """
        enough = [p for p in self.points if p.natural >= natural]
        if not enough:
            highest = max((p.natural for p in self.points), default=0.0)
            raise InvalidInputError(f"no network has a natural accuracy of {natural:g}; the highest is {highest:g}")
        return max(enough, key=lambda p: (p.certified, p.natural))

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Writes a figure of certified against natural accuracy, a line for every loss.

        Raises:
            MissingDependencyError: without matplotlib.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MissingDependencyError("plots need matplotlib; pip install 'convexnn[plots]'") from error
        figure = Figure(figsize=(6, 4.5), layout="constrained")
        axes = figure.subplots()
        for method in dict.fromkeys(p.method for p in self.points):
            line = sorted(self.of(method).points, key=lambda p: p.alpha)
            axes.plot([100 * p.natural for p in line], [100 * p.certified for p in line], "o-", label=method)
            for p in line:
                axes.annotate(f"{p.alpha:g}", (100 * p.natural, 100 * p.certified), fontsize=7, alpha=0.7)
        axes.set(xlabel="natural accuracy (%)", ylabel="certified accuracy (%)")
        axes.legend()
        figure.savefig(path, dpi=150)

    def __str__(self) -> str:
        return "\n".join(map(str, self.points))


def _beats(q: FrontPoint, p: FrontPoint) -> bool:
    no_worse = q.natural >= p.natural and q.certified >= p.certified
    return no_worse and (q.natural > p.natural or q.certified > p.certified)


def front(
    make_network: Callable[[], nn.Module],
    loader: Iterable[Any],
    X: Any,
    y: Any,
    *,
    eps: SupportsFloat,
    methods: Sequence[str | AbstractLoss] = ("cc-ibp", "mtl-ibp", "exp-ibp"),
    alphas: Sequence[float] = (0.01, 0.1, 0.25, 0.5, 1.0),
    recipe: Recipe | None = None,
    domain: Domain = None,
    plan: str | Plan = "auto",
    directory: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> Front:
    """Trains a network for every loss and alpha, and certifies each on held-out data.

    Choose alpha on validation data, and report the chosen network on test data that had no part in it.

    Args:
        make_network: makes a new network; all are trained from the same seed.
        loader: as for `fit`.
        X: held-out inputs.
        y: their class numbers.
        eps: as for `fit`.
        methods: losses, by name or as values.
        alphas: weights of the bounds, each from 0 to 1.
        recipe: as for `fit`.
        domain: as for `fit`.
        plan: how to certify, as `method` of `certified_accuracy`.
        directory: keeps checkpoints and answers; a run that was stopped goes on from them.
        progress: as for `fit`.

    Raises:
        InvalidInputError: for no methods or no alphas; otherwise as `fit` and `certified_accuracy`.
    """
    losses = [loss_of(m) for m in methods]
    if not losses or not alphas or not all(0 <= a <= 1 for a in alphas):
        raise InvalidInputError(f"methods {list(methods)}, alphas {list(alphas)}; expected some, with alphas in [0, 1]")
    folder = None if directory is None else Path(directory)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    points = []
    for loss in losses:
        for alpha in alphas:
            files = [None if folder is None else folder / f"{loss.name}-{alpha:g}.{kind}" for kind in ("pt", "jsonl")]
            trained = fit(
                make_network(),
                loader,
                eps=eps,
                method=loss,
                alpha=alpha,
                recipe=recipe,
                domain=domain,
                checkpoint=files[0],
                progress=progress,
            )
            if trained.interrupted:
                raise KeyboardInterrupt
            report = certified_accuracy(
                trained.network, X, y, eps=eps, method=plan, domain=domain, results=files[1], progress=progress
            )
            points.append(FrontPoint(loss.name, float(alpha), trained.network, report, trained.seconds))
    return Front(tuple(points))
