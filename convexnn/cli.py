"""The command line: ``convexnn fit``, ``convexnn gap`` and ``convexnn demo``."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from convexnn.errors import ConvexNNError, InvalidInputError
from convexnn.table import Table, read_csv

LOSSES = ("auto", "squared", "logistic", "hinge", "softmax")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, or 2 for bad input."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (ConvexNNError, ValueError, ImportError, OSError) as error:
        print(f"convexnn {options.command}: error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="convexnn", description="Train small ReLU networks to optimality.")
    parser.add_argument("--version", action="version", version=version("convexnn"))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_fit(commands)
    _add_gap(commands)
    _add_demo(commands)
    return parser


def _add_fit(commands: Any) -> None:
    fit = commands.add_parser(
        "fit",
        help="train on a CSV file",
        description="Train a two-layer ReLU network on a CSV file to its global optimum, print how far "
        "from the optimum it can still be, and write the network.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_table_options(fit)
    fit.add_argument("--target", required=True, help="column to predict: numbers or labels")
    fit.add_argument("--task", choices=("auto", "classification", "regression"), default="auto")
    fit.add_argument("--loss", choices=LOSSES, default="auto", help="auto: squared, logistic or softmax")
    fit.add_argument("--weight-decay", type=float, default=1e-3, help="weight of the penalty, positive")
    fit.add_argument("--tol", type=float, default=1e-4, help="relative gap at which training stops")
    fit.add_argument("--max-seconds", type=float, help="time limit; keeps the best network so far")
    fit.add_argument("--seed", type=int, default=0, help="seed of the search for neurons")
    fit.add_argument(
        "--standardize",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="train on (x - mean) / std; folded into the network that is written, which takes raw features",
    )
    fit.add_argument("--out", type=Path, default=Path("network.pt"), help="network file, .pt or .onnx")
    fit.add_argument("--result", type=Path, help="JSON file with the result (default: beside the network)")
    fit.add_argument("--quiet", action="store_true", help="no progress bar")
    fit.set_defaults(run=run_fit)


def _add_gap(commands: Any) -> None:
    gap = commands.add_parser(
        "gap",
        help="how far from the optimum a saved network is",
        description="Bound how far a network written by 'convexnn fit' is from the optimum on a CSV file.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    gap.add_argument("network", type=Path, help=".pt file written by 'convexnn fit'")
    _add_table_options(gap)
    gap.add_argument("--weight-decay", type=float, help="default: as in training")
    gap.add_argument("--seed", type=int, default=0, help="seed of the search for neurons")
    gap.set_defaults(run=run_gap)


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser("demo", help="the main job on real data, with an HTML report")
    demo.add_argument("--out", type=Path, default=Path("demo-report"), help="folder of the report")
    demo.add_argument("--quick", action="store_true", help="small versions of everything, a few seconds")
    demo.set_defaults(run=run_demo)


def _add_table_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, help="CSV file with a header line")
    parser.add_argument("--drop", default="", help="columns to leave out, separated by commas")
    parser.add_argument("--delimiter", default=",", help="character between the fields")


@dataclass(frozen=True)
class Fitted:
    """A trained estimator and the data that it saw."""

    model: Any  # ConvexReLUClassifier or ConvexReLURegressor
    scaling: Any  # Standardisation or None
    table: Table
    task: str

    @property
    def network(self) -> Any:
        """The network that takes raw features."""
        return self.model.network_ if self.scaling is None else self.scaling.fold(self.model.network_)

    def metadata(self) -> dict[str, Any]:
        """Plain values that say what the network is a network of."""
        result = self.model.result_
        classes = getattr(self.model, "classes_", None)
        return {
            "convexnn": version("convexnn"),
            "task": self.task,
            "target": self.table.target,
            "features": list(self.table.features),
            "classes": None if classes is None else classes.tolist(),
            "loss": result.loss,
            "weight_decay": result.weight_decay,
            "standardisation": None
            if self.scaling is None
            else {"mean": self.scaling.mean.tolist(), "scale": self.scaling.scale.tolist()},
        }


def run_fit(options: argparse.Namespace) -> None:
    """``convexnn fit``."""
    if options.out.suffix not in {".pt", ".onnx"}:
        raise InvalidInputError(f"--out must end in .pt or .onnx, got {str(options.out)!r}")
    for file in filter(None, (options.out, options.result)):
        if not file.parent.is_dir():  # said before the training, not after it
            raise InvalidInputError(f"there is no folder {str(file.parent)!r} for {file.name!r}; make it first")
    table = _read(options, options.target)
    task = table.task if options.task == "auto" else options.task
    print(_describe(table, task))
    fitted = _fit(table, task, options)
    print(fitted.model.result_)
    print(_score(fitted))
    _write_network(fitted, options.out)
    result_file = options.result or options.out.with_suffix(".json")
    result_file.write_text(json.dumps(_report(fitted, options.out), indent=2) + "\n", encoding="utf-8")
    print(f"network   {options.out} (takes raw features)")
    print(f"result    {result_file}")


def _read(options: argparse.Namespace, target: str) -> Table:
    drop = tuple(name.strip() for name in options.drop.split(",") if name.strip())
    return read_csv(options.data, target=target, drop=drop, delimiter=options.delimiter)


def _describe(table: Table, task: str) -> str:
    classes = ""
    if task == "classification":
        labels, counts = np.unique(table.y, return_counts=True)
        classes = ": " + ", ".join(f"{label} ({count})" for label, count in zip(labels, counts, strict=True))
    n, d = table.X.shape
    return f"data      {n} samples, {d} features, target {table.target!r}, {task}{classes}"


def _fit(table: Table, task: str, options: argparse.Namespace) -> Fitted:
    from convexnn.saving import Standardisation

    model = _estimator(task, options)
    scaling = Standardisation.of(table.X) if options.standardize else None
    model.fit(table.X if scaling is None else scaling.apply(table.X), table.y)
    return Fitted(model, scaling, table, task)


def _estimator(task: str, options: argparse.Namespace) -> Any:
    from convexnn.estimators import ConvexReLUClassifier, ConvexReLURegressor

    settings = {
        "weight_decay": options.weight_decay,
        "tol": options.tol,
        "max_seconds": options.max_seconds,
        "random_state": options.seed,
        "verbose": not options.quiet and sys.stderr.isatty(),
    }
    if task == "classification":
        return ConvexReLUClassifier(loss=options.loss, **settings)
    if options.loss not in {"auto", "squared"}:
        raise InvalidInputError(f"--loss {options.loss} is for classification; a regression uses squared")
    return ConvexReLURegressor(**settings)


def _score(fitted: Fitted) -> str:
    X = fitted.table.X if fitted.scaling is None else fitted.scaling.apply(fitted.table.X)
    name = "accuracy " if fitted.task == "classification" else "R^2      "
    return f"{name} {fitted.model.score(X, fitted.table.y):.4f} on the training data"


def _write_network(fitted: Fitted, path: Path) -> None:
    if path.suffix == ".onnx":
        from convexnn.onnx import to_onnx

        to_onnx(fitted.network, path, metadata={"convexnn": json.dumps(fitted.metadata())})
    else:
        from convexnn.saving import save_network

        save_network(fitted.network, path, fitted.metadata())


def _report(fitted: Fitted, network_file: Path) -> dict[str, Any]:
    """What is written as JSON; objective and bound are those of training, on the scaled features."""
    return {
        "network": network_file.name,
        "n_samples": len(fitted.table.X),
        **fitted.metadata(),
        "result": fitted.model.result_.to_dict(),
    }


def run_gap(options: argparse.Namespace) -> None:
    """``convexnn gap``."""
    from convexnn.gap import optimality_gap
    from convexnn.saving import Standardisation, load_network

    network, about = load_network(options.network)
    absent = {"target", "features", "classes", "loss", "weight_decay", "standardisation"} - set(about)
    if absent:
        raise InvalidInputError(
            f"{options.network} does not say what it was trained on ({', '.join(sorted(absent))}); use a file that "
            "'convexnn fit' wrote, or convexnn.optimality_gap on the network and its data"
        )
    table = _read(options, about["target"])
    if list(table.features) != about["features"]:
        raise InvalidInputError(
            f"{options.data} has the features {', '.join(table.features)}, but {options.network} was trained "
            f"on {', '.join(about['features'])}; use the same columns in the same order"
        )
    X = table.X
    if about["standardisation"]:
        scaling = Standardisation(**{name: np.array(v) for name, v in about["standardisation"].items()})
        network, X = scaling.unfold(network), scaling.apply(X)
    weight_decay = about["weight_decay"] if options.weight_decay is None else options.weight_decay
    y = _encode_like(about, table.y)
    settings = {"weight_decay": weight_decay, "loss": about["loss"], "random_state": options.seed}
    print(optimality_gap(network, X, y, **settings))


def _encode_like(about: dict[str, Any], y: np.ndarray) -> np.ndarray:
    """Targets as in training: -1 and +1, one-hot, or numbers."""
    if about["classes"] is None:
        return y
    classes = np.array(about["classes"])
    unknown = sorted(set(y.tolist()) - set(classes.tolist()), key=str)
    if unknown:
        raise InvalidInputError(f"labels {unknown} are not among the classes of training {classes.tolist()}")
    codes = np.searchsorted(classes, y)
    return np.where(codes == 1, 1.0, -1.0) if len(classes) == 2 else np.eye(len(classes))[codes]


def run_demo(options: argparse.Namespace) -> None:
    """``convexnn demo``."""
    from convexnn.demo import run

    run(options.out, quick=options.quick, say=lambda line: print(line, flush=True))


if __name__ == "__main__":
    sys.exit(main())
