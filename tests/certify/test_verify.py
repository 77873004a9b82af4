import inspect
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from certify_cases import NETWORKS, mlp, randomised, seeded
from torch import nn

import certify
from certify.search import PGD, PLANS
from certify.threads import threads_for
from certify.verdict import Status

NORMS = ["linf", "l2", "l1"]
LIGHT = PGD(steps=8, restarts=2)
LIGHT_PLANS = {name: replace(plan, attack=LIGHT) for name, plan in PLANS.items()}


def balanced(network, shape):
    """A copy whose classes share the unit cube: the mean output is moved to zero."""
    network = deepcopy(network)
    last = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
    inputs = torch.rand(500, *shape, generator=seeded(0)).to(last.weight.dtype)
    with torch.no_grad():
        last.bias.sub_(network(inputs).mean(0))
    return network


PLANE = balanced(randomised(mlp(2, 10, 10, 3), 20), (2,))  # two inputs: the region can be sampled densely


def label_of(network, x):
    outputs = network(torch.as_tensor(x, dtype=next(network.parameters()).dtype)[None])[0]
    return int(outputs.argmax()) if len(outputs) > 1 else int(outputs > 0)


def points_of(shape, count, seed):
    return torch.rand((count, *shape), generator=seeded(seed)).numpy()


def dense_ball(x, eps, norm):
    side = np.linspace(-1, 1, 61)
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    return x + eps * grid[np.linalg.norm(grid, order, axis=1) <= 1]


def replays(network, verdict, x, eps, norm, domain=None):
    """The counterexample, judged with numpy and the network alone."""
    point = verdict.counterexample
    assert point.shape == x.shape
    assert label_of(network, point) != verdict.label
    step = point.astype(float).ravel() - np.asarray(x, dtype=np.float64).ravel()
    assert np.linalg.norm(step, {"linf": np.inf, "l2": 2, "l1": 1}[norm]) <= eps
    if domain is not None:
        assert (point >= domain[0]).all()
        assert (point <= domain[1]).all()


@pytest.mark.parametrize("method", PLANS)
@pytest.mark.parametrize("norm", NORMS)
def test_no_verdict_contradicts_dense_sampling(norm, method):
    seen = set()
    for x in points_of((2,), 8, seed=21):
        label = label_of(PLANE, x)
        for eps in (0.002, 0.05, 0.3):
            plan = LIGHT_PLANS[method]
            verdict = certify.verify(PLANE, x, label=label, eps=eps, norm=norm, method=plan)
            seen.add(verdict.status)
            ball = dense_ball(x.astype(np.float64), eps, norm)
            outputs = PLANE(torch.tensor(ball, dtype=torch.float32)).double()
            margins = outputs[:, [label]] - outputs
            worst = np.delete(margins.amin(0).detach().numpy(), label)
            if verdict.status is Status.VERIFIED:
                assert worst.min() > 0
                assert verdict.worst_margin > 0
            if verdict.status is Status.FALSIFIED:
                replays(PLANE, verdict, x, eps, norm)
            for rival, smallest in zip(verdict.lower_bounds, worst, strict=True):
                assert verdict.lower_bounds[rival] <= smallest + 1e-6
    assert {Status.VERIFIED, Status.FALSIFIED} <= seen


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", [n for n in NETWORKS if n not in ("no-bias", "relu-last")])
def test_counterexamples_replay_in_the_domain(name, norm):
    network, shape = NETWORKS[name]
    network, found = balanced(network, shape), 0
    for x in points_of(shape, 6, seed=22):
        label = label_of(network, x)
        verdict = certify.verify(network, x, label=label, eps=1.5, norm=norm, domain=(0, 1), method=LIGHT_PLANS["ibp"])
        if verdict.status is Status.FALSIFIED:
            replays(network, verdict, x, 1.5, norm, domain=(0, 1))
            found += 1
    assert found > 0 or name in {
        "no-bias",
        "batch-norm",
        "relu-last",
        "relu-first",
        "linear",
        "one-output",
        "image",
    }


