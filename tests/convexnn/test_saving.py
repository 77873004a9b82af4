"""Networks on disk, and scaling that is folded into the first layer."""

import numpy as np
import pytest
import torch

from convexnn.errors import InvalidInputError
from convexnn.saving import Standardisation, build, load_network, save_network


@pytest.mark.parametrize("hidden_bias", [True, False])
@pytest.mark.parametrize("output_bias", [True, False])
def test_round_trip_is_exact(tmp_path, hidden_bias, output_bias):
    network = build(4, 3, 2, hidden_bias, output_bias)
    save_network(network, tmp_path / "net.pt", {"features": ["a", "b"], "seed": None})
    copy, metadata = load_network(tmp_path / "net.pt")
    x = torch.randn(9, 4, dtype=torch.float64)
    assert torch.equal(copy(x), network(x))
    assert metadata == {"features": ["a", "b"], "seed": None}


@pytest.mark.parametrize("hidden_bias", [True, False])
def test_folded_network_takes_raw_features(hidden_bias):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((20, 4)) * [1, 10, 0.1, 1] + [0, 5, -3, 0]
    X[:, 3] = 7.0  # constant
    network, scaling = build(4, 3, 2, hidden_bias, True), Standardisation.of(X)
    expected = network(torch.from_numpy(scaling.apply(X)))
    folded = scaling.fold(network)
    torch.testing.assert_close(folded(torch.from_numpy(X)), expected, rtol=1e-12, atol=1e-12)
    unfolded = scaling.unfold(folded)(torch.from_numpy(scaling.apply(X)))
    torch.testing.assert_close(unfolded, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("value", [0.1, -1e-30, 1e12 / 3, 0.0])
@pytest.mark.parametrize("n", [7, 569])
def test_a_constant_column_stays_small_and_its_weights_too(value, n):
    X = np.column_stack([np.arange(n), np.full(n, value)])
    scaling = Standardisation.of(X)
    assert scaling.scale[1] == 1.0
    assert np.abs(scaling.apply(X)[:, 1]).max() <= 1e-12 * abs(value)
    network = build(2, 3, 1, True, True)
    largest = network[0].weight.detach().abs().max()
    assert scaling.fold(network)[0].weight.detach()[:, 1].abs().max() <= largest
    assert Standardisation.of(1e-20 * X[:, :1]).scale[0] == pytest.approx(
        1e-20 * X[:, 0].std()
    )  # small is not constant


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(InvalidInputError, match="there is no file"):
        load_network(tmp_path / "absent.pt")
    (tmp_path / "text.pt").write_text("not a network")
    with pytest.raises(InvalidInputError, match="torch can load safely"):
        load_network(tmp_path / "text.pt")
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(InvalidInputError, match="was not written by"):
        load_network(tmp_path / "other.pt")
