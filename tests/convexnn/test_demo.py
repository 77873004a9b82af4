"""The demo's charts, its page, and the comparison with Adam."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from certify.proof.artefact import load
from certify.proof.check import check_file
from convexnn.demo.cases import breast_cancer, digits, small
from convexnn.demo.page import render
from convexnn.demo.rival import AdamRun, objective, train_adam
from convexnn.demo.study import Proofs, Robustness, Study, prove_both, strongest
from convexnn.demo.svg import Axis, Series, line_chart, tile, weight_bars
from convexnn.result import OptimalityGap, Status, TraceEntry, TrainingResult

VOID = {"meta", "br", "link", "img", "hr"}


class Balance(HTMLParser):
    """Counts open tags and collects everything that would load from elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.open, self.external = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.external += [v for k, v in attrs if k in {"src", "href"} and not v.startswith("#")]

    def handle_startendtag(self, tag, attrs):
        self.external += [v for k, v in attrs if k in {"src", "href"} and not v.startswith("#")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def study(case):
    k = 1 if len(case.classes) == 2 else len(case.classes)
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(case.X.shape[1], 3, dtype=torch.float64),
        torch.nn.ReLU(),
        torch.nn.Linear(3, k, dtype=torch.float64),
    )
    gap = {"objective": 0.1, "bound": 0.099, "bound_kind": "local-search", "n_neurons": 3, "seconds": 1.0}
    result = TrainingResult(
        network=network,
        **gap,
        gap=0.01,
        status=Status.CONVERGED,
        n_rounds=2,
        method="global",
        loss=case.loss,
        weight_decay=case.weight_decay,
        trace=(TraceEntry(0.1, 0.3, 0.0, 1), TraceEntry(1.0, 0.1, 0.099, 3)),
    )
    robustness = Robustness(case.eps, *((0.9,) * len(case.eps) for _ in range(3)))
    adam = AdamRun(network, 200, 2.0, ((0.1, 0.5), (2.0, 0.101)))
    judged = OptimalityGap(**gap, gap=0.01, objective_as_given=0.1)
    return Study(case, result, adam, judged, robustness, robustness, ())


@pytest.mark.parametrize("make", [breast_cancer, digits])
def test_page_is_well_formed_and_loads_nothing(make):
    page = render([study(make())], 12.3)
    parsed = Balance(page)
    assert parsed.open == []
    assert parsed.external == []
    assert "url(" not in page
    assert "@import" not in page
    assert "$" not in page
    for word in ("local-search", "evidence, not proof", make().title, "12 seconds"):
        assert word in page


def test_the_page_shows_evidence_and_proof_side_by_side():
    plain = study(breast_cancer())
    proved = replace(plain.adam_gap, bound=0.09, bound_kind="proved", gap=0.1, local_search_bound=0.099)
    files = (Path("a-proof.json.gz"), Path("b-proof.json.gz"))
    page = render([replace(plain, proofs=Proofs(proved, replace(proved, gap=0.2), files))], 1.0)
    row = re.search(r"<tr><th>Gap \(proved.*?</tr>", page)
    assert row
    assert re.findall(r"<td>(.*?)</td>", row[0]) == ["1.0e-01", "2.0e-01"]
    assert re.search(r"<tr><th>Gap \(local-search: evidence\)", page)
    assert "certify check a-proof.json.gz" in page
    assert "none for this loss" in render([study(digits())], 1.0)


def test_both_networks_are_proved_by_one_bound(tmp_path, unchecked):
    case = replace(small(breast_cancer(), 20), X=small(breast_cancer(), 20).X[:, :3], proof_seconds=1e-3)
    networks = [torch.nn.Sequential(torch.nn.Linear(3, k), torch.nn.ReLU(), torch.nn.Linear(k, 1)) for k in (2, 4)]
    lines = []
    proofs = prove_both(*networks, case, tmp_path, lines.append)
    assert proofs.ours.bound == proofs.adam.bound
    assert proofs.ours.bound_kind == proofs.adam.bound_kind == "proved"
    assert len(load(proofs.files[0])["claim"]["network"]["a"]["values"]) == 2
    assert all(check_file(file) for file in proofs.files)
    assert len(load(proofs.files[1])["claim"]["network"]["a"]["values"]) == 4
    assert any("certify check" in line for line in lines)
    assert prove_both(*networks, small(digits()), tmp_path, lines.append) is None


