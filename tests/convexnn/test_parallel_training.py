import numpy as np
import pytest
import torch
from convexnn_cases import TARGETS, normal

import convexnn
from convexnn.deep.refining import climb
from convexnn.errors import InvalidInputError

SMALL = {"n_first": 6, "n_second": 3, "random_state": 0}


def data(n=30, d=3, loss="squared", kind=0, seed=0):
    X = normal(n, d, seed=seed).numpy()
    if loss == "squared" and kind == 0:
        return X, np.maximum(np.maximum(X[:, 0], 0) - np.maximum(X[:, 1], 0), 0) - np.maximum(X[:, 2], 0)
    return X, TARGETS[loss][kind](n, np.random.default_rng(seed))


def own_objective(network, X, y, wd, loss):
    """J from the weights, written anew: hidden neurons of norm one, both upper layers in the penalty."""
    inputs, targets = torch.from_numpy(X), torch.as_tensor(y)
    first, _, second, _, last = network
    W = first.weight if first.bias is None else torch.cat([first.weight, first.bias[:, None]], 1)
    live = second.weight.abs().sum(0) > 0
    torch.testing.assert_close(W[live].norm(dim=1), torch.ones(int(live.sum())).double())
    F = network(inputs)
    if loss == "squared":
        value = 0.5 * ((F - targets.reshape(len(X), -1)) ** 2).sum(1).mean()
    elif loss == "logistic":
        value = torch.nn.functional.softplus(-targets * F[:, 0]).mean()
    elif loss == "hinge":
        value = (1 - targets * F[:, 0]).clamp(min=0).mean()
    else:
        value = torch.nn.functional.cross_entropy(F, targets.long())
    return float((value + wd / 2 * ((second.weight**2).sum() + (last.weight**2).sum())).detach())


@pytest.mark.parametrize("bias", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("loss", "kind"), [("squared", 0), ("squared", 1), ("logistic", 0), ("hinge", 0), ("softmax", 0)]
)
def test_the_objective_is_that_of_the_module_and_the_bound_is_below(loss, kind, bias):
    X, y = data(loss=loss, kind=kind)
    found = convexnn.train_parallel(
        X, y, weight_decay=0.01, loss=loss, hidden_bias=bias, output_bias=bias, tol=1e-4, **SMALL
    )
    assert found.objective == pytest.approx(own_objective(found.network, X, y, 0.01, loss), rel=1e-9)
    again = convexnn.parallel_objective(found.network, X, y, weight_decay=0.01, loss=loss)
    assert again == pytest.approx(found.objective, rel=1e-9)
    assert found.bound <= found.objective
    assert found.gap <= 2e-4
    assert found.bound_kind == "sampled-program"
    assert found.status.name == "SOLVED"


def test_the_reference_agrees():
    X, y = data()
    ours, theirs = (
        convexnn.train_parallel(X, y, weight_decay=0.02, tol=1e-5, method=method, **SMALL)
        for method in ("interior-point", "reference")
    )
    assert ours.objective == pytest.approx(theirs.objective, rel=1e-4)


def test_balancing_and_norms_of_hidden_neurons_change_no_outputs_and_lower_the_penalty():
    X, y = data()
    found = convexnn.train_parallel(X, y, weight_decay=0.02, **SMALL)
    first, _, second, _, last = found.network
    with torch.no_grad():
        first.weight *= 3.0
        first.bias *= 3.0
        second.weight *= 0.5
        last.weight *= 2 / 3
    settings = {"weight_decay": 0.02}
    balanced = convexnn.parallel_objective(found.network, X, y, **settings)
    assert balanced == pytest.approx(found.objective, rel=1e-9)
    assert convexnn.parallel_objective(found.network, X, y, balanced=False, **settings) > balanced + 1e-4


def test_columns_beyond_the_rank_change_nothing():
    X, y = data()
    wide = np.concatenate([X, X[:, :1] + X[:, 1:2]], 1)
    found = convexnn.train_parallel(wide, y, weight_decay=0.02, **SMALL)
    assert found.network[0].weight.shape[1] == 4
    assert found.objective == pytest.approx(own_objective(found.network, wide, y, 0.02, "squared"), rel=1e-9)
    assert found.gap <= 1e-3


@pytest.mark.slow
def test_refined_single_neurons_reach_the_two_layer_optimum():
    X, y = data()
    two = convexnn.train(X, y, weight_decay=0.05, tol=1e-5, random_state=0)
    found = convexnn.train_parallel(X, y, weight_decay=0.05, width=1, refine=True, tol=2e-3, max_seconds=20.0, **SMALL)
    assert found.bound_kind == "local-search"
    assert found.objective >= two.bound * (1 - 1e-9)
    assert found.objective == pytest.approx(two.objective, rel=2e-3)
    assert found.bound <= two.objective * (1 + 1e-9)


def test_refinement_lowers_the_objective_and_keeps_the_sampled_bound_apart():
    X, y = data()
    sampled = convexnn.train_parallel(X, y, weight_decay=0.02, **SMALL)
    found = convexnn.train_parallel(X, y, weight_decay=0.02, refine=True, tol=3e-2, max_seconds=5.0, **SMALL)
    assert found.objective < sampled.objective * 0.9
    assert found.bound <= found.objective
    assert found.objective == pytest.approx(own_objective(found.network, X, y, 0.02, "squared"), rel=1e-9)


def test_a_climb_ends_on_values_that_its_branches_have_and_above_its_start():
    X, V = normal(40, 3, seed=1), normal(40, 2, seed=2)
    Z, sigma = normal(30, 2, 3, seed=3), torch.sign(normal(30, 2, seed=4))

    def values(Z):
        hidden = torch.relu((sigma[:, :, None] * torch.relu(Z @ X.T)).sum(1))
        return (hidden @ torch.cat([V, -V], 1)).amax(1) / Z.flatten(1).norm(dim=1)

    found = climb(X, V, Z, sigma)
    torch.testing.assert_close(found.Z.flatten(1).norm(dim=1), torch.ones(30).double())
    assert bool((found.values >= values(Z) - 1e-12).all())
    assert bool((found.values <= values(found.Z) + 1e-12).all())
    best = max(float(values(normal(2000, 2, 3, seed=seed)[:30]).max()) for seed in range(100))
    assert float(found.values.max()) > best


def test_bad_input_is_named():
    X, y = data()
    with pytest.raises(InvalidInputError, match="method"):
        convexnn.train_parallel(X, y, weight_decay=0.1, method="adam")
    with pytest.raises(InvalidInputError, match="refine"):
        convexnn.train_parallel(X, y, weight_decay=0.1, method="reference", refine=True)
    with pytest.raises(InvalidInputError, match="width"):
        convexnn.train_parallel(X, y, weight_decay=0.1, width=0)
    with pytest.raises(InvalidInputError, match="blocks"):
        convexnn.train_parallel(X, y, weight_decay=0.1, n_first=500, n_second=500)
    with pytest.raises(InvalidInputError, match="weight_decay"):
        convexnn.train_parallel(X, y, weight_decay=-1.0)


def test_large_weight_decay_gives_the_constant_network():
    X, y = data()
    found = convexnn.train_parallel(X, y, weight_decay=10.0, **SMALL)
    assert found.objective == pytest.approx(0.5 * float(np.var(y)), rel=1e-9)
    assert found.n_branches == 0
