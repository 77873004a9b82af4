"""scikit-learn estimators around :func:`convexnn.train`.

Thin on purpose: they check the data, bring it into one canonical order, call the trainer and keep
its answer. Everything about optimality is in ``result_``. As scikit-learn asks, hyperparameters are
only stored on construction; ``fit`` checks them.
"""

import warnings
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from convexnn.errors import InvalidInputError, InvalidTypeError
from convexnn.network import layers_of
from convexnn.result import Status, TrainingResult
from convexnn.robust.training import Robust
from convexnn.rows import merge_rows
from convexnn.training import train

BINARY_LOSSES = ("logistic", "hinge", "squared")
MULTICLASS_LOSSES = ("softmax", "squared")
PROBABILITY_LOSSES = ("auto", "logistic", "softmax")


class _ConvexReLU(BaseEstimator):
    """What both estimators share: hyperparameters, training on canonical rows, raw predictions."""

    loss: str
    weight_decay: float
    method: str
    n_patterns: int | None
    refine: bool
    hidden_bias: bool
    output_bias: bool
    tol: float
    max_seconds: float | None
    device: str
    random_state: Any
    verbose: bool
    robust_eps: Any
    robust_norm: str
    robust_cones: str

    result_: TrainingResult
    network_: torch.nn.Sequential
    n_iter_: int
    n_features_in_: int

    def _train(
        self,
        X: Float64[np.ndarray, "n d"],
        Y: Float64[np.ndarray, "n K"],
        weights: Float64[np.ndarray, " n"],
        loss: str,
    ) -> None:
        """Train on data that were checked; sets result_, network_ and n_iter_."""
        X, Y, weights = merge_rows(X, Y, weights)
        self.result_ = train(
            X,
            Y[:, 0] if Y.shape[1] == 1 else Y,
            loss=loss,
            weight_decay=self.weight_decay,
            method=self.method,
            n_patterns=self.n_patterns,
            refine=self.refine,
            hidden_bias=self.hidden_bias,
            output_bias=self.output_bias,
            tol=self.tol,
            max_seconds=self.max_seconds,
            sample_weight=None if (weights == weights[0]).all() else weights * (len(weights) / weights.sum()),
            device=self.device,
            random_state=self.random_state,
            progress=self.verbose,
            robust=self._robust(),
        )
        if self.result_.status not in (Status.CONVERGED, Status.SOLVED, Status.NULL):
            warnings.warn(
                f"{self.result_.status.value} Its gap is {self.result_.gap:.1e}, above tol={self.tol:g}. Raise "
                "max_seconds, tol or weight_decay, or scale the features and targets.",
                ConvergenceWarning,
                stacklevel=3,
            )
        self.network_ = self.result_.network
        self.n_iter_ = max(1, self.result_.n_rounds)

    def _robust(self) -> Robust | None:
        """The ball to train against, if there is one."""
        if self.robust_eps is None:
            return None
        return Robust(self.robust_eps, self.robust_norm, self.robust_cones)

    def _outputs(self, X: Any) -> Float64[np.ndarray, "n K"]:
        """Network outputs at new samples."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        weight = layers_of(self.network_)[0].weight
        with torch.no_grad():
            return self.network_(torch.tensor(X, dtype=weight.dtype, device=weight.device)).double().cpu().numpy()


class ConvexReLURegressor(RegressorMixin, _ConvexReLU):
    """Regression by a two-layer ReLU network trained to its global optimum.

    Minimises ``(1/n) sum_i ||f(x_i) - y_i||^2 / 2 + (weight_decay/2) (sum of squared weights)`` over
    networks of any width; the output bias is not penalised. Scale the features first (a
    ``StandardScaler`` in a pipeline): weight decay treats all of them alike.

    Args:
        weight_decay: positive weight of the penalty, in the units of the loss.
        method: training method, see :func:`convexnn.train`.
        n_patterns: random activation patterns of the methods that fix them; None: 100, or as many as there can be.
        refine: add patterns to those until nothing improves.
        hidden_bias: give each neuron a bias (penalised like its weights).
        output_bias: give each output a bias (not penalised).
        tol: relative gap at which training stops.
        max_seconds: time limit; on reaching it the best network so far is kept, with its gap.
        device: torch device of training and prediction.
        random_state: seed of the search for new neurons (int, ``RandomState`` or None).
        verbose: show a progress bar.
        robust_eps: radius, or radii of the features, of perturbations to train against; see :class:`convexnn.Robust`.
        robust_norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        robust_cones: ``"soft"`` or ``"hard"``.

    Attributes:
        result_: :class:`convexnn.result.TrainingResult`: objective, bound, its kind, gap, status, trace.
        network_: ``torch.nn.Sequential(Linear, ReLU, Linear)`` in double precision.
        n_iter_: rounds of training.
        n_features_in_: number of features ``d``.
        feature_names_in_: names of the columns when ``X`` was a data frame.

    """

    def __init__(
        self,
        *,
        weight_decay: Any = 1e-3,
        method: Any = "global",
        n_patterns: Any = None,
        refine: Any = False,
        hidden_bias: Any = True,
        output_bias: Any = True,
        tol: Any = 1e-4,
        max_seconds: Any = None,
        device: Any = "cpu",
        random_state: Any = None,
        verbose: Any = False,
        robust_eps: Any = None,
        robust_norm: Any = "linf",
        robust_cones: Any = "soft",
    ) -> None:
        self.weight_decay = weight_decay
        self.method = method
        self.n_patterns = n_patterns
        self.refine = refine
        self.hidden_bias = hidden_bias
        self.output_bias = output_bias
        self.tol = tol
        self.max_seconds = max_seconds
        self.device = device
        self.random_state = random_state
        self.verbose = verbose
        self.robust_eps = robust_eps
        self.robust_norm = robust_norm
        self.robust_cones = robust_cones

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "ConvexReLURegressor":
        """Train.

        Args:
            X: samples, ``(n, d)``.
            y: targets, ``(n,)`` or ``(n, K)``.
            sample_weight: non-negative weights ``(n,)``; the loss is their weighted mean.

        Returns:
            The fitted estimator.

        Raises:
            ValueError: for NaN, infinity, empty data or shapes that do not fit.

        """
        X, y = validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True)
        y = np.asarray(y, dtype=np.float64)
        self._y_is_flat = y.ndim == 1
        self._train(X, y.reshape(len(y), -1), _weights(sample_weight, X), "squared")
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Predictions, ``(n,)`` or ``(n, K)`` as in training."""
        outputs = self._outputs(X)
        return outputs[:, 0] if self._y_is_flat else outputs

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _has_probabilities(estimator: "ConvexReLUClassifier") -> bool:
    """Whether the loss models probabilities; raises the error that available_if shows."""
    if estimator.loss in PROBABILITY_LOSSES:
        return True
    raise AttributeError(
        f"predict_proba needs a loss that models probabilities, one of {PROBABILITY_LOSSES}, "
        f"but loss={estimator.loss!r}; use decision_function, or choose another loss"
    )