def test_page_escapes_what_comes_from_data():
    case = replace(breast_cancer(), title="<b>", features=tuple("<i>" for _ in range(30)))
    page = render([study(case)], 1.0)
    assert "<b>" not in page
    assert "<i>" not in page


@pytest.mark.parametrize("make", [breast_cancer, digits])
def test_cases_are_standard_and_split(make):
    case = make()
    assert len(case.features) == case.X.shape[1] == case.X_test.shape[1]
    assert set(case.y) == set(case.y_test) == set(range(len(case.classes)))
    assert len(small(case).X) < len(case.X)
    if case.domain:
        assert case.X.min() >= case.domain[0]
        assert case.X.max() <= case.domain[1]


@pytest.mark.parametrize("make", [breast_cancer, digits])
def test_adam_minimises_the_objective_of_the_documentation(make):
    case = replace(small(make()), adam_steps=60)
    run = train_adam(case)
    X, y = torch.from_numpy(case.X), torch.from_numpy(case.y)
    with torch.no_grad():
        outputs = run.network(X)
        F = torch.column_stack([torch.zeros(len(X)), outputs]) if outputs.shape[1] == 1 else outputs
        loss = -torch.log_softmax(F, 1)[range(len(y)), y].mean()
        squares = sum((p**2).sum() for name, p in run.network.named_parameters() if name != "2.bias")
        found = objective(run.network, X, y, case)
    assert float(found) == pytest.approx(float(loss + case.weight_decay / 2 * squares), rel=1e-9)
    values = [value for _, value in run.trace]
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0]


def test_strongest_neurons_come_first():
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1)).double()
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 1]]))
        network[2].weight.copy_(torch.tensor([[1.0, -3, 0.1]]))
    np.testing.assert_array_equal(strongest(network, 2), [[0, 1, -3], [1, 0, 1]])


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [
        (0.0, 1.0, False),
        (0.0, 0.37, False),
        (0.0, 0.16, False),
        (1e-6, 10.0, True),
        (0.01, 0.1, True),
        (0.01, 90.0, True),
    ],
)
def test_ticks_are_few_round_and_inside(low, high, log):
    axis = Axis("", low, high, log=log)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 9
    assert all(low * (1 - 1e-9) <= t <= high * (1 + 1e-9) for t in ticks)
    assert ticks == sorted(set(ticks))
    for t in ticks:
        digits_of = t if not log else math.log10(t)
        assert digits_of == pytest.approx(float(f"{digits_of:.3g}"), abs=1e-12)


def test_axis_places_ends_and_clips():
    for axis in (Axis("", 2.0, 4.0), Axis("", 1e-3, 1e3, log=True)):
        assert axis.place(axis.low) == 0
        assert axis.place(axis.high) == pytest.approx(1)
        assert axis.place(axis.low / 10) == 0
        assert axis.place(axis.high * 10) == pytest.approx(1)


def test_chart_points_lie_inside_the_picture():
    series = [Series("a & b", [(0.1, 5.0), (1.0, -3.0), (20.0, 0.5)], "ours", step=True, markers=True)]
    chart = line_chart(series, Axis("x", 0.1, 10.0, log=True), Axis("y", 0.0, 1.0), "title")
    assert "a &amp; b" in chart
    points = re.search(r'points="([^"]*)"', chart).group(1).split()
    assert len(points) == 5  # two corners for each step
    for x, y in (map(float, p.split(",")) for p in points):
        assert 0 <= x <= 460
        assert 0 <= y <= 290


def test_bars_and_tiles_show_signs():
    bars = weight_bars(np.array([[1.0, -2.0]]), ["a", "b"], ["head"])
    assert bars.count('class="plus"') == bars.count('class="minus"') == 1
    image = tile(np.array([[1.0, -1.0], [0.5, -0.5]]), 1.0, "for 3")
    assert image.count('class="plus"') == image.count('class="minus"') == 2
