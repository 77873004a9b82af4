"""Builders of constraints: rows against direct formulas, and bad input."""

import numpy as np
import pytest
import torch

from convexnn import Constraints, demographic_parity, equal_opportunity, monotone, output_caps, train
from convexnn.constrained.program import read_rows
from convexnn.errors import InvalidInputError, InvalidTypeError
from convexnn.result import ConstraintReport

RNG = np.random.default_rng(0)
X, GROUPS = RNG.standard_normal((12, 3)), np.array(list("abcabcabcabc"))
F, Y = RNG.standard_normal(12), np.where(RNG.standard_normal(12) > 0, 1.0, -1.0)
Y[:3] = 1.0


def means(values, groups):
    return {group: values[groups == group].mean() for group in np.unique(groups)}


def test_parity_rows_are_differences_of_group_means():
    rows, m = demographic_parity(GROUPS, 0.3), means(F, GROUPS)
    found = sorted((rows.A.numpy() @ F).tolist())
    wanted = sorted(m[a] - m[b] for a in m for b in m if a != b)
    np.testing.assert_allclose(found, wanted)
    assert rows.b.tolist() == [0.3] * 6
    for name, value in zip(rows.names, (rows.A.numpy() @ F).tolist(), strict=True):  # a name says what its row does
        high, low = name.split("'")[1], name.split("'")[3]
        assert value == pytest.approx(m[high] - m[low])


def test_opportunity_rows_look_at_positives_alone():
    rows, m = equal_opportunity(GROUPS, Y, 0.1), means(F[Y > 0], GROUPS[Y > 0])
    found = sorted((rows.A.numpy() @ F).tolist())
    np.testing.assert_allclose(found, sorted(m[a] - m[b] for a in m for b in m if a != b))
    assert bool((rows.A[:, torch.tensor(Y < 0)] == 0).all())


@pytest.mark.parametrize("increasing", [True, False])
def test_monotone_rows_hold_for_a_monotone_function_and_for_no_other(increasing):
    rows = monotone(X[:4], 1, [2.0, -1.0, 0.5, 0.5], increasing=increasing)
    assert len(rows) == 4 * 2
    rise = rows.A_extra @ rows.X_extra[:, 1]
    assert bool((rise < 0).all()) == increasing
    assert bool((rise > 0).all()) != increasing
    others = torch.tensor([0, 2])
    np.testing.assert_allclose(rows.A_extra @ rows.X_extra[:, others], 0.0, atol=1e-12)  # everything else is held


def test_caps_bound_each_point_from_both_sides():
    rows = output_caps(X[:3], lower=-1.0, upper=2.0)
    for f, inside in ((0.0, True), (2.1, False), (-1.1, False)):
        held = bool((rows.A_extra @ torch.full((3,), f).double() <= rows.b).all())
        assert held == inside


