"""What the demo does with one case: train, ask how good Adam is, convert, certify."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

import certify
from convexnn.demo.cases import Case
from convexnn.demo.rival import AdamRun, train_adam
from convexnn.errors import MissingDependencyError
from convexnn.gap import optimality_gap
from convexnn.network import layers_of
from convexnn.onnx import to_onnx
from convexnn.proof.report import LOSSES as PROVABLE_LOSSES
from convexnn.result import OptimalityGap, TrainingResult, relative_gap
from convexnn.saving import save_network
from convexnn.training import train

_AT_ONCE = 1e-3  # seconds: a bound that is taken over needs no search

Say = Callable[[str], None]


@dataclass(frozen=True)
class Robustness:
    """Fractions of the held-out samples, one entry a radius."""

    eps: tuple[float, ...]
    clean: tuple[float, ...]
    attacked: tuple[float, ...]  # still right under the attack: an upper bound on robust accuracy
    certified: tuple[float, ...]  # proved right on the whole ball: a lower bound


@dataclass(frozen=True)
class Proofs:
    """Proved gaps of both networks, and the files that ``certify check`` judges."""

    ours: OptimalityGap
    adam: OptimalityGap
    files: tuple[Path, Path]


@dataclass(frozen=True)
class Study:
    """Everything that the report shows of one case."""

    case: Case
    result: TrainingResult
    adam: AdamRun
    adam_gap: OptimalityGap
    robustness: Robustness
    adam_robustness: Robustness
    files: tuple[Path, ...]
    proofs: Proofs | None = None  # of losses that have proofs


def study(case: Case, folder: Path, say: Say) -> Study:
    """Run one case from data to certificates."""
    n, d = case.X.shape
    say(f"\n{case.title}: {n} training samples, {d} features, {len(case.classes)} classes")
    say(f"  {case.loss} loss, weight decay {case.weight_decay:g}")
    result = train_global(case, say)
    adam, gap = judge_adam(case, result.bound, say)
    proofs = prove_both(result.network, adam.network, case, folder, say)
    files = convert(result.network, case, folder, say)
    robustness = certify_grid(result.network, case)
    adam_robustness = certify_grid(adam.network, case)
    for line in _robustness_lines(robustness, adam_robustness):
        say(line)
    return Study(case, result, adam, gap, robustness, adam_robustness, files, proofs)


def train_global(case: Case, say: Say) -> TrainingResult:
    """Train to the global optimum and print the three numbers."""
    result = train(
        case.X,
        case.targets(),
        loss=case.loss,
        weight_decay=case.weight_decay,
        tol=case.tol,
        max_seconds=case.max_seconds,
        random_state=0,
    )
    say("  Global training:")
    for line in str(result).splitlines():
        say("    " + line)
    return result


def judge_adam(case: Case, known_bound: float, say: Say) -> tuple[AdamRun, OptimalityGap]:
    """Train Adam on the same objective and bound its distance from the optimum.

    Both bounds hold for all networks, so Adam's network gets the better one: its own, searched for a
    shorter time, or that of global training.
    """
    adam = train_adam(case)
    gap = optimality_gap(
        adam.network,
        case.X,
        case.targets(),
        loss=case.loss,
        weight_decay=case.weight_decay,
        tol=case.tol,
        max_seconds=case.max_seconds / 4,
        random_state=0,
    )
    bound = max(gap.bound, known_bound)
    gap = replace(gap, bound=bound, gap=relative_gap(gap.objective, bound))
    say(f"  Adam, {adam.width} neurons, {case.adam_steps} steps, {adam.seconds:.1f} seconds:")
    for line in str(gap).splitlines():
        say("    " + line)
    return adam, gap


def prove_both(
    network: torch.nn.Sequential, adam: torch.nn.Sequential, case: Case, folder: Path, say: Say
) -> Proofs | None:
    """A proved bound for the network of global training, taken over for Adam's: it holds for all networks."""
    if case.loss not in PROVABLE_LOSSES:
        say(f"  No proof: there is none yet for the loss {case.loss}.")
        return None
    files = (folder / f"{case.key}-proof.json.gz", folder / f"{case.key}-adam-proof.json.gz")
    ours = _proved(network, case, out=files[0], timeout=case.proof_seconds)
    theirs = _proved(adam, case, out=files[1], resume=files[0], timeout=_AT_ONCE)
    say(f"  Proved: global training within {ours.gap:.2%}, Adam within {theirs.gap:.2%} of the optimum; evidence says")
    say(f"    {_evidence(ours):.2%} and {_evidence(theirs):.2%}. Check it: certify check {files[0]}")
    return Proofs(ours, theirs, files)


def _proved(network: torch.nn.Sequential, case: Case, **options: Any) -> OptimalityGap:
    return optimality_gap(
        network,
        case.X,
        case.targets(),
        loss=case.loss,
        weight_decay=case.weight_decay,
        tol=case.tol,
        max_seconds=0.5,
        random_state=0,
        proof="fast",
        **options,
    )


def _evidence(gap: OptimalityGap) -> float:
    assert gap.local_search_bound is not None
    return relative_gap(gap.objective, gap.local_search_bound)


def convert(network: torch.nn.Sequential, case: Case, folder: Path, say: Say) -> tuple[Path, ...]:
    """Write the trained network as .pt and, where onnx is installed, as .onnx."""
    files = [folder / f"{case.key}.pt"]
    save_network(network, files[0], {"features": list(case.features), "classes": list(case.classes)})
    try:
        to_onnx(network, folder / f"{case.key}.onnx")
        files.append(folder / f"{case.key}.onnx")
    except MissingDependencyError as error:
        say(f"  (no ONNX file: {error})")
    say(f"  Network written: {', '.join(str(file) for file in files)}")
    return tuple(files)


def certify_grid(network: torch.nn.Sequential, case: Case) -> Robustness:
    """Clean, attacked and certified accuracy on the held-out samples for every radius."""
    reports = [
        certify.certified_accuracy(
            network, case.X_test, case.y_test, eps=eps, norm="linf", method="crown", domain=case.domain
        )
        for eps in case.eps
    ]
    return Robustness(
        case.eps,
        tuple(float(r.clean) for r in reports),
        tuple(float(r.attacked) for r in reports),
        tuple(float(r.certified) for r in reports),
    )


def _robustness_lines(ours: Robustness, adam: Robustness) -> list[str]:
    """A table for the terminal."""
    chosen = np.unique(np.linspace(0, len(ours.eps) - 1, 6).round().astype(int))
    rows = {
        "eps": [f"{ours.eps[i]:.2f}" for i in chosen],
        "attacked": [f"{ours.attacked[i]:.1%}" for i in chosen],
        "certified": [f"{ours.certified[i]:.1%}" for i in chosen],
        "certified, Adam": [f"{adam.certified[i]:.1%}" for i in chosen],
    }
    lines = [f"    {name:<16}" + "".join(f"{cell:>8}" for cell in cells) for name, cells in rows.items()]
    return [
        f"  Held-out accuracy {ours.clean[0]:.1%} (Adam {adam.clean[0]:.1%}); inside l_inf balls:",
        *lines,
    ]


def strongest(network: torch.nn.Sequential, count: int) -> Float64[np.ndarray, "k p"]:
    """Rows (first-layer weights, output weights) of the neurons with the largest |u||a|, largest first."""
    first, last = layers_of(network)
    inner, outer = first.weight.detach().numpy(), last.weight.detach().numpy().T
    size = np.linalg.norm(inner, axis=1) * np.linalg.norm(outer, axis=1)
    order = np.argsort(-size)[:count]
    return np.hstack([inner[order], outer[order]])
