"""Gradient-descent baselines and attacks: closed forms on linear networks, and what training changes."""

import numpy as np
import pytest
import torch

from convexnn.errors import InvalidInputError
from convexnn.robust.ball import NORMS, Ball, read_ball
from convexnn.robust.baselines import Attack, Descent, attacked_accuracy, sample_losses, train_by_descent

LOSSES = ("squared", "logistic", "hinge")


def linear(w):
    """x -> w'x as a ReLU network."""
    network = torch.nn.Sequential(torch.nn.Linear(len(w), 2), torch.nn.ReLU(), torch.nn.Linear(2, 1)).double()
    with torch.no_grad():
        network[0].weight.copy_(torch.stack([w, -w]))
        network[2].weight.copy_(torch.tensor([[1.0, -1.0]]))
        network[0].bias.zero_()
        network[2].bias.zero_()
    return network


def signed(n, seed):
    return torch.where(torch.rand(n, 1, generator=torch.Generator().manual_seed(seed)) > 0.5, 1.0, -1.0).double()


@pytest.mark.parametrize("steps", [1, 15])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", LOSSES)
def test_attacks_are_exact_where_the_network_is_linear(loss, norm, steps):
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(5, generator=generator, dtype=torch.float64)
    X, y = torch.randn(30, 5, generator=generator, dtype=torch.float64), signed(30, 1)
    ball = read_ball([0.1, 0.2, 0.0, 0.3, 0.1], norm, 5, hidden_bias=False)
    network = linear(w)
    found = Attack(ball, steps)(network, X, y, loss)
    assert float(ball.gauge(found - X).max()) <= 1 + 1e-9
    f, reach = X @ w, ball.support(w)
    ends = [sample_losses(loss, end[:, None], y) for end in (f + reach, f - reach)]
    worst = torch.maximum(*ends)
    reached = sample_losses(loss, network(found).detach(), y)
    assert bool((reached <= worst + 1e-9).all())
    if steps == 1 and loss == "squared":  # one step follows the slope at the sample, past the target
        assert bool((reached >= sample_losses(loss, f[:, None], y)).all())
    elif steps == 1 or norm == "linf":
        torch.testing.assert_close(reached, worst)
    else:
        assert float((worst - reached).max()) <= 0.05 * float(worst.max())


@pytest.mark.parametrize("loss", LOSSES)
def test_attacks_never_lower_a_loss_and_stay_in_the_domain(loss):
    generator = torch.Generator().manual_seed(2)
    X, y = torch.rand(40, 4, generator=generator, dtype=torch.float64), signed(40, 3)
    network = train_by_descent(X, y[:, 0], width=8, weight_decay=1e-3, loss=loss, descent=Descent(epochs=5), seed=1)
    ball, before = Ball(torch.full((4,), 0.3, dtype=torch.float64)), sample_losses(loss, network(X).detach(), y)
    few = Attack(ball, 5, 1, (0.0, 1.0))(network, X, y, loss)
    many = Attack(ball, 5, 4, (0.0, 1.0))(network, X, y, loss)
    losses = [sample_losses(loss, network(points).detach(), y) for points in (few, many)]
    assert bool((losses[0] >= before).all())
    assert bool((losses[1] >= losses[0]).all())
    for points in (few, many):
        assert float(points.min()) >= 0
        assert float(points.max()) <= 1
        assert float((points - X).abs().max()) <= 0.3 + 1e-12


def test_the_same_seed_gives_the_same_network_and_another_one_does_not():
    X, y = np.random.default_rng(0).standard_normal((30, 3)), np.sign(np.arange(30) - 14.5)
    options = {"width": 5, "weight_decay": 1e-3, "attack": "pgd", "eps": 0.1, "descent": Descent(epochs=3, batch=10)}
    one, two, other = (train_by_descent(X, y, seed=seed, **options) for seed in (1, 1, 2))
    assert torch.equal(one[0].weight, two[0].weight)
    assert not torch.equal(one[0].weight, other[0].weight)


def test_training_on_attacks_buys_robustness():
    """One wide feature with a seventh of its labels wrong, and forty narrow ones that give the label away."""
    rng = np.random.default_rng(0)
    y = np.sign(rng.standard_normal(300))
    wide = y * np.where(rng.random(300) < 0.15, -1, 1)
    X = np.column_stack([wide, 0.08 * y[:, None] + 0.02 * rng.standard_normal((300, 40))])
    found = {}
    for attack in ("std", "fgsm", "pgd"):
        network = train_by_descent(
            X, y, width=10, weight_decay=1e-4, attack=attack, eps=0.2, descent=Descent(epochs=60), seed=0
        )
        found[attack] = attacked_accuracy(network, X, y, attack=Attack(Ball(torch.full((41,), 0.2)), 20))
    for accuracy in found.values():
        assert accuracy.pgd <= accuracy.fgsm <= accuracy.clean
    assert found["std"].clean > 0.98
    assert found["std"].pgd < 0.5
    assert found["fgsm"].pgd > 0.7
    assert found["pgd"].pgd > 0.7


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"attack": "cw"}, "attack='cw'"),
        ({"loss": "softmax"}, "loss='softmax'"),
        ({"width": 0}, "width=0"),
        ({"eps": -0.1}, "radius"),
        ({"norm": "l3"}, "norm"),
        ({"y": [[1, 2]] * 6, "loss": "squared"}, "2 columns"),
    ],
)
def test_bad_settings(options, says):
    given = {"y": [1, 1, 1, -1, -1, -1], "width": 3, "weight_decay": 1e-3, **options}
    with pytest.raises(InvalidInputError, match=says):
        train_by_descent(np.eye(6), given.pop("y"), **given)


@pytest.mark.parametrize("name", ["epochs", "batch", "attack_steps"])
def test_bad_descent(name):
    with pytest.raises(InvalidInputError, match=name):
        Descent(**{name: 0})