class ConvexReLUClassifier(ClassifierMixin, _ConvexReLU):
    """Classification by a two-layer ReLU network trained to its global optimum.

    Two classes: one output, and ``classes_[1]`` is predicted where it is positive. More classes: one
    output each, the largest wins. Scale the features first (a ``StandardScaler`` in a pipeline).

    Args:
        loss: ``"auto"`` is ``"logistic"`` for two classes and ``"softmax"`` for more; otherwise
            ``"logistic"``, ``"hinge"`` or ``"squared"`` (targets -1 and +1) for two classes,
            ``"softmax"`` or ``"squared"`` (one-hot targets) for more.
        weight_decay: positive weight of the penalty, in the units of the loss.
        method: training method, see :func:`convexnn.train`.
        n_patterns: random activation patterns of the methods that fix them; None: 100, or as many as there can be.
        refine: add patterns to those until nothing improves.
        hidden_bias: give each neuron a bias (penalised like its weights).
        output_bias: give each output a bias (not penalised).
        tol: relative gap at which training stops.
        max_seconds: time limit; on reaching it the best network so far is kept, with its gap.
        device: torch device of training and prediction.
        random_state: seed of the search for new neurons (int, ``RandomState`` or None).
        verbose: show a progress bar.
        robust_eps: radius, or radii of the features, of perturbations to train against; see :class:`convexnn.Robust`.
        robust_norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        robust_cones: ``"soft"`` or ``"hard"``.

    Attributes:
        result_: :class:`convexnn.result.TrainingResult`: objective, bound, its kind, gap, status, trace.
        network_: ``torch.nn.Sequential(Linear, ReLU, Linear)`` in double precision.
        classes_: the labels, sorted.
        n_iter_: rounds of training.
        n_features_in_: number of features ``d``.
        feature_names_in_: names of the columns when ``X`` was a data frame.

    """

    classes_: np.ndarray

    def __init__(
        self,
        *,
        loss: Any = "auto",
        weight_decay: Any = 1e-3,
        method: Any = "global",
        n_patterns: Any = None,
        refine: Any = False,
        hidden_bias: Any = True,
        output_bias: Any = True,
        tol: Any = 1e-4,
        max_seconds: Any = None,
        device: Any = "cpu",
        random_state: Any = None,
        verbose: Any = False,
        robust_eps: Any = None,
        robust_norm: Any = "linf",
        robust_cones: Any = "soft",
    ) -> None:
        self.loss = loss
        self.weight_decay = weight_decay
        self.method = method
        self.n_patterns = n_patterns
        self.refine = refine
        self.hidden_bias = hidden_bias
        self.output_bias = output_bias
        self.tol = tol
        self.max_seconds = max_seconds
        self.device = device
        self.random_state = random_state
        self.verbose = verbose
        self.robust_eps = robust_eps
        self.robust_norm = robust_norm
        self.robust_cones = robust_cones

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "ConvexReLUClassifier":
        """Train.

        Args:
            X: samples, ``(n, d)``.
            y: labels of any kind that sorts, ``(n,)``.
            sample_weight: non-negative weights ``(n,)``; the loss is their weighted mean.

        Returns:
            The fitted estimator.

        Raises:
            ValueError: for NaN, infinity, empty data, shapes that do not fit, fewer than two
                classes, or a loss that does not fit the number of classes.

        """
        X, y = validate_data(self, X, y, dtype=np.float64)
        try:
            check_classification_targets(y)
            self.classes_, codes = np.unique(y, return_inverse=True)
        except TypeError as error:
            raise InvalidTypeError(f"y has labels that cannot be sorted ({error}); use labels of one type") from error
        weights = _weights(sample_weight, X)
        _need_two_classes(codes[weights > 0])
        loss = _choose_loss(self.loss, len(self.classes_))
        self._train(X, _encode(codes, len(self.classes_)), weights, loss)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Network outputs: ``(n,)`` for two classes (positive means ``classes_[1]``), else ``(n, K)``."""
        outputs = self._outputs(X)
        return outputs[:, 0] if len(self.classes_) == 2 else outputs

    def predict(self, X: Any) -> np.ndarray:
        """Predicted labels, ``(n,)``."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)]

    @available_if(_has_probabilities)
    def predict_proba(self, X: Any) -> Float64[np.ndarray, "n K"]:
        """Probabilities of the classes in the order of ``classes_``, ``(n, K)``; logistic or softmax only."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            scores = np.column_stack([np.zeros_like(scores), scores])
        return torch.softmax(torch.from_numpy(scores), dim=1).numpy()


def _weights(sample_weight: Any, X: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, " n"]:
    """Checked weights, one per sample; ones for None."""
    return np.asarray(_check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True))


def _need_two_classes(codes: Int[np.ndarray, " n"]) -> None:
    """Refuse data in which fewer than two classes carry weight."""
    n_classes = len(np.unique(codes))
    if n_classes < 2:
        raise InvalidInputError(
            "a classifier needs at least 2 classes in y with positive sample_weight, but got "
            f"{n_classes} class; check the labels and the weights"
        )


def _choose_loss(loss: str, n_classes: int) -> str:
    """The trainer's loss for this many classes."""
    allowed = BINARY_LOSSES if n_classes == 2 else MULTICLASS_LOSSES
    if loss == "auto":
        return allowed[0]
    if loss not in allowed:
        raise InvalidInputError(f"loss={loss!r} does not fit {n_classes} classes; use 'auto' or one of {allowed}")
    return loss


def _encode(codes: Int[np.ndarray, " n"], n_classes: int) -> Float64[np.ndarray, "n K"]:
    """Two classes: one column of -1 and +1; more: one-hot."""
    if n_classes == 2:
        return np.where(codes == 1, 1.0, -1.0)[:, None]
    return np.eye(n_classes)[codes]