def test_sums_of_constraints_keep_every_row():
    both = sum([demographic_parity(GROUPS, 0.3), monotone(X[:2], 0, [0.0, 1.0]), output_caps(X[5:7], upper=1.0)])
    points, rows = read_rows(both, torch.from_numpy(X))
    f = torch.randn(len(points), 1, dtype=torch.float64)
    f[:12, 0] = torch.from_numpy(F)
    excess = rows.excess(f)
    assert len(points) == 12 + 4  # the capped points are training samples: they count once
    first = demographic_parity(GROUPS, 0.3)
    np.testing.assert_allclose(excess[:6], first.A.numpy() @ F - 0.3)
    np.testing.assert_allclose(excess[6:8], (f[[12, 14]] - f[[13, 15]])[:, 0])
    np.testing.assert_allclose(excess[8:], F[5:7] - 1.0)
    np.testing.assert_allclose(rows.A.norm(dim=1), 1.0)
    assert len(rows.names) == len(both) == 10


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("build", "error", "says"),
    [
        (lambda: Constraints(np.ones((2, 12)), [1.0]), InvalidInputError, "1 rows"),
        (lambda: Constraints(np.ones((1, 12)), [np.inf]), InvalidInputError, "limits b"),
        (lambda: Constraints(np.full((1, 12), np.nan), [1.0]), InvalidInputError, "NaN"),
        (lambda: Constraints(np.ones(12), [1.0]), InvalidInputError, "shape"),
        (lambda: Constraints(None, [1.0]), InvalidInputError, "without weights"),
        (lambda: Constraints(np.ones((1, 12)), [1.0], X_extra=X), InvalidInputError, "A_extra"),
        (lambda: Constraints(None, [1.0], np.ones((1, 2)), X), InvalidInputError, "12 columns"),
        (lambda: Constraints(np.ones((1, 12)), [[1.0]]), InvalidInputError, "one for each row"),
        (lambda: Constraints([["a"]], [1.0]), InvalidTypeError, "A has entries"),
        (lambda: Constraints(np.ones((1, 12)), [1.0], names="parity"), InvalidTypeError, "names"),
        (lambda: Constraints(np.ones((1, 12)), [1.0], names=["a", "b"]), InvalidInputError, "2 names"),
        (lambda: demographic_parity(GROUPS, -0.1), InvalidInputError, "gap"),
        (lambda: demographic_parity(["a"] * 12, 0.1), InvalidInputError, "1 group"),
        (lambda: demographic_parity([[0, 1]], 0.1), InvalidInputError, "one label"),
        (lambda: demographic_parity([0.0, np.nan], 0.1), InvalidInputError, "NaN"),
        (lambda: equal_opportunity(GROUPS, Y[:5], 0.1), InvalidInputError, "y has shape"),
        (lambda: equal_opportunity(GROUPS, -np.ones(12), 0.1), InvalidInputError, "no sample"),
        (lambda: monotone(X, 3, [0.0, 1.0]), InvalidInputError, "feature=3"),
        (lambda: monotone(X, 0, [1.0, 1.0]), InvalidInputError, "two different"),
        (lambda: output_caps(X), InvalidInputError, "needs a limit"),
        (lambda: output_caps(X, upper=np.nan), InvalidInputError, "limit of an output"),
        (lambda: output_caps(X, upper="one"), InvalidTypeError, "limit of an output"),
        (lambda: output_caps(X, lower=True), InvalidTypeError, "limit of an output"),
        (lambda: output_caps(X, upper=np.ones(12)), InvalidInputError, "one number is expected"),
        (lambda: Constraints(np.ones((1, 12)), [1.0], names=5), InvalidTypeError, "names"),
        (lambda: demographic_parity(np.array(["a", "b", np.nan] * 4, dtype=object), 0.1), InvalidInputError, "missing"),
        (lambda: demographic_parity(["a", "b", None] * 4, 0.1), InvalidInputError, "missing"),
        (lambda: monotone(X, True, [0.0, 1.0]), InvalidInputError, "feature=True"),
        (lambda: monotone(X, 0, [0.0, 1.0], increasing="no"), InvalidTypeError, "increasing"),
        (lambda: demographic_parity(GROUPS, 1.0) + demographic_parity(GROUPS[:9], 1.0), InvalidInputError, "9"),
        (lambda: output_caps(X, upper=1.0) + output_caps(X[:, :2], upper=1.0), InvalidInputError, "columns"),
    ],
)
def test_bad_rows_are_refused(build, error, says):
    with pytest.raises(error, match=says):
        build()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"constraints": demographic_parity(GROUPS[:9], 0.1)}, "9 training samples"),
        ({"constraints": output_caps(X[:, :2], upper=1.0)}, "2 columns"),
        ({"method": "scp"}, "does not take constraints"),
        ({"robust": 0.1}, "robust"),
        ({"prove": "fast"}, "prove"),
        ({"loss": "softmax"}, "one output"),
        ({"method": "reference", "refine": True}, "refine"),
    ],
)
def test_settings_that_do_not_go_with_constraints(options, says):
    given = {"loss": "logistic", "weight_decay": 1e-2, "constraints": demographic_parity(GROUPS, 0.1), **options}
    with pytest.raises(InvalidInputError, match=says):
        train(X, (Y > 0).astype(int), **given)


def test_anything_else_is_no_constraint():
    with pytest.raises(InvalidTypeError, match="Constraints"):
        train(X, Y, weight_decay=1e-2, constraints=np.ones((1, 12)))


def test_names_can_come_from_a_generator():
    assert Constraints(np.ones((2, 12)), [1.0, 2.0], names=(f"limit {k}" for k in range(2))).names == (
        "limit 0",
        "limit 1",
    )


def test_only_rows_that_cost_something_are_listed():
    """Interior points leave multipliers of 1e-9 on rows that are not tight."""
    costs = (0.2, 3e-9, 0.0)
    report = ConstraintReport(("tight", "loose", "free"), (1.0, 0.0, 0.0), (1.0, 1.0, 1.0), costs, 0.0, 1e-8)
    assert "tight" in str(report)
    assert "loose" not in str(report)
    assert "free" not in str(report)