def test_the_wrong_label_is_its_own_counterexample():
    x = points_of((2,), 1, seed=23)[0]
    wrong = (label_of(PLANE, x) + 1) % 3
    verdict = certify.verify(PLANE, x, label=wrong, eps=0.0)
    assert verdict.status is Status.FALSIFIED
    assert (verdict.counterexample == x).all()
    assert "FALSIFIED" in str(verdict)
    assert "counterexample" in str(verdict)


def one_output(weight, bias):
    net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double().eval()
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), (1.0, 0.0, weight, bias), strict=True):
            parameter.fill_(value)
    return net


@pytest.mark.parametrize(
    ("eps", "label", "status", "bound"),
    [(0.5, 1, Status.VERIFIED, 0.5), (2.0, 1, Status.FALSIFIED, None), (0.5, 0, Status.FALSIFIED, None)],
)
def test_one_output_is_a_binary_classifier(eps, label, status, bound):
    """y = relu(x) - 1 at x = 2, class 1 iff y > 0."""
    verdict = certify.verify(one_output(1.0, -1.0), [2.0], label=label, eps=eps)
    assert verdict.status is status
    assert list(verdict.lower_bounds) == [1 - label]
    if bound is not None:
        assert verdict.lower_bounds[0] == pytest.approx(bound, abs=1e-12)
        assert verdict.lower_bounds[0] <= bound


def test_an_output_of_exactly_zero_is_class_zero():
    dead = one_output(0.0, 0.0)
    assert certify.verify(dead, [2.0], label=1, eps=0.1).status is Status.FALSIFIED
    # Nothing is violated, but a bound of zero is not positive either.
    assert certify.verify(dead, [2.0], label=0, eps=0.1).status is Status.UNKNOWN
    assert certify.certified_accuracy(dead, [[2.0]], [0], eps=0.1).clean == 1.0


@pytest.mark.parametrize("norm", NORMS)
def test_accuracy_counts_what_verify_says(norm):
    X = points_of((2,), 20, seed=24)
    y = np.array([label_of(PLANE, x) for x in X])
    y[:5] = (y[:5] + 1) % 3
    report = certify.certified_accuracy(PLANE, X, y, eps=0.1, norm=norm, domain=(0, 1), method=LIGHT_PLANS["auto"])
    assert report.clean == pytest.approx(15 / 20)
    assert report.certified <= report.attacked <= report.clean
    assert len(report) == 20
    for k in range(20):
        verdict = certify.verify(PLANE, X[k], label=y[k], eps=0.1, norm=norm, domain=(0, 1), method=LIGHT_PLANS["auto"])
        if report.statuses[k] is Status.VERIFIED:
            assert verdict.status is Status.VERIFIED
            assert report.worst_margins[k] == pytest.approx(verdict.worst_margin, abs=1e-9)
        assert (k in report.counterexamples) == (report.statuses[k] is Status.FALSIFIED)
    assert report.certified == np.mean([s is Status.VERIFIED for s in report.statuses])
    assert "certified" in str(report)


def test_auto_certifies_what_any_method_certifies():
    X = points_of((4,), 60, seed=25)
    network = balanced(NETWORKS["deep"][0], (4,))
    y = np.array([label_of(network, x) for x in X])
    proved = {m: certify.certified_accuracy(network, X, y, eps=0.01, method=p).statuses for m, p in LIGHT_PLANS.items()}
    for method in PLANS:
        assert all(proved["auto"][proved[method] == Status.VERIFIED] == Status.VERIFIED)
    assert Status.VERIFIED in proved["ibp"]


def test_answers_are_repeatable():
    X = points_of((2,), 30, seed=26)
    y = np.array([label_of(PLANE, x) for x in X])
    first, second = (certify.certified_accuracy(PLANE, X, y, eps=0.2, norm="l1") for _ in range(2))
    assert (first.statuses == second.statuses).all()
    assert first.counterexamples.keys() == second.counterexamples.keys()
    assert all((first.counterexamples[k] == second.counterexamples[k]).all() for k in first.counterexamples)


