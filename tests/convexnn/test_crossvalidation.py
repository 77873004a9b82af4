"""Estimators that choose their weight decay: scikit-learn's contract, and that the choice is the best of the scores."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.model_selection import KFold
from sklearn.utils.estimator_checks import parametrize_with_checks

import convexnn
from convexnn.crossvalidation import ConvexReLUClassifierCV, ConvexReLURegressorCV
from convexnn.errors import InvalidInputError

# Loose and small on purpose: these checks ask for the estimator contract, not for accuracy.
CHECKED = [
    ConvexReLURegressorCV(weight_decays=[1.0, 0.3], cv=2, tol=1e-1),
    ConvexReLUClassifierCV(weight_decays=[0.3, 0.1], cv=2, tol=1e-1),
]


@pytest.mark.slow
@parametrize_with_checks(CHECKED)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def noisy(n=80, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 3))
    return X, np.abs(X[:, 0]) - X[:, 1] + 0.5 * rng.standard_normal(n)


def test_scores_are_those_of_training_on_each_fold_alone():
    X, y = noisy()
    folds = KFold(2)
    model = ConvexReLURegressorCV(weight_decays=[0.1, 0.6, 0.3], cv=folds, tol=1e-3, random_state=0).fit(X, y)
    assert model.weight_decays_.tolist() == [0.6, 0.3, 0.1]
    assert model.scores_.shape == (3, 2)
    for k, (train, test) in enumerate(folds.split(X)):
        for decay, score in zip(model.weight_decays_, model.scores_[:, k], strict=True):
            alone = convexnn.ConvexReLURegressor(weight_decay=decay, tol=1e-3, random_state=0).fit(X[train], y[train])
            assert -score == pytest.approx(((alone.predict(X[test]) - y[test]) ** 2).mean() / 2, rel=3e-2)
    best = model.scores_.mean(axis=1).argmax()
    assert model.weight_decay_ == model.weight_decays_[best]
    whole = convexnn.ConvexReLURegressor(weight_decay=model.weight_decay_, tol=1e-3, random_state=0).fit(X, y)
    assert model.result_.objective == pytest.approx(whole.result_.objective, rel=2e-3)
    assert model.result_.weight_decay == model.weight_decay_
    assert len(model.path_.points) == best + 1


@pytest.mark.slow
def test_noise_alone_asks_for_the_largest_weight_decay():
    rng = np.random.default_rng(1)
    X, y = rng.standard_normal((60, 5)), rng.standard_normal(60)
    model = ConvexReLURegressorCV(n_weight_decays=3, cv=3, tol=1e-2, random_state=0).fit(X, y)
    assert model.weight_decay_ == model.weight_decays_[0]


@pytest.mark.parametrize("scoring", ["loss", "accuracy"])
def test_classes(scoring):
    X, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    X = (X - X.mean(0)) / X.std(0)
    model = ConvexReLUClassifierCV(weight_decays=[1.0, 0.05], cv=2, scoring=scoring, tol=5e-2, random_state=0)
    model.fit(X, names)
    assert model.weight_decay_ < 1.0
    assert model.score(X, names) > 0.93
    assert model.predict_proba(X).shape == (150, 3)
    if scoring == "accuracy":
        assert 0.9 < model.scores_.mean(axis=1).max() <= 1.0


@pytest.mark.slow
def test_folds_in_parallel_give_the_same():
    X, y = noisy(40)
    settings = {"weight_decays": [0.3, 0.1], "cv": 2, "tol": 1e-2, "random_state": 0}
    one, two = (ConvexReLURegressorCV(n_jobs=jobs, **settings).fit(X, y) for jobs in (None, 2))
    np.testing.assert_array_equal(one.scores_, two.scores_)


def test_settings_are_checked_on_fit():
    X, y = noisy(30)
    for wrong in ({"scoring": "accuracy"}, {"weight_decays": []}, {"n_weight_decays": 0}, {"method": "admm"}):
        with pytest.raises(InvalidInputError):
            clone(ConvexReLURegressorCV(cv=2)).set_params(**wrong).fit(X, y)
