"""scikit-learn estimators that choose their weight decay by cross-validation over regularisation paths."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float64, Int
from joblib import Parallel, delayed
from sklearn.model_selection import check_cv

from convexnn.data import positive
from convexnn.errors import InvalidInputError
from convexnn.estimators import ConvexReLUClassifier, ConvexReLURegressor, _ConvexReLU
from convexnn.rows import merge_rows
from convexnn.solutions.paths import PathPoint, RegularisationPath, path
from convexnn.task import seed_of

_SCORES = ("loss", "accuracy")


class _CrossValidated(_ConvexReLU):
    """Training of both estimators: a path for each fold, the best mean score, a path on all data down to it."""

    weight_decays: Any
    n_weight_decays: int
    cv: Any
    scoring: str
    n_jobs: int | None

    weight_decay_: float
    weight_decays_: Float64[np.ndarray, " p"]
    scores_: Float64[np.ndarray, "p folds"]
    path_: RegularisationPath
    _seed: int

    def _labels(self, Y: Float64[np.ndarray, "n K"]) -> Int[np.ndarray, " n"] | None:
        """What folds are stratified by."""
        return None

    def _train(
        self,
        X: Float64[np.ndarray, "n d"],
        Y: Float64[np.ndarray, "n K"],
        weights: Float64[np.ndarray, " n"],
        loss: str,
    ) -> None:
        """Choose the weight decay, train on all data; sets result_, network_ and n_iter_ too."""
        self._seed = seed_of(self.random_state)  # folds and the final path draw alike
        decays = self._grid(X, Y, weights, loss)
        labels = self._labels(Y)
        folds = list(check_cv(self.cv, labels, classifier=labels is not None).split(X, labels))
        scores = Parallel(n_jobs=self.n_jobs)(
            delayed(_fold_scores)(
                (X[train], Y[train], weights[train]), (X[test], Y[test], weights[test]), decays, self._settings(loss)
            )
            for train, test in _weighty(folds, weights)
        )
        self.weight_decays_, self.scores_ = np.array(decays), np.array(scores).T
        best = int(np.argmax(self.scores_.mean(axis=1)))
        self.path_ = _path((X, Y, weights), decays[: best + 1], self._settings(loss), None)
        self.weight_decay_ = decays[best]
        self._keep(self.path_.points[-1], loss)

    def _grid(self, X: Any, Y: Any, weights: Any, loss: str) -> list[float]:
        """Falling; by default from just below the null level of all data."""
        if self.weight_decays is not None:
            given = sorted({positive(value, "weight_decays") for value in self.weight_decays}, reverse=True)
            if not given:
                raise InvalidInputError("weight_decays is empty; leave it out for a grid below the null level.")
            return given
        count = self.n_weight_decays
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
            raise InvalidInputError(f"n_weight_decays={count!r}; an integer of at least 1 is expected.")
        level = _path((X, Y, weights), None, self._settings(loss), None).null_level
        return np.geomspace(level, 1e-2 * level, count + 1)[1:].tolist() if level > 0 else [1.0]

    def _settings(self, loss: str) -> dict[str, Any]:
        if self.scoring not in _SCORES or (self.scoring == "accuracy" and loss == "squared"):
            raise InvalidInputError(
                f'scoring={self.scoring!r}; "loss" is expected, or "accuracy" for logistic, hinge and softmax.'
            )
        return {
            "loss": loss,
            "method": self.method,
            "n_patterns": self.n_patterns,
            "hidden_bias": self.hidden_bias,
            "output_bias": self.output_bias,
            "tol": self.tol,
            "max_seconds": self.max_seconds,
            "random_state": self._seed,
            "scoring": self.scoring,
        }

    def _keep(self, point: PathPoint, loss: str) -> None:
        self.result_ = self.path_.result(len(self.path_.points) - 1, loss)
        self.network_ = point.network
        self.n_iter_ = max(1, self.result_.n_rounds)


Data = tuple[Any, Any, Any]


def _weighty(
    folds: list[tuple[np.ndarray, np.ndarray]], weights: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Folds without the samples of weight zero, and of these those with samples on both sides."""
    kept = [(train[weights[train] > 0], test[weights[test] > 0]) for train, test in folds]
    usable = [(train, test) for train, test in kept if len(train) and len(test)]
    if not usable:
        raise InvalidInputError("no fold has samples with positive weight on both sides; choose another cv.")
    yield from usable


def _path(data: Data, decays: list[float] | None, settings: dict[str, Any], test: Data | None) -> RegularisationPath:
    X, Y, weights = merge_rows(*data)
    chosen = {name: value for name, value in settings.items() if name != "scoring"}
    held = None if test is None else (test[0], _flat(test[1]))
    return path(
        X,
        _flat(Y),
        weight_decays=decays,
        n_points=1,  # of a path without weight decays, which only asks for the null level
        sample_weight=None if (weights == weights[0]).all() else weights * (len(weights) / weights.sum()),
        test=held,
        test_weight=None if test is None else test[2],
        **chosen,
    )


