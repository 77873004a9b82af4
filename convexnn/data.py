"""Reading what users pass: arrays, tensors and frames become checked float64 tensors."""

from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from convexnn.errors import DeviceError, InvalidInputError, InvalidTypeError
from convexnn.losses import LOSSES, AbstractLoss, AbstractMarginLoss

_MAX_CLASSES = 10_000
_LARGEST = 1e15  # products of larger numbers overflow in single precision


def resolve_device(device: Any) -> torch.device:
    """The torch device, or a DeviceError where this machine does not have it."""
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InvalidInputError(f"device={device!r} is not a torch device; pass 'cpu' or 'cuda'.") from error
    if resolved.type not in ("cpu", "cuda"):
        raise InvalidInputError(f"device={device!r} is not supported; pass 'cpu' or 'cuda'.")
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"device={device!r} was asked for, but torch sees no CUDA device; pass device='cpu'.")
    return resolved


def read_matrix(X: Any, name: str = "X") -> Tensor:
    """A finite, non-empty float64 matrix (n, d)."""
    array = _as_array(X, name)
    if array.ndim != 2:
        hint = " Pass X.reshape(-1, 1) for a single feature." if array.ndim == 1 else ""
        raise InvalidInputError(f"{name} has shape {array.shape}; a matrix (samples, features) is expected.{hint}")
    if 0 in array.shape:
        raise InvalidInputError(f"{name} has shape {array.shape}; at least one sample and one feature are needed.")
    return _as_tensor(array, name)


def read_finite(values: Any, name: str) -> Tensor:
    """Finite float64 numbers of any shape."""
    return _as_tensor(_as_array(values, name), name)


def read_targets(y: Any, n: int, loss: str) -> Tensor:
    """Targets (n, K): real for squared, -1 or +1 for logistic and hinge, rows of the simplex for softmax."""
    array = _as_array(y, "y")
    if array.ndim not in (1, 2) or len(array) != n or array.size == 0:
        raise InvalidInputError(f"y has shape {array.shape}; ({n},) or ({n}, outputs) is expected, as X has {n} rows.")
    if loss == "softmax":
        return _class_targets(array)
    targets = _as_tensor(array, "y")
    targets = targets[:, None] if targets.ndim == 1 else targets
    return _sign_targets(targets, loss) if issubclass(LOSSES[loss], AbstractMarginLoss) else targets


def read_weights(sample_weight: Any, n: int) -> Tensor:
    """Sample weights that sum to one; equal where none are given."""
    if sample_weight is None:
        return torch.full((n,), 1.0 / n, dtype=torch.float64)
    weights = _as_tensor(_as_array(sample_weight, "sample_weight"), "sample_weight")
    if weights.shape != (n,):
        raise InvalidInputError(f"sample_weight has shape {tuple(weights.shape)}; ({n},) is expected.")
    if bool((weights <= 0).any()):
        raise InvalidInputError(
            "sample_weight has entries <= 0; all must be positive. Drop samples of weight zero from X and y."
        )
    return weights / weights.sum()


def read_loss(loss: Any, y: Any, n: int, sample_weight: Any = None) -> AbstractLoss:
    """The loss named, on these targets and weights."""
    if not isinstance(loss, str) or loss not in LOSSES:
        raise InvalidInputError(f"loss={loss!r} is not known; choose one of {', '.join(map(repr, LOSSES))}.")
    return LOSSES[loss](read_targets(y, n, loss), read_weights(sample_weight, n))


def flag(value: Any, name: str) -> bool:
    """True or False; whatever else Python takes for one of them is more likely a mistake."""
    if not isinstance(value, (bool, np.bool_)):
        raise InvalidTypeError(f"{name}={value!r}; True or False is expected.")
    return bool(value)


def positive(value: Any, name: str, *, zero: bool = False) -> float:
    """A finite number above zero (or at least zero), as a float."""
    if isinstance(value, (bool, np.bool_)):
        raise InvalidTypeError(f"{name}={value!r} is not a number.")
    try:
        number = float(value + 0)  # a string that spells a number is no number
    except (TypeError, ValueError) as error:
        raise InvalidTypeError(f"{name}={value!r} is not a number.") from error
    if not np.isfinite(number) or number < 0 or (number == 0 and not zero):
        raise InvalidInputError(f"{name}={value!r}; a finite number {'>= 0' if zero else '> 0'} is expected.")
    return number