def test_every_kind_of_array_is_taken():
    X = points_of((2,), 8, seed=27)
    y = np.array([label_of(PLANE, x) for x in X])
    expected = certify.certified_accuracy(PLANE, X, y, eps=0.05)
    frame = pd.DataFrame(X, columns=["a", "b"])
    for inputs, labels in [
        (torch.tensor(X, requires_grad=True), torch.tensor(y)),
        (frame, pd.Series(y)),
        (X.tolist(), y.tolist()),
        (X.astype(np.float64), y.astype(float)),
    ]:
        report = certify.certified_accuracy(PLANE, inputs, labels, eps=0.05)
        assert (report.statuses == expected.statuses).all()
    assert certify.verify(PLANE, frame.iloc[0], label=y[0], eps=0.05).status is expected.statuses[0]
    assert certify.verify(PLANE, frame.iloc[[0]], label=y[0], eps=0.05).status is expected.statuses[0]
    whole = certify.verify(PLANE, [1, 0], label=label_of(PLANE, [1, 0]), eps=1)
    assert whole.status in Status


def test_layers_that_work_in_place_do_not_move_the_region():
    network = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(1, 2)).double()
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[1.0], [0.0]]))
        network[1].bias.copy_(torch.tensor([0.0, 0.5]))
    for plan in (*PLANS.values(), replace(PLANS["crown"], attack=None)):
        verdict = certify.verify(network, [-5.0], label=1, eps=1.0, method=plan)  # relu(x) is zero in the region
        assert verdict.status is Status.VERIFIED
    falsified = certify.verify(network, [-5.0], label=0, eps=1.0)
    assert falsified.counterexample == -5.0


@pytest.mark.parametrize("method", [*PLANS])
@pytest.mark.parametrize("norm", NORMS)
def test_a_network_may_end_in_anything(method, norm):
    ends_in_relu = nn.Sequential(*randomised(mlp(2, 5, 2), 29), nn.ReLU())
    with torch.no_grad():
        ends_in_relu[-2].bias.copy_(torch.tensor([20.0, -20.0]))
    for network in (ends_in_relu, nn.Sequential(nn.ReLU()), nn.Sequential(nn.Identity())):
        x = np.array([0.75, 0.25])
        assert certify.verify(network, x, label=0, eps=0.125, norm=norm, method=method).status is Status.VERIFIED


@pytest.mark.parametrize("eps", [1e-170, 1e170, 1e300])
@pytest.mark.parametrize("domain", [None, (0, 1)])
def test_the_square_of_a_radius_may_overflow(eps, domain):
    x = np.array([0.5, 0.25])
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    verdict = certify.verify(network, x, label=label_of(network, x), eps=eps, norm="l2", domain=domain)
    corners = certify.verify(network, x, label=label_of(network, x), eps=0.5, norm="linf", domain=domain)
    assert verdict.status in (Status.VERIFIED, Status.FALSIFIED, Status.UNKNOWN)
    assert eps < 1 or corners.status is not Status.FALSIFIED or verdict.status is not Status.VERIFIED


def test_every_memory_layout_is_taken():
    X = points_of((4,), 1, seed=30)[0].astype(np.float64)
    label = label_of(PLANE, X[:2])
    expected = certify.verify(PLANE, X[:2].copy(), label=label, eps=0.05)
    for x in (X[1::-1][::-1], X[:2][::-1].copy()[::-1], X[:2].astype(">f8"), X[:2].astype(np.longdouble)):
        assert certify.verify(PLANE, x, label=label, eps=0.05).lower_bounds == expected.lower_bounds


@pytest.mark.parametrize("norm", NORMS)
def test_an_outlier_does_not_weaken_the_attack_on_the_others(norm):
    X = points_of((2,), 12, seed=31)
    y = np.array([label_of(PLANE, x) for x in X])
    plan = replace(PLANS["ibp"], attack=PGD(steps=20, restarts=1))
    alone = certify.certified_accuracy(PLANE, X, y, eps=0.3, norm=norm, method=plan)
    among = certify.certified_accuracy(
        PLANE, np.vstack([X, [[1e8, 1e8]]]), np.append(y, 0), eps=0.3, norm=norm, method=plan
    )
    assert alone.counterexamples
    assert (among.statuses[:-1] == alone.statuses).all()


