"""The estimators: scikit-learn's own contract, and what the attributes promise."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from convexnn.errors import InvalidInputError, InvalidTypeError
from convexnn.estimators import ConvexReLUClassifier, ConvexReLURegressor, merge_rows

# Loose and small on purpose: these checks ask for the estimator contract, not for accuracy.
CHECKED = [
    ConvexReLURegressor(weight_decay=0.3, tol=1e-1),
    ConvexReLUClassifier(weight_decay=0.1, tol=1e-2),
]


@parametrize_with_checks(CHECKED)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def small_problem(seed=0, n=60, d=3):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    return X, np.abs(X[:, 0]) - X[:, 1] + 0.1 * rng.standard_normal(n)


def test_regressor_agrees_with_its_network():
    X, y = small_problem()
    model = ConvexReLURegressor(weight_decay=1e-2, tol=1e-3, random_state=0).fit(X, y)
    with torch.no_grad():
        expected = model.network_(torch.from_numpy(X))[:, 0].numpy()
    np.testing.assert_array_equal(model.predict(X), expected)
    assert model.result_.network is model.network_
    assert model.score(X, y) > 0.9


def test_objective_is_the_formula_of_the_documentation():
    X, y = small_problem()
    model = ConvexReLURegressor(weight_decay=1e-2, tol=1e-3, random_state=0).fit(X, y)
    inner, outer = model.network_[0], model.network_[2]
    squares = sum(float((p.detach() ** 2).sum()) for p in (inner.weight, inner.bias, outer.weight))
    objective = np.mean((model.predict(X) - y) ** 2) / 2 + 1e-2 / 2 * squares
    assert model.result_.objective == pytest.approx(objective, rel=1e-12)
    assert model.result_.bound <= objective


def test_two_outputs_keep_their_shape():
    X, y = small_problem()
    Y = np.column_stack([y, -2 * y])
    model = ConvexReLURegressor(weight_decay=0.1, tol=1e-1, random_state=0).fit(X, Y)
    assert model.predict(X).shape == Y.shape
    assert model.network_[2].out_features == 2


@pytest.mark.parametrize("loss", ["logistic", "hinge", "squared"])
def test_binary_has_one_output_positive_for_the_second_class(loss):
    X, y = small_problem()
    labels = np.where(y > 0, "yes", "no")
    model = ConvexReLUClassifier(loss=loss, weight_decay=1e-2, tol=1e-2, random_state=0).fit(X, labels)
    assert model.network_[2].out_features == 1
    assert model.classes_.tolist() == ["no", "yes"]
    np.testing.assert_array_equal(model.predict(X) == "yes", model.decision_function(X) > 0)
    assert model.score(X, labels) > 0.9


@pytest.mark.parametrize("loss", ["softmax", "squared"])
def test_many_classes_take_the_largest_output(loss):
    X, y = load_iris(return_X_y=True)
    labels = np.array(["setosa", "versicolor", "virginica"])[y]
    model = ConvexReLUClassifier(loss=loss, weight_decay=1e-2, tol=5e-2, random_state=0).fit(X, labels)
    assert model.decision_function(X).shape == (150, 3)
    np.testing.assert_array_equal(model.predict(X), model.classes_[model.decision_function(X).argmax(1)])
    assert model.score(X, labels) > 0.9


def test_probabilities_are_the_logistic_function_of_the_output():
    X, y = small_problem()
    model = ConvexReLUClassifier(weight_decay=1e-2, tol=1e-2, random_state=0).fit(X, y > 0)
    expected = 1 / (1 + np.exp(-model.decision_function(X)))
    np.testing.assert_allclose(model.predict_proba(X)[:, 1], expected, rtol=1e-12)
    np.testing.assert_allclose(model.predict_proba(X).sum(1), 1.0)


@pytest.mark.parametrize("loss", ["hinge", "squared"])
def test_losses_without_probabilities_do_not_offer_them(loss):
    model = ConvexReLUClassifier(loss=loss)
    assert not hasattr(model, "predict_proba")
    with pytest.raises(AttributeError, match="predict_proba"):
        _ = model.predict_proba


@pytest.mark.parametrize(
    ("loss", "n_classes"), [("softmax", 2), ("logistic", 3), ("hinge", 3), ("huber", 2), ("huber", 3)]
)
def test_a_loss_that_does_not_fit_the_classes_is_named(loss, n_classes):
    X, _ = small_problem(n=9)
    with pytest.raises(InvalidInputError, match=f"'{loss}' does not fit {n_classes} classes; use 'auto'"):
        ConvexReLUClassifier(loss=loss).fit(X, np.arange(9) % n_classes)


def test_one_class_is_refused_with_advice():
    X, _ = small_problem(n=9)
    with pytest.raises(InvalidInputError, match="at least 2 classes.*got 1 class; check the labels"):
        ConvexReLUClassifier().fit(X, np.zeros(9))


def test_labels_that_do_not_sort_are_refused():
    with pytest.raises(InvalidTypeError, match="labels of one type"):
        ConvexReLUClassifier().fit(np.eye(4), np.array(["a", None, "a", None], dtype=object))


def test_names_of_a_frame_are_kept():
    pd = pytest.importorskip("pandas")
    X, y = small_problem()
    frame = pd.DataFrame(X, columns=["age", "mass", "height"])
    model = ConvexReLURegressor(weight_decay=0.1, tol=1e-1, random_state=0).fit(frame, y)
    assert model.feature_names_in_.tolist() == ["age", "mass", "height"]
    assert model.n_features_in_ == 3


def test_pipeline_search_and_parallel_jobs():
    X, y = small_problem()
    pipeline = make_pipeline(StandardScaler(), ConvexReLURegressor(tol=1e-1, random_state=0))
    grid = {"convexreluregressor__weight_decay": [1e-1, 3.0]}
    search = GridSearchCV(pipeline, grid, cv=2, n_jobs=2).fit(X, y)
    assert search.best_params_ == {"convexreluregressor__weight_decay": 1e-1}


def test_pickle_and_clone():
    X, y = small_problem()
    model = ConvexReLUClassifier(weight_decay=0.1, tol=1e-1, random_state=0).fit(X, y > 0)
    copy = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copy.predict_proba(X), model.predict_proba(X))
    assert str(copy.result_) == str(model.result_)
    assert clone(model).get_params() == model.get_params()


def test_order_and_repetition_do_not_change_a_bit():
    X, y = small_problem(n=40)
    weights = np.random.default_rng(1).integers(0, 4, 40)
    repeated = np.repeat(np.arange(40), weights)
    np.random.default_rng(2).shuffle(repeated)
    model = ConvexReLURegressor(weight_decay=0.1, tol=1e-2, random_state=0)
    by_weight = clone(model).fit(X, y, sample_weight=weights).predict(X)
    np.testing.assert_array_equal(clone(model).fit(X[repeated], y[repeated]).predict(X), by_weight)


class TestMergeRows:
    def test_keeps_the_weighted_set_of_rows(self):
        X = np.array([[1.0, 2.0], [0.0, 1.0], [1.0, 2.0], [1.0, 2.0], [5.0, 5.0]])
        Y = np.array([[1.0], [0.0], [1.0], [2.0], [9.0]])
        merged = merge_rows(X, Y, np.array([0.5, 1.0, 0.25, 3.0, 0.0]))
        found = {(*x, *t): w for x, t, w in zip(*map(np.ndarray.tolist, merged), strict=True)}
        assert found == {(1.0, 2.0, 1.0): 0.75, (0.0, 1.0, 0.0): 1.0, (1.0, 2.0, 2.0): 3.0}

    def test_signed_zeros_are_one_number(self):
        X, _, weights = merge_rows(np.array([[0.0], [-0.0]]), np.ones((2, 1)), np.ones(2))
        assert X.tolist() == [[0.0]]
        assert weights.tolist() == [2.0]

    def test_rows_that_project_alike_are_still_told_apart(self):
        X = np.array([[1e-300], [2e-300], [1e-300]]) * 1e-20  # every projection underflows to the same value
        X = np.hstack([np.ones((3, 1)), X])
        for order in ([0, 1, 2], [1, 0, 2], [2, 0, 1]):
            merged, _, weights = merge_rows(X[order], np.ones((3, 1)), np.ones(3))
            np.testing.assert_array_equal(merged, X[:2])
            assert weights.tolist() == [2.0, 1.0]

    def test_all_zero_weights_are_refused(self):
        with pytest.raises(InvalidInputError, match="every sample_weight is zero"):
            merge_rows(np.ones((2, 1)), np.ones((2, 1)), np.zeros(2))
