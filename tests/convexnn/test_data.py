"""Bad input raises a typed error that says what was given, what was expected and what to do."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from convexnn.data import positive, read_loss, read_matrix, read_targets, read_weights, resolve_device
from convexnn.errors import ConvexNNError, DeviceError, InvalidInputError, InvalidTypeError, UnsupportedNetworkError
from convexnn.gap import optimality_gap
from convexnn.losses import LOSSES
from convexnn.training import train

X = np.random.default_rng(0).standard_normal((6, 2))
Y = np.arange(6.0)
SIGNS = np.array([1, -1, 1, -1, 1, -1])


def with_entry(array, value):
    array = np.array(array, dtype=np.asarray(value).dtype if isinstance(value, (str, complex)) else float)
    array[(0,) * array.ndim] = value
    return array


MATRICES = {
    "NaN": (with_entry(X, np.nan), InvalidInputError, "X has 1 entries that are NaN"),
    "infinite": (with_entry(X, -np.inf), InvalidInputError, "X has 1 entries that are NaN or infinite"),
    "huge": (with_entry(X, 1e200), InvalidInputError, "X has entries as large as 1e\\+200.*Rescale"),
    "masked": (pd.DataFrame({"a": [1.0, None, 2.0]}), InvalidInputError, "impute or drop"),
    "no rows": (np.zeros((0, 2)), InvalidInputError, "\\(0, 2\\); at least one sample"),
    "no columns": (np.zeros((6, 0)), InvalidInputError, "\\(6, 0\\); at least one sample and one feature"),
    "vector": (X[:, 0], InvalidInputError, "\\(6,\\).*reshape\\(-1, 1\\)"),
    "number": (3.0, InvalidInputError, "shape \\(\\)"),
    "cube": (np.zeros((2, 2, 2)), InvalidInputError, "\\(2, 2, 2\\); a matrix"),
    "ragged": ([[1.0], [1.0, 2.0]], InvalidInputError, "cannot be read"),
    "complex": (X + 1j, InvalidTypeError, "complex128; real numbers"),
    "strings": (np.full((6, 2), "a"), InvalidTypeError, "Encode"),
    "objects": (np.array([["a", 1], [2, 3]], dtype=object), InvalidTypeError, "not numbers"),
    "dates": (np.full((6, 2), np.datetime64("2020-01-01")), InvalidTypeError, "datetime64"),
    "none": (None, ConvexNNError, "X"),
    "sparse": (sparse.csr_matrix(X), ConvexNNError, "X"),
    "sparse tensor": (torch.eye(3).to_sparse(), ConvexNNError, "X"),
    "no values": (torch.zeros((2, 2), device="meta"), InvalidTypeError, "meta"),
    "under a mask": (np.ma.masked_greater(X, 0.0), InvalidInputError, "masked entries; impute"),
    "text column": (pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]}), InvalidTypeError, "X has entries"),
}


@pytest.mark.parametrize("kind", MATRICES)
def test_bad_matrix(kind):
    given, error, message = MATRICES[kind]
    with pytest.raises(error, match=message):
        read_matrix(given)


@pytest.mark.parametrize(
    "given",
    [
        X,
        X.tolist(),
        torch.from_numpy(X),
        torch.from_numpy(X).to(torch.bfloat16),
        torch.from_numpy(X).requires_grad_(),
        pd.DataFrame(X),
        pd.DataFrame(X).convert_dtypes(),
        X.astype(object),
        X > 0,
        X.astype(np.int8),
        X.astype(np.float128) if hasattr(np, "float128") else X,
        np.ma.array(X),
    ],
    ids=lambda given: type(given).__name__ + str(getattr(given, "dtype", "")),
)
def test_good_matrix(given):
    read = read_matrix(given)
    assert read.shape == (6, 2)
    assert read.dtype == torch.float64


def test_reading_copies():
    read = read_matrix(X)
    read[0, 0] = 100.0
    assert X[0, 0] != 100.0


TARGETS = {
    ("squared", "NaN"): (with_entry(Y, np.nan), "y has 1 entries"),
    ("squared", "short"): (Y[:5], "\\(5,\\); \\(6,\\).*X has 6 rows"),
    ("squared", "cube"): (np.zeros((6, 1, 1)), "\\(6, 1, 1\\)"),
    ("squared", "no outputs"): (np.zeros((6, 0)), "\\(6, 0\\)"),
    ("squared", "number"): (3.0, "shape \\(\\)"),
    ("logistic", "one class"): (np.ones(6), "one class only \\(1\\)"),
    ("logistic", "three classes"): (np.arange(6) % 3, "values 0, 1, 2.*-1 and \\+1"),
    ("logistic", "other labels"): (np.arange(6) % 2 + 1, "values 1, 2"),
    ("logistic", "two columns"): (np.stack([SIGNS, -SIGNS], 1), "2 columns.*softmax"),
    ("logistic", "wrapped"): (SIGNS.astype(np.uint8), "values 1, 255"),
    ("hinge", "one class"): (-np.ones(6), "one class only \\(-1\\)"),
    ("hinge", "real"): (Y / 3, "-1 and \\+1"),
    ("softmax", "one class"): (np.zeros(6), "one class only"),
    ("softmax", "fractions"): (Y / 2, "integers 0 to K-1"),
    ("softmax", "negative"): (Y - 1, "labels from -1 to 4"),
    ("softmax", "overflow"): (np.where(Y > 2, 2**40, 0), "labels from 0 to 1.09951e\\+12.*ConvexReLUClassifier"),
    ("softmax", "largest integer"): (np.where(Y > 2, 2**63 - 1, 0), "y has"),
    ("softmax", "wrapped"): (np.array([0, 1, 2, 0, 1, -1]).astype(np.uint8), "6? ?distinct|every class"),
    ("softmax", "gap"): (np.array([0, 1, 3, 0, 1, 3]), "3 distinct labels up to 3; every class"),
    ("softmax", "NaN"): (with_entry(Y, np.nan), "NaN"),
    ("softmax", "no probabilities"): (np.full((6, 3), 0.4), "rows >= 0 with sum 1"),
    ("softmax", "negative probabilities"): (np.tile([1.5, -0.5], (6, 1)), "rows >= 0"),
    ("softmax", "one class of rows"): (np.tile([1.0, 0.0], (6, 1)), "one class"),
}


@pytest.mark.parametrize("case", TARGETS, ids="-".join)
def test_bad_targets(case):
    given, message = TARGETS[case]
    with pytest.raises(InvalidInputError, match=message):
        read_targets(given, 6, case[0])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("given", [np.full(6, "a"), Y + 1j, np.array(["a", 1, 2, 3, 4, 5], dtype=object)])
def test_targets_of_the_wrong_type(loss, given):
    with pytest.raises(InvalidTypeError, match="y has entries"):
        read_targets(given, 6, loss)


def test_good_targets():
    assert read_targets(Y, 6, "squared").shape == (6, 1)
    assert read_targets(np.stack([Y, Y], 1), 6, "squared").shape == (6, 2)
    for given in (SIGNS, SIGNS > 0, (SIGNS + 1) // 2, SIGNS.astype(np.int8), SIGNS[:, None], pd.Series(SIGNS)):
        assert read_targets(given, 6, "logistic")[:, 0].tolist() == SIGNS.tolist()
    for given in (np.arange(6) % 3, (np.arange(6) % 3).astype(np.uint8), np.arange(6) % 3 * 1.0):
        assert read_targets(given, 6, "softmax").argmax(1).tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.ones(5), "\\(5,\\); \\(6,\\)"),
        (np.ones((6, 1)), "\\(6, 1\\)"),
        (with_entry(np.ones(6), 0.0), "<= 0.*Drop"),
        (with_entry(np.ones(6), -1.0), "<= 0"),
        (with_entry(np.ones(6), np.nan), "NaN"),
    ],
)
def test_bad_weights(given, message):
    with pytest.raises(InvalidInputError, match=message):
        read_weights(given, 6)


def test_good_weights():
    assert read_weights(None, 4).tolist() == [0.25] * 4
    assert read_weights([1, 3], 2).tolist() == [0.25, 0.75]


@pytest.mark.parametrize("value", [0, 0.0, -1.0, np.nan, np.inf, -np.inf])
def test_not_positive(value):
    with pytest.raises(InvalidInputError, match="weight_decay=.*finite number > 0"):
        positive(value, "weight_decay")


@pytest.mark.parametrize("value", ["0.1", "small", None, [0.1], {}, 1j])
def test_not_a_number(value):
    with pytest.raises(InvalidTypeError, match="weight_decay=.* is not a number"):
        positive(value, "weight_decay")


def test_positive():
    for value in (0.5, np.float32(0.5), torch.tensor(0.5), np.array(0.5)):
        assert positive(value, "tol") == 0.5
    assert positive(0, "tol", zero=True) == 0.0


@pytest.mark.usefixtures("unchecked")
def test_devices():
    assert resolve_device("cpu") == torch.device("cpu")
    for given in ("gpu", "cpu:x", "", "mps", "meta", 3.5, None):
        with pytest.raises(ConvexNNError, match="device"):
            resolve_device(given)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_absent_device():
    with pytest.raises(DeviceError, match="torch sees no CUDA device; pass device='cpu'"):
        train(X, Y, weight_decay=0.1, device="cuda")


OPTIONS = {
    "loss": ({"loss": "absolute"}, InvalidInputError, "'absolute' is not known; choose one of 'squared'"),
    "loss list": ({"loss": ["squared"]}, ConvexNNError, "loss"),
    "method": ({"method": "adam"}, InvalidInputError, "'adam' is not known; choose one of 'global'"),
    "weight_decay zero": ({"weight_decay": 0.0}, InvalidInputError, "weight_decay=0.0"),
    "weight_decay negative": ({"weight_decay": -1}, InvalidInputError, "weight_decay=-1"),
    "weight_decay NaN": ({"weight_decay": float("nan")}, InvalidInputError, "weight_decay=nan"),
    "weight_decay text": ({"weight_decay": "0.1"}, InvalidTypeError, "weight_decay='0.1' is not a number"),
    "weight_decay none": ({"weight_decay": None}, InvalidTypeError, "weight_decay=None"),
    "weight_decay true": ({"weight_decay": True}, InvalidTypeError, "weight_decay=True is not a number"),
    "hidden_bias text": ({"hidden_bias": "no"}, InvalidTypeError, "hidden_bias='no'; True or False"),
    "output_bias number": ({"output_bias": 0}, InvalidTypeError, "output_bias=0; True or False"),
    "tol negative": ({"tol": -1e-4}, InvalidInputError, "tol"),
    "tol NaN": ({"tol": float("nan")}, InvalidInputError, "tol"),
    "tol text": ({"tol": "tight"}, InvalidTypeError, "tol"),
    "max_seconds": ({"max_seconds": 0}, InvalidInputError, "max_seconds"),
    "max_rounds": ({"max_rounds": 0}, InvalidInputError, "max_rounds=0; an integer of at least 1"),
    "max_rounds text": ({"max_rounds": "many"}, ConvexNNError, "max_rounds"),
    "max_rounds none": ({"max_rounds": None}, ConvexNNError, "max_rounds"),
    "max_rounds NaN": ({"max_rounds": float("nan")}, ConvexNNError, "max_rounds"),
    "dtype": ({"dtype": torch.float16}, InvalidInputError, "float16"),
    "dtype int": ({"dtype": torch.int64}, InvalidInputError, "int64"),
    "random_state text": ({"random_state": "seed"}, InvalidInputError, "random_state='seed'"),
    "random_state negative": ({"random_state": -1}, InvalidInputError, "random_state=-1"),
    "random_state huge": ({"random_state": 2**32}, InvalidInputError, "random_state"),
    "random_state real": ({"random_state": 0.5}, InvalidInputError, "random_state"),
    "device": ({"device": "gpu"}, InvalidInputError, "device='gpu'"),
    "device meta": ({"device": "meta"}, ConvexNNError, "device"),
    "sample_weight": ({"sample_weight": np.ones(4)}, InvalidInputError, "sample_weight"),
    "warm_start type": ({"warm_start": "net.pt"}, UnsupportedNetworkError, "str"),
    "warm_start form": ({"warm_start": torch.nn.Linear(2, 1)}, UnsupportedNetworkError, "Linear, ReLU, Linear"),
}


OF_TRAINING = (
    "method",
    "dtype",
    "max_rounds",
    "warm_start",
    "hidden_bias",
    "output_bias",
)  # options that optimality_gap does not take


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", OPTIONS)
def test_bad_options(kind):
    options, error, message = OPTIONS[kind]
    with pytest.raises(error, match=message):
        train(X, Y, **{"weight_decay": 0.1, **options})


def network(d, K, hidden_bias=True, output_bias=True):
    first, last = torch.nn.Linear(d, 4, bias=hidden_bias), torch.nn.Linear(4, K, bias=output_bias)
    return torch.nn.Sequential(first, torch.nn.ReLU(), last)


@pytest.mark.parametrize(("d", "K"), [(3, 1), (1, 1), (2, 2)])
def test_networks_that_do_not_fit(d, K):
    with pytest.raises(InvalidInputError, match="inputs .* and .* outputs; the data have 3 and 1"):
        train(X, Y, weight_decay=0.1, warm_start=network(d, K))
    with pytest.raises(InvalidInputError, match="outputs; the data have"):
        optimality_gap(network(d, K), X, Y, weight_decay=0.1)


def test_warm_starts_with_a_bias_that_is_not_trained():
    with pytest.raises(InvalidInputError, match="first-layer bias, but hidden_bias=False"):
        train(X, Y, weight_decay=0.1, hidden_bias=False, warm_start=network(2, 1))
    with pytest.raises(InvalidInputError, match="output bias, but output_bias=False"):
        train(X, Y, weight_decay=0.1, output_bias=False, warm_start=network(2, 1))


def test_networks_with_bad_weights():
    bad = network(2, 1)
    torch.nn.init.constant_(bad[0].weight, float("nan"))
    with pytest.raises(InvalidInputError, match="network.*NaN"):
        train(X, Y, weight_decay=0.1, warm_start=bad)
    with pytest.raises(InvalidInputError, match="network.*NaN"):
        optimality_gap(bad, X, Y, weight_decay=0.1)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", [kind for kind in OPTIONS if not set(OPTIONS[kind][0]) & set(OF_TRAINING)])
def test_bad_options_of_the_gap(kind):
    options, error, message = OPTIONS[kind]
    with pytest.raises(error, match=message):
        optimality_gap(network(2, 1), X, Y, **{"weight_decay": 0.1, **options})


def test_unknown_loss_is_named():
    with pytest.raises(InvalidInputError, match="'squared', 'logistic', 'hinge', 'softmax'"):
        read_loss("huber", Y, 6)
