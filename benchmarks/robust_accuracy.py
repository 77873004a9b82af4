"""Accuracy of robustly trained networks, clean, attacked and certified: convex programs against gradient descent.

    python -m benchmarks.robust_accuracy --quick             # a minute: one table, one seed
    python -m benchmarks.robust_accuracy --only tables       # tables of uci.npz, five seeds
    python -m benchmarks.robust_accuracy --only birds        # CIFAR-10 birds against ships, five seeds

``--results DIR`` keeps every seed's rows as they come, and takes those that are there as they are.

Every seed draws the samples to train on, to choose the weight decay on, and to test on. Weight decay is chosen by
what CROWN certifies of the validation samples, of GD-std by its clean accuracy there. Attacks: FGSM, and PGD of 20
steps from 2 starts. Certified: CROWN for images, complete search for tables. Rows are means and standard deviations
over the seeds.
"""

import argparse
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

import certify
from benchmarks.data import shared_file
from convexnn import Robust, lower_worst_case, train
from convexnn.network import layers_of
from convexnn.robust.ball import read_ball
from convexnn.robust.baselines import Attack, Descent, attacked_accuracy, train_by_descent

METHODS = ("GD-std", "GD-FGSM", "GD-PGD", "hard", "soft", "soft + MM")
DOMAIN = (0.0, 1.0)


@dataclass(frozen=True)
class Split:
    """Features in [0, 1] and labels -1 and +1, to train on, to choose on and to test on."""

    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Setting:
    """What is trained and compared."""

    eps: float
    width: int
    decays: tuple[float, ...]  # weight decays to choose from; descent has a tenth of the first one, too
    certifier: str  # of the test samples
    descent: Descent