def test_timeout_is_an_answer():
    x = points_of((2,), 1, seed=28)[0]
    verdict = certify.verify(PLANE, x, label=label_of(PLANE, x), eps=0.3, timeout=1e-9)
    assert verdict.status is Status.TIMEOUT
    assert verdict.counterexample is None


def test_an_interrupt_keeps_the_work(monkeypatch):
    X = points_of((2,), 30, seed=29)
    y = np.array([label_of(PLANE, x) for x in X])
    monkeypatch.setattr("certify.bounds.IBP.largest_batch", 10)
    whole = certify.certified_accuracy(PLANE, X, y, eps=0.02)
    climb, calls = certify.batches.climb, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:  # of the third batch
            raise KeyboardInterrupt
        return climb(*args)

    monkeypatch.setattr("certify.batches.climb", interrupted)
    report = certify.certified_accuracy(PLANE, X, y, eps=0.02)
    assert report.interrupted
    assert "interrupted" in str(report)
    assert (report.statuses[:20] == whole.statuses[:20]).all()
    assert (report.statuses[20:] == Status.UNKNOWN).all()
    assert report.certified <= report.attacked <= report.clean == 1.0


def test_a_plan_of_one_s_own():
    plan = certify.Plan("intervals only", PLANS["ibp"].methods, attack=None)
    x = points_of((2,), 1, seed=30)[0]
    verdict = certify.verify(PLANE, x, label=label_of(PLANE, x), eps=0.3, method=plan)
    assert verdict.method == "ibp"
    with pytest.raises(certify.InvalidInputError, match="at least 1 of each"):
        PGD(steps=0)


def test_importing_does_not_import_torch():
    code = "import sys, certify; certify.Status; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        certify.nothing  # noqa: B018
    assert all(getattr(certify, name) is not None for name in certify.__all__)


X0 = [0.5, 0.5]


def without_outputs():
    layer = nn.Linear(2, 1)
    layer.weight, layer.bias = nn.Parameter(torch.empty(0, 2)), nn.Parameter(torch.empty(0))
    return layer


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": [np.nan, 0.5]}, ValueError, "x has 1 NaN or infinite"),
        ({"x": [np.inf, 0.5]}, ValueError, "NaN or infinite"),
        ({"x": [0.5]}, ValueError, "with 2 inputs was given"),
        ({"x": []}, ValueError, "x is empty"),
        ({"x": ["a", "b"]}, TypeError, "expected real numbers"),
        ({"x": [1j, 0.0]}, TypeError, "complex"),
        ({"eps": -0.1}, ValueError, r"eps is -0\.1"),
        ({"eps": float("nan")}, ValueError, "eps is nan"),
        ({"eps": "wide"}, TypeError, "eps is 'wide'"),
        ({"norm": "l3"}, ValueError, "expected one of linf, l2, l1"),
        ({"label": 3}, ValueError, "label 3 is out of range.*0 to 2"),
        ({"label": -1}, ValueError, "label -1 is out of range"),
        ({"label": "cat"}, TypeError, "label is 'cat'"),
        ({"label": 0.5}, TypeError, r"label is 0\.5"),
        ({"domain": (1, 0)}, ValueError, "above its upper limit"),
        ({"domain": (0.6, 1)}, ValueError, "outside the domain"),
        ({"domain": 1.0}, ValueError, "expected a pair"),
        ({"domain": (np.zeros(3), np.ones(3))}, ValueError, "a domain limit has shape"),
        ({"domain": (np.nan, 1)}, ValueError, "a domain limit is NaN"),
        ({"method": "magic"}, ValueError, "expected one of auto, complete, ibp, lipschitz, crown-ibp, deeppoly-0"),
        ({"method": ["crown"]}, ValueError, "expected one of auto"),
        ({"proof": "no/such/folder/a.proof"}, ValueError, "no such folder"),
        ({"proof": "."}, ValueError, "no such folder"),
        ({"proof": 7}, TypeError, "proof is 7"),
        ({"timeout": 0}, ValueError, "timeout is 0"),
        ({"timeout": "long"}, TypeError, "timeout is 'long'"),
        ({"label": 2**70}, ValueError, "label is 1180591620717411303424"),
        ({"label": np.uint64(2**64 - 1)}, ValueError, "label is 18446744073709551615"),
        ({"label": torch.tensor([0, 1])}, TypeError, "label is tensor"),
        ({"x": [[0.5], [0.5, 1.0]]}, ValueError, "x cannot be read as an array"),
        ({"x": np.ma.masked_greater(np.array(X0), 0.1)}, ValueError, "x has masked entries"),
        ({"x": torch.tensor(X0).to_sparse()}, TypeError, "dense one"),
        ({"x": torch.zeros(2, device="meta")}, TypeError, "'meta'"),
        ({"network": nn.Linear(2, 2, device="meta")}, ValueError, "no values yet"),
        ({"network": without_outputs()}, NotImplementedError, "at least one score"),
    ],
)
def test_bad_input_says_what_is_wrong(changes, error, message):
    arguments = {"network": PLANE, "x": X0, "label": 0, "eps": 0.1} | changes
    network, x = arguments.pop("network"), arguments.pop("x")
    with pytest.raises(error, match=message) as caught:
        inspect.unwrap(certify.verify)(network, x, **arguments)
    assert isinstance(caught.value, certify.CertifyError)