def _as_array(data: Any, name: str) -> np.ndarray:
    if isinstance(data, Tensor):
        if data.layout != torch.strided:
            raise InvalidTypeError(f"{name} is a sparse tensor; a dense one is expected: pass {name}.to_dense().")
        if data.is_meta or data.is_quantized:
            kind = "without values (device 'meta')" if data.is_meta else f"of type {data.dtype}"
            raise InvalidTypeError(f"{name} is a tensor {kind}; a tensor of real numbers is expected.")
        data = data.detach().cpu()
        data = (data.double() if data.is_floating_point() else data).numpy()  # numpy has no bfloat16
    if np.ma.is_masked(data):  # numpy would hand out what lies under the mask
        raise InvalidInputError(f"{name} has {np.ma.count_masked(data)} masked entries; impute or drop them first.")
    if sparse.issparse(data):
        raise InvalidTypeError(f"{name} is a sparse matrix; a dense one is expected: pass {name}.toarray().")
    try:
        array = np.asarray(data)
    except ValueError as error:
        raise InvalidInputError(f"{name} cannot be read as an array: {error}") from error
    if array.dtype.kind not in "fiub":
        array = _from_objects(array, name)
    return array


def _from_objects(array: np.ndarray, name: str) -> np.ndarray:
    """Frames of mixed columns arrive as objects; strings and complex numbers are refused."""
    if array.dtype.kind == "O":
        try:
            return array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise InvalidTypeError(f"{name} has entries that are not numbers ({error}); encode them first.") from error
    raise InvalidTypeError(f"{name} has entries of type {array.dtype}; real numbers are expected. Encode them first.")


def _as_tensor(array: np.ndarray, name: str) -> Tensor:
    values = torch.tensor(np.ascontiguousarray(array, dtype=np.float64))
    if not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values)).sum())
        raise InvalidInputError(f"{name} has {bad} entries that are NaN or infinite; impute or drop them first.")
    if values.numel() and float(values.abs().max()) > _LARGEST:
        largest = float(values.abs().max())
        raise InvalidInputError(
            f"{name} has entries as large as {largest:g}; at most {_LARGEST:g} is expected. Rescale it."
        )
    return values


def _sign_targets(targets: Tensor, loss: str) -> Tensor:
    if targets.shape[1] != 1:
        raise InvalidInputError(f"y has {targets.shape[1]} columns; loss={loss!r} takes one. Use loss='softmax'.")
    found = torch.unique(targets)
    if len(found) == 1:
        raise InvalidInputError(f"y has one class only ({float(found[0]):g}); two classes are needed.")
    if found.tolist() not in ([-1.0, 1.0], [0.0, 1.0]):
        shown = ", ".join(f"{value:g}" for value in found[:5].tolist())
        raise InvalidInputError(f"y has values {shown}; loss={loss!r} expects -1 and +1 (or 0 and 1).")
    return torch.where(targets > 0, 1.0, -1.0).to(torch.float64)


def _class_targets(array: np.ndarray) -> Tensor:
    if array.ndim == 2 and array.shape[1] > 1:
        return _simplex_targets(_as_tensor(array, "y"))
    values = _as_tensor(array.reshape(-1), "y").numpy()
    labels = np.rint(values)
    if (labels != values).any() or labels.min() < 0 or labels.max() >= _MAX_CLASSES:
        raise InvalidInputError(
            f"y has labels from {values.min():g} to {values.max():g}; loss='softmax' expects integers 0 to K-1 "
            f"with K at most {_MAX_CLASSES}, or rows of probabilities. ConvexReLUClassifier encodes any labels."
        )
    present = np.unique(labels).astype(np.int64)
    if len(present) == 1:
        raise InvalidInputError(f"y has one class only ({present[0]}); two or more are needed.")
    if len(present) != present[-1] + 1:
        raise InvalidInputError(
            f"y has {len(present)} distinct labels up to {present[-1]}; every class 0 to K-1 must occur. "
            "ConvexReLUClassifier encodes any labels."
        )
    return torch.nn.functional.one_hot(torch.tensor(labels.astype(np.int64))).to(torch.float64)


def _simplex_targets(targets: Tensor) -> Tensor:
    if bool((targets < 0).any()) or bool(((targets.sum(1) - 1).abs() > 1e-9).any()):
        raise InvalidInputError("y has rows that are not probabilities; loss='softmax' expects rows >= 0 with sum 1.")
    if int((targets.sum(0) > 0).sum()) < 2:
        raise InvalidInputError("y puts all its weight on one class; two or more are needed.")
    return targets