def networks(split: Split, setting: Setting, decay: float, seed: int) -> dict[str, nn.Module]:
    """A network of every method; of the smallest weight decay those of gradient descent only."""
    (X, y), found = split.train, {}
    for name, attack in zip(METHODS, ("std", "fgsm", "pgd"), strict=False):
        options = {"attack": attack, "eps": setting.eps, "domain": DOMAIN, "descent": setting.descent, "seed": seed}
        found[name] = train_by_descent(X, y, width=setting.width, weight_decay=decay, **options)
    if decay not in setting.decays:
        return found
    program = {"loss": "hinge", "weight_decay": decay, "n_patterns": setting.width // 2, "random_state": seed}
    for cones in ("hard", "soft"):
        result = train(X, y, robust=Robust(setting.eps, cones=cones), tol=3e-2, max_seconds=180, **program)
        found[cones] = result.network
    found["soft + MM"] = found["soft"]
    if result.n_neurons:
        found["soft + MM"] = lower_worst_case(
            result.network, X, y, robust=setting.eps, weight_decay=decay, tol=1e-2, max_rounds=6
        ).network
    return found


def certified(network: nn.Module, part: tuple[np.ndarray, np.ndarray], eps: float, method: str) -> float:
    """Share of samples whose label no perturbation changes, proved."""
    labels = (part[1] > 0).astype(int)
    return certify.certified_accuracy(network, part[0], labels, eps=eps, method=method, domain=DOMAIN).certified


def clean(network: nn.Module, part: tuple[np.ndarray, np.ndarray]) -> float:
    """Share of samples that are right as they are."""
    with torch.no_grad():
        return float(np.mean(network(torch.from_numpy(part[0]))[:, 0].numpy() * part[1] > 0))


def one_seed(split: Split, setting: Setting, seed: int) -> dict[str, tuple[float, ...]]:
    """Clean, FGSM, PGD and certified accuracy in percent, neurons, and the chosen weight decay."""
    best: dict[str, tuple[float, float, nn.Module]] = {}
    for decay in (0.1 * setting.decays[0], *setting.decays):
        for name, network in networks(split, setting, decay, seed).items():
            plain = clean(network, split.validation)
            score = plain if name == "GD-std" else certified(network, split.validation, setting.eps, "crown")
            if name not in best or score > best[name][0]:
                best[name] = (score, decay, network)
    ball = read_ball(setting.eps, "linf", split.test[0].shape[1], hidden_bias=False)
    rows = {}
    for name, (_, decay, network) in best.items():
        seen = attacked_accuracy(network, *split.test, attack=Attack(ball, 20, 2, DOMAIN))
        proved = certified(network, split.test, setting.eps, setting.certifier)
        first, last = layers_of(network)
        masses = (first.weight.norm(dim=1) * last.weight.norm(dim=0)).detach()
        active = int((masses > 1e-3 * masses.max()).sum()) if float(masses.max()) > 0 else 0
        rows[name] = (*(100 * share for share in (seen.clean, seen.fgsm, seen.pgd, proved)), active, decay)
    return rows


@dataclass(frozen=True)
class Run:
    """Which seeds, and where their rows are kept, if anywhere."""

    seeds: tuple[int, ...]
    kept: Path | None

    def rows(self, title: str, splits: Callable[[int], Split], setting: Setting, seed: int) -> dict:
        """The rows of one seed, with the CPU seconds that they took."""
        name = "".join(letter if letter.isalnum() else "_" for letter in f"{title} {seed}") + ".json"
        if self.kept is not None and (self.kept / name).exists():
            return json.loads((self.kept / name).read_text())
        began = time.process_time()
        rows: dict = {"rows": one_seed(splits(seed), setting, seed)}
        rows["seconds"] = time.process_time() - began
        if self.kept is not None:
            self.kept.mkdir(parents=True, exist_ok=True)
            (self.kept / name).write_text(json.dumps(rows))
        return rows


def compare(title: str, splits: Callable[[int], Split], setting: Setting, run: Run) -> None:
    """The table of one data set and radius."""
    rows, seconds = [], 0.0
    for seed in run.seeds:
        found = run.rows(title, splits, setting, seed)
        rows.append(found["rows"])
        seconds += found["seconds"]
        print(f"    seed {seed}: " + ", ".join(f"{n} {v[0]:.1f}/{v[3]:.1f}" for n, v in rows[-1].items()), flush=True)
    print(f"\n{title}, {len(rows)} seeds, {seconds:.0f} CPU s\n")
    print("| method | clean | FGSM | PGD | certified | neurons | weight decay |\n|---|---|---|---|---|---|---|")
    for name in METHODS:
        values = np.array([row[name] for row in rows])
        cells = [f"{m:.1f} ± {s:.1f}" for m, s in zip(values.mean(0)[:4], values.std(0)[:4], strict=True)]
        decays = ", ".join(f"{decay:g}" for decay in sorted(set(values[:, 5])))
        print(f"| {name} | {' | '.join(cells)} | {values[:, 4].mean():.0f} | {decays} |")
    soft, pgd = (np.array([row[name] for row in rows]) for name in ("soft + MM", "GD-PGD"))
    gain = (soft - pgd)[:, [0, 3]]
    print(
        f"\nsoft + MM less GD-PGD, seed by seed: clean {gain[:, 0].mean():+.1f} ± {gain[:, 0].std():.1f}, "
        f"certified {gain[:, 1].mean():+.1f} ± {gain[:, 1].std():.1f}\n",
        flush=True,
    )


def table_splits(name: str, most: int) -> Callable[[int], Split]:
    """Rows without missing values, features to [0, 1] by those to train on; 60, 20 and 20 in a hundred."""
    with np.load(shared_file("data/uci.npz")) as file:
        X, y = file[f"{name}__X"].astype(float), np.where(file[f"{name}__y"] > 0, 1.0, -1.0)
    whole = np.isfinite(X).all(1)
    X, y = X[whole], y[whole]

    def split(seed: int) -> Split:
        order = np.random.default_rng(seed).permutation(len(X))
        first, second, last = np.split(order, [int(0.6 * len(X)), int(0.8 * len(X))])
        low, width = X[first].min(0), np.maximum(np.ptp(X[first], axis=0), 1e-9)
        scaled = ((X - low) / width).clip(*DOMAIN)
        return Split(*((scaled[part], y[part]) for part in (first[:most], second, last)))

    return split


def bird_splits(n: int) -> Callable[[int], Split]:
    """Birds against ships of CIFAR-10: means of 4 x 4 pixels of the first 28 x 28, three colours, 147 features."""
    from PIL import Image

    with np.load(shared_file("data/cifar10_birds_ships_jpeg.npz")) as file:
        offset, stream, y, tested = file["offset"], file["jpeg"].tobytes(), file["y"], file["is_test"].astype(bool)
    images = [np.asarray(Image.open(io.BytesIO(stream[a:b]))) for a, b in pairwise(offset)]
    pixels = np.stack(images)[:, :28, :28].reshape(-1, 7, 4, 7, 4, 3) / 255.0
    X, labels = pixels.mean((2, 4)).reshape(len(images), -1), np.where(y == y.min(), 1.0, -1.0)

    def split(seed: int) -> Split:
        rng = np.random.default_rng(seed)
        mine = rng.permutation(np.flatnonzero(~tested))
        parts = (mine[:n], mine[n : 2 * n], rng.permutation(np.flatnonzero(tested))[:1000])
        return Split(*((X[part], labels[part]) for part in parts))

    return split


TABLES = {"mammographic": 0.05, "breast_cancer_wisc": 0.05, "statlog_heart": 0.05, "pima": 0.02}


def tables(run: Run, names: tuple[str, ...], quick: bool) -> None:
    for name in names[:1] if quick else names:
        eps = TABLES[name]
        setting = Setting(eps, 40, (1e-3,) if quick else (1e-3, 1e-2), "complete", Descent(epochs=150))
        title, splits = f"{name}, l_inf {eps} of each feature's range", table_splits(name, 100 if quick else 300)
        compare(title, splits, setting, run)


def birds(run: Run, n: int, radii: tuple[int, ...]) -> None:
    splits = bird_splits(n)
    for radius in radii:
        setting = Setting(radius / 255, 72, (1e-3, 3e-3, 1e-2), "crown", Descent(epochs=100))
        compare(f"birds against ships, l_inf {radius}/255, {n} samples to train on", splits, setting, run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one table, one seed")
    parser.add_argument("--only", choices=("tables", "birds"))
    parser.add_argument("--seeds", type=int, nargs="+", default=tuple(range(5)))
    parser.add_argument("--results", type=Path, help="a folder for the rows of every seed")
    parser.add_argument("--tables", nargs="+", choices=tuple(TABLES), default=tuple(TABLES))
    parser.add_argument("--samples", type=int, default=600, help="images to train on, and as many to choose on")
    parser.add_argument("--radii", type=int, nargs="+", default=(4, 10), help="of images, in 255ths")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.only != "birds":
        tables(
            Run(tuple(given.seeds[:1] if given.quick else given.seeds), given.results), tuple(given.tables), given.quick
        )
    if given.only != "tables" and not given.quick:
        birds(Run(tuple(given.seeds), given.results), given.samples, tuple(given.radii))


if __name__ == "__main__":
    main()