def test_labels_are_taken_as_data_sets_hold_them():
    label = label_of(PLANE, torch.tensor(X0, dtype=torch.float64))
    for given in (label, torch.tensor(label), torch.tensor([label]), np.array([label]), np.int8(label)):
        assert certify.verify(PLANE, X0, label=given, eps=0.0).label == label


def test_networks_of_two_precisions_are_told():
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2).double()).eval()
    with pytest.raises(certify.InvalidInputError, match="several precisions.*float32.*float64"):
        certify.verify(network, [0.5, 0.5], label=0, eps=0.1)


def test_a_precision_that_numpy_lacks_is_named():
    network = nn.Sequential(nn.Linear(2, 2)).to(torch.bfloat16).eval()
    with pytest.raises(certify.InvalidInputError, match="bfloat16"):
        certify.verify(network, [0.1, 0.2], label=0, eps=5.0)
    case = certify.Case(-np.ones(2), np.ones(2), np.ones((1, 2)), np.zeros(1))
    with pytest.raises(certify.InvalidInputError, match="bfloat16"):
        certify.verify_vnnlib(network, certify.Query((case,)))


@pytest.mark.parametrize(
    ("X", "y", "error", "message"),
    [
        ([0.5, 0.5], [0, 1], ValueError, "expected the batch axis first"),
        ([X0, X0], [0], ValueError, r"expected \(2,\)"),
        ([X0, X0], [0, 7], ValueError, "label 7 is out of range"),
        ([X0, X0], [0, 0.5], ValueError, "no whole numbers"),
        ([X0, X0], [0, 1e300], ValueError, "labels from 0.0 to 1e\\+300"),
        ([X0, X0], np.array([0, 2**64 - 1], dtype=np.uint64), ValueError, "to 18446744073709551615"),
        ([X0, X0], ["a", "b"], TypeError, "expected real numbers"),
        (np.zeros((0, 2)), [], ValueError, "X is empty"),
        ([X0, [np.nan, 0]], [0, 0], ValueError, "X has 1 NaN"),
        (np.zeros((2, 5)), [0, 0], ValueError, "with 2 inputs was given"),
    ],
)
def test_bad_data_says_what_is_wrong(X, y, error, message):
    with pytest.raises(error, match=message) as caught:
        certify.certified_accuracy(PLANE, X, y, eps=0.1)
    assert isinstance(caught.value, certify.CertifyError)


def test_a_label_out_of_range_of_one_output():
    with pytest.raises(certify.InvalidInputError, match="one output has the classes 0 and 1"):
        certify.verify(one_output(1.0, 0.0), [2.0], label=2, eps=0.1)


def test_threads_are_the_caller_s_again_afterwards():
    x = points_of((2,), 1, seed=31)[0]
    torch.set_num_threads(2)
    assert certify.verify(PLANE, x, label=label_of(PLANE, x), eps=0.001).status is Status.VERIFIED
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("work", "threads"), [(2**10, 1), (2**30, 2)])
def test_small_problems_run_on_one_thread(work, threads):
    torch.set_num_threads(2)
    with threads_for(work):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 2