def _flat(Y: Float64[np.ndarray, "n K"]) -> np.ndarray:
    return Y[:, 0] if Y.shape[1] == 1 else Y


def _fold_scores(train: Data, test: Data, decays: list[float], settings: dict[str, Any]) -> list[float]:
    """Of every weight decay: minus the mean loss, or the accuracy, on the samples that were held out."""
    points = _path(train, decays, settings, test).points
    if settings["scoring"] == "accuracy":
        return [point.test_accuracy for point in points]
    return [-point.test_loss for point in points]


class ConvexReLURegressorCV(_CrossValidated, ConvexReLURegressor):
    """:class:`ConvexReLURegressor` with its weight decay chosen by cross-validation.

    Each fold follows one regularisation path, every network started at the one before; so does the final fit, down to
    the weight decay with the best mean score.

    Args:
        weight_decays: candidates; None: ``n_weight_decays`` on a geometric grid from the null level to a hundredth.
        n_weight_decays: of the default grid.
        cv: folds, as everywhere in scikit-learn.
        scoring: ``"loss"``: the least mean squared error on the held-out samples.
        n_jobs: folds that are worked on at a time (joblib).
        method: ``"global"``, ``"interior-point"`` or ``"gated"``, see :func:`convexnn.path`.
        n_patterns: random activation patterns of the last two; None: 100, or as many as there can be.
        hidden_bias: give each neuron a bias (penalised like its weights).
        output_bias: give each output a bias (not penalised).
        tol: relative gap at which training stops, at every point.
        max_seconds: time limit of each point.
        random_state: seed of the search for new neurons (int, ``RandomState`` or None).

    Attributes:
        weight_decay_: the one chosen.
        weight_decays_: all of them, falling.
        scores_: a row for each weight decay, a column for each fold; the larger the better.
        path_: :class:`convexnn.solutions.paths.RegularisationPath` on all data, down to the one chosen.
        result_: :class:`convexnn.result.TrainingResult` of the final network.
        network_: ``torch.nn.Sequential(Linear, ReLU, Linear)`` in double precision.
        n_iter_: points of the final path.
        n_features_in_: number of features ``d``.
        feature_names_in_: names of the columns when ``X`` was a data frame.

    """

    def __init__(
        self,
        *,
        weight_decays: Any = None,
        n_weight_decays: Any = 10,
        cv: Any = 5,
        scoring: Any = "loss",
        n_jobs: Any = None,
        method: Any = "global",
        n_patterns: Any = None,
        hidden_bias: Any = True,
        output_bias: Any = True,
        tol: Any = 1e-3,
        max_seconds: Any = None,
        random_state: Any = None,
    ) -> None:
        self.weight_decays = weight_decays
        self.n_weight_decays = n_weight_decays
        self.cv = cv
        self.scoring = scoring
        self.n_jobs = n_jobs
        self.method = method
        self.n_patterns = n_patterns
        self.hidden_bias = hidden_bias
        self.output_bias = output_bias
        self.tol = tol
        self.max_seconds = max_seconds
        self.random_state = random_state


class ConvexReLUClassifierCV(_CrossValidated, ConvexReLUClassifier):
    """:class:`ConvexReLUClassifier` with its weight decay chosen by cross-validation.

    Args and attributes are those of :class:`ConvexReLURegressorCV`, with:

    Args:
        loss: ``"auto"``, ``"logistic"``, ``"hinge"``, ``"squared"``, ``"softmax"``: see :class:`ConvexReLUClassifier`.
        scoring: ``"loss"``: the least mean loss on the held-out samples; ``"accuracy"``: the largest accuracy there, of
            equal ones that of the largest weight decay.

    Attributes:
        classes_: the labels, sorted.

    """

    def __init__(
        self,
        *,
        loss: Any = "auto",
        weight_decays: Any = None,
        n_weight_decays: Any = 10,
        cv: Any = 5,
        scoring: Any = "loss",
        n_jobs: Any = None,
        method: Any = "global",
        n_patterns: Any = None,
        hidden_bias: Any = True,
        output_bias: Any = True,
        tol: Any = 1e-3,
        max_seconds: Any = None,
        random_state: Any = None,
    ) -> None:
        self.loss = loss
        self.weight_decays = weight_decays
        self.n_weight_decays = n_weight_decays
        self.cv = cv
        self.scoring = scoring
        self.n_jobs = n_jobs
        self.method = method
        self.n_patterns = n_patterns
        self.hidden_bias = hidden_bias
        self.output_bias = output_bias
        self.tol = tol
        self.max_seconds = max_seconds
        self.random_state = random_state

    def _labels(self, Y: Float64[np.ndarray, "n K"]) -> Int[np.ndarray, " n"] | None:
        return Y.argmax(axis=1) if Y.shape[1] > 1 else (Y[:, 0] > 0).astype(int)
