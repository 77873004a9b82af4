"""The training loop: that it can be killed, and what it refuses; and fronts."""

import math
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from certify import InvalidInputError, ResultsFileError, UnsupportedOp, training
from certify.errors import DivergedError
from certify.training.front import Front, FrontPoint

RECIPE = training.Recipe(epochs=4, warmup=0.0, ramp=2.0, learning_rate=3e-3, milestones=(3,))


def digits(count=400):
    X, y = load_digits(return_X_y=True)
    return torch.tensor(X[:count] / 16, dtype=torch.float32), torch.tensor(y[:count])


def loader(count=400, **options):
    return DataLoader(TensorDataset(*digits(count)), batch_size=50, shuffle=True, **options)


def network():
    first = (nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*first, nn.Linear(36, 10))


def weights(module):
    return torch.cat([v.double().flatten() for v in module.state_dict().values()])


def test_training_raises_what_is_proved():
    X, y = digits()
    recipe = training.Recipe(epochs=12, warmup=0.0, ramp=6.0, learning_rate=3e-3, milestones=())
    reports, proved = {}, {}
    for method in ("natural", "mtl-ibp"):
        dense = nn.Sequential(nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 10))
        reports[method] = training.fit(dense, loader(), eps=0.1, method=method, recipe=recipe, domain=(0, 1))
        evaluated = training.IBP().evaluate(dense, X, y, 0.1, domain=(0, 1))
        proved[method] = float((evaluated.bounds.amin(1) > 0).float().mean())
    assert proved["mtl-ibp"] > proved["natural"] + 0.2
    assert math.isnan(reports["natural"].trace[-1]["proved"])
    assert reports["mtl-ibp"].trace[-1]["eps"] == 0.1
    assert not dense.training


def test_the_same_seed_gives_the_same_weights_and_leaves_the_generator_alone():
    runs = [training.fit(network(), loader(), eps=0.05, recipe=RECIPE).network for _ in range(2)]
    assert torch.equal(weights(runs[0]), weights(runs[1]))
    module, batches = network(), loader(100)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    training.fit(module, batches, eps=0.05, recipe=RECIPE)
    assert torch.equal(torch.rand(1), expected)


def test_gradients_are_clipped():
    """Adam divides by the size of gradients, apart from 1e-8: it hardly moves on ones that are far below that."""
    module = nn.Linear(64, 10)
    before = weights(module)
    recipe = training.Recipe(epochs=1, learning_rate=1e-2, initialise=False, clip=1e-12)
    training.fit(module, loader(100), eps=0.05, recipe=recipe)
    assert 0 < float((weights(module) - before).abs().max()) < 1e-5


SCRIPT = """
    import sys, time
    sys.path[:0] = {paths!r}
    import torch
    from test_training_loop import RECIPE, Slow, loader, network, training
    training.fit(network(), Slow(loader({options})), eps=0.05, recipe=RECIPE, checkpoint=sys.argv[1])
"""


class Slow:
    """A loader that leaves time to be killed in."""

    def __init__(self, inner):
        self.inner, self.generator = inner, inner.generator

    def __len__(self):
        return len(self.inner)

    def __iter__(self):
        for batch in self.inner:
            time.sleep(0.05)
            yield batch


@pytest.mark.parametrize("options", ["", "generator=torch.Generator().manual_seed(3)"])
def test_a_run_that_is_killed_ends_as_if_it_had_not_been(tmp_path, options):
    path = tmp_path / "run.pt"
    paths = [os.path.dirname(__file__), os.getcwd()]
    code = textwrap.dedent(SCRIPT).format(paths=paths, options=options)
    process = subprocess.Popen([sys.executable, "-c", code, path])
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 1 <= torch.load(path, weights_only=True)["epoch"] < RECIPE.epochs
    resumed, whole = (
        training.fit(network(), eval(f"loader({options})"), eps=0.05, recipe=RECIPE, checkpoint=file)
        for file in (path, None)
    )
    assert resumed.epochs == whole.epochs == RECIPE.epochs
    assert torch.equal(weights(resumed.network), weights(whole.network))
    assert [t["loss"] for t in resumed.trace] == [t["loss"] for t in whole.trace]


def test_a_checkpoint_belongs_to_one_run(tmp_path):
    path = tmp_path / "run.pt"
    training.fit(network(), loader(100), eps=0.05, recipe=RECIPE, checkpoint=path)
    again = training.fit(network(), loader(100), eps=0.05, recipe=RECIPE, checkpoint=path)
    assert again.epochs == RECIPE.epochs
    for changes, named in (({"eps": 0.06}, "eps"), ({"alpha": 0.4}, "alpha"), ({"method": "ibp"}, "loss")):
        with pytest.raises(ResultsFileError, match=f"other settings \\({named}\\)"):
            training.fit(network(), loader(100), recipe=RECIPE, checkpoint=path, **({"eps": 0.05} | changes))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ResultsFileError, match="cannot be read"):
        training.fit(network(), loader(100), eps=0.05, recipe=RECIPE, checkpoint=path)
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(ResultsFileError, match="no checkpoint"):
        training.fit(network(), loader(100), eps=0.05, recipe=RECIPE, checkpoint=path)


