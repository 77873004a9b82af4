"""The data of the demo: two classics that ship with scikit-learn, split into training and held-out parts."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64, Int
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import train_test_split

from convexnn.saving import Standardisation


@dataclass(frozen=True)
class Case:
    """One problem of the demo and how it is trained and attacked."""

    key: str
    title: str
    about: str
    X: Float64[np.ndarray, "n d"]
    y: Int[np.ndarray, " n"]  # class numbers
    X_test: Float64[np.ndarray, "m d"]
    y_test: Int[np.ndarray, " m"]
    features: tuple[str, ...]
    classes: tuple[str, ...]
    weight_decay: float
    tol: float
    max_seconds: float  # for training; judging Adam's network gets a quarter of it
    eps: tuple[float, ...]  # radii of the l_inf balls
    eps_unit: str
    domain: tuple[float, float] | None = None
    image_shape: tuple[int, int] | None = None
    adam_steps: int = 2000
    proof_seconds: float = 15.0  # for a proved bound, where the loss has one

    @property
    def loss(self) -> str:
        """Logistic for two classes, softmax for more."""
        return "logistic" if len(self.classes) == 2 else "softmax"

    def targets(self) -> Float64[np.ndarray, "n"] | Float64[np.ndarray, "n K"]:
        """Training targets as the trainer wants them: -1 and +1, or one-hot."""
        if len(self.classes) == 2:
            return np.where(self.y == 1, 1.0, -1.0)
        return np.eye(len(self.classes))[self.y]


def breast_cancer() -> Case:
    """569 tumours, 30 measurements, standardised; class 1 is benign."""
    data = load_breast_cancer()
    X, X_test, y, y_test = train_test_split(
        data.data, data.target, test_size=0.25, random_state=0, stratify=data.target
    )
    scaling = Standardisation.of(X)
    return Case(
        key="breast-cancer",
        title="Breast cancer",
        about="Is a tumour malignant or benign? 30 measurements of cell nuclei (Wisconsin diagnostic data), "
        "standardised.",
        X=scaling.apply(X),
        y=y.astype(np.int64),
        X_test=scaling.apply(X_test),
        y_test=y_test.astype(np.int64),
        features=tuple(str(name) for name in data.feature_names),
        classes=tuple(str(name) for name in data.target_names),
        weight_decay=1e-2,
        tol=1e-4,
        max_seconds=30.0,
        eps=tuple(float(e) for e in np.round(np.arange(0, 0.51, 0.05), 2)),
        eps_unit="standard deviations",
    )


def digits() -> Case:
    """1797 handwritten digits, 8 x 8 pixels in [0, 1]."""
    data = load_digits()
    X, X_test, y, y_test = train_test_split(
        data.data / 16.0, data.target, test_size=0.25, random_state=0, stratify=data.target
    )
    return Case(
        key="digits",
        title="Handwritten digits",
        about="Which digit is it? Images of 8 by 8 pixels with values from 0 to 1.",
        X=X,
        y=y.astype(np.int64),
        X_test=X_test,
        y_test=y_test.astype(np.int64),
        features=tuple(str(name) for name in data.feature_names),
        classes=tuple(str(name) for name in data.target_names),
        weight_decay=1e-2,
        tol=1e-3,
        max_seconds=45.0,
        eps=tuple(float(e) for e in np.round(np.arange(0, 0.161, 0.02), 2)),
        eps_unit="pixel value",
        domain=(0.0, 1.0),
        image_shape=(8, 8),
    )


def small(case: Case, n: int = 120) -> Case:
    """A version for a quick look: few samples, loose tolerance, few steps."""
    return replace(
        case,
        X=case.X[:n],
        y=case.y[:n],
        X_test=case.X_test[:40],
        y_test=case.y_test[:40],
        tol=1e-2,
        max_seconds=2.0,
        eps=case.eps[::4],
        adam_steps=200,
        proof_seconds=2.0,
    )