def test_an_interrupt_keeps_what_there_is(tmp_path):
    class Interrupting(list):
        passes = 0

        def __iter__(self):
            self.passes += 1
            yield from super().__iter__()
            if self.passes == 2:
                raise KeyboardInterrupt

    module = network()
    report = training.fit(module, Interrupting(loader(100)), eps=0.05, recipe=RECIPE, checkpoint=tmp_path / "run.pt")
    assert report.interrupted
    assert report.epochs == 1
    assert not module.training
    assert torch.load(tmp_path / "run.pt", weights_only=True)["epoch"] == 1


def test_losses_that_are_not_finite_stop_the_run_and_keep_the_checkpoint(tmp_path):
    class Growing(list):
        """Its third pass has inputs that overflow."""

        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter([(x * (1e38 if self.passes == 3 else 1), y) for x, y in super().__iter__()])

    path = tmp_path / "run.pt"
    with pytest.raises(DivergedError, match=r"epoch 3, batch 1.*lower the learning rate"):
        training.fit(network(), Growing(loader(100)), eps=0.05, recipe=RECIPE, checkpoint=path)
    state = torch.load(path, weights_only=True)
    assert state["epoch"] == 2
    assert all(bool(torch.isfinite(v).all()) for v in state["network"].values())


class Softmax(nn.Module):
    def forward(self, x):
        return torch.softmax(x, 1)


@pytest.mark.parametrize(
    ("error", "words", "changes"),
    [
        (InvalidInputError, "alpha goes from 1.5", {"alpha": 1.5}),
        (InvalidInputError, "alpha goes from 0.1 to 2", {"alpha": training.Ramp(2.0, start=0.1)}),
        (InvalidInputError, "eps is -1", {"eps": -1}),
        (InvalidInputError, "method is 'best'", {"method": "best"}),
        (InvalidInputError, "gives radius 0.2 at epoch 0", {"recipe": training.Recipe(schedule=lambda _: 0.2)}),
        (InvalidInputError, "needs both", {"loader": DataLoader(digits(100)[0], batch_size=50)}),
        (InvalidInputError, "class numbers", {"loader": [(digits(50)[0], torch.rand(50))]}),
        (InvalidInputError, "NaN", {"loader": [(digits(50)[0] * math.nan, digits(50)[1])]}),
        (InvalidInputError, "no batches", {"loader": []}),
        (InvalidInputError, "labels go from 0 to 9", {"network": nn.Linear(64, 5)}),
        (InvalidInputError, "outside the domain", {"domain": (0.0, 0.5)}),
        (UnsupportedOp, "softmax", {"network": nn.Sequential(nn.Linear(64, 10), Softmax())}),
    ],
)
def test_bad_settings_are_refused(error, words, changes):
    given = {"network": network(), "loader": loader(100), "eps": 0.05, "recipe": RECIPE, "method": "ibp"} | changes
    with pytest.raises(error, match=words):
        training.fit(given.pop("network"), given.pop("loader"), **given)


@pytest.mark.parametrize("name", ["epochs", "warmup", "l1", "learning_rate", "decay", "clip"])
def test_bad_recipes_are_refused(name):
    with pytest.raises(InvalidInputError, match=name):
        training.Recipe(**{name: -1 if name == "epochs" else -1.0})


def test_fronts_hold_what_was_found(tmp_path):
    X, y = digits(500)
    recipe = training.Recipe(epochs=2, warmup=0.0, ramp=1.0, learning_rate=3e-3, milestones=())
    question = {
        "eps": 0.03,
        "alphas": (0.2, 1.0),
        "recipe": recipe,
        "plan": "crown",
        "directory": tmp_path,
        "domain": (0, 1),
    }
    found = training.front(network, loader(200), X[400:], y[400:], methods=("mtl-ibp", "ibp"), **question)
    again = training.front(network, loader(200), X[400:], y[400:], methods=("mtl-ibp", "ibp"), **question)
    assert str(found.points[0])[:60] == str(again.points[0])[:60]
    assert [(p.method, p.alpha) for p in found.points] == [
        ("mtl-ibp", 0.2),
        ("mtl-ibp", 1.0),
        ("ibp", 0.2),
        ("ibp", 1.0),
    ]
    assert all(p.certified <= p.report.attacked <= p.natural for p in found.points)
    found.plot(tmp_path / "front.svg")
    assert "mtl-ibp" in (tmp_path / "front.svg").read_text()
    with pytest.raises(InvalidInputError, match="natural accuracy of 1.1"):
        found.best(natural=1.1)
    with pytest.raises(InvalidInputError, match="alphas"):
        training.front(network, loader(200), X, y, eps=0.03, alphas=(0.5, 2.0))


def test_efficient_networks_are_those_that_none_beats():
    class Report:
        def __init__(self, clean, certified):
            self.clean, self.certified = clean, certified

    figures = [(0.9, 0.5), (0.8, 0.6), (0.8, 0.5), (0.7, 0.6), (0.95, 0.1), (0.9, 0.5)]
    front = Front(tuple(FrontPoint.__new__(FrontPoint) for _ in figures))
    for point, pair in zip(front.points, figures, strict=True):
        object.__setattr__(point, "report", Report(*pair))
        object.__setattr__(point, "method", "a")
    assert [(p.natural, p.certified) for p in front.efficient] == [(0.8, 0.6), (0.9, 0.5), (0.9, 0.5), (0.95, 0.1)]
    assert front.best(natural=0.85).certified == 0.5
