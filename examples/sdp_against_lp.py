"""What linear and semidefinite relaxations prove as the radius grows: a table and a picture.

Run it with: python examples/sdp_against_lp.py   (writes sdp_against_lp.svg, or the file that you name)
"""

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import certify
from certify.bounds import SDP, SDPCROWN, AbstractMethod, AlphaCROWN, TriangleLP
from certify.bounds.sdp import Settings
from certify.properties import margins_of_labels
from certify.search import Deadline
from certify.search.milp import minimum

RADII = (0.02, 0.03, 0.04, 0.05)
IMAGES = 2
METHODS: dict[str, AbstractMethod] = {
    "alpha-crown": AlphaCROWN(),
    "lp": TriangleLP(),
    "sdp-crown": SDPCROWN(),
    "sdp": SDP(hidden=TriangleLP(), settings=Settings(tolerance=1e-4), verdicts=False, cases=1),
}
COLOURS = ("#999999", "#cc7711", "#2266cc", "#118844", "#000000", "#cc2222")


def train() -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    """A small classifier of digits; images and labels that it has not seen."""
    data = load_digits()
    X, y = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 10))
    optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(X[:1400]), y[:1400]).backward()
        optimiser.step()
    return network.eval(), X[1400:], y[1400:]


def bounds_at(network: nn.Sequential, x: torch.Tensor, label: int, rival: int, eps: float) -> list[float]:
    """score[label] - score[rival] on the ball: what each method proves, the exact search, and a value attained."""
    graph, centre = certify.graph_from_torch(network), x[None].double()
    region = certify.LpBall(centre, eps, "linf", torch.zeros_like(centre), torch.ones_like(centre))
    every = margins_of_labels(torch.tensor([label]), 10)
    only = every.rivals[0].tolist().index(rival)
    margins = type(every)(every.rows[:, [only]], every.constants[:, [only]], every.rivals[:, [only]], every.keeps_ties)
    found = []
    for method in METHODS.values():
        with torch.no_grad():
            found.append(float(method.margins(graph, region, method(graph, region), margins)[0, 0]))
    exact = minimum(graph, region, margins.rows[0, 0], deadline=Deadline(2.0))
    return [*found, exact.lower, exact.upper]


def picture(names: list[str], rows: list[list[float]]) -> str:
    """One line for every method over the radius, as SVG."""
    low = min(min(row[2:]) for row in rows) - 1.0
    high = max(map(max, rows)) + 0.2

    def at(k: int, value: float) -> str:
        x = 60 + 520 * k / (len(RADII) - 1)
        return f"{x:.1f},{20 + 300 * (high - max(value, low)) / (high - low):.1f}"

    size = 'width="720" height="360"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">']
    parts.append(f'<rect {size} fill="white"/>')
    parts += [f'<polyline points="{at(0, 0)} {at(len(RADII) - 1, 0)}" stroke="#dddddd" fill="none"/>']
    for j, (name, colour) in enumerate(zip(names, COLOURS, strict=True)):
        points = " ".join(at(k, row[j]) for k, row in enumerate(rows))
        parts.append(f'<polyline points="{points}" stroke="{colour}" stroke-width="2" fill="none"/>')
        parts.append(f'<text x="600" y="{40 + 20 * j}" fill="{colour}">{name}</text>')
    parts += [f'<text x="{at(k, low).split(",")[0]}" y="345">{eps:g}</text>' for k, eps in enumerate(RADII)]
    return "\n".join([*parts, "</svg>\n"])


def main() -> None:
    torch.set_num_threads(1)
    network, X, y = train()
    names = [*METHODS, "exact", "attained"]
    totals = [[0.0] * len(names) for _ in RADII]
    for x, label in zip(X[:IMAGES], y[:IMAGES].tolist(), strict=True):
        rival = int(network(x[None])[0].argsort(descending=True)[1])
        for k, eps in enumerate(RADII):
            found = bounds_at(network, x, label, rival, eps)
            totals[k] = [a + b / IMAGES for a, b in zip(totals[k], found, strict=True)]
    print(f"Lower bounds of score[label] - score[rival] on l_inf balls, mean of {IMAGES} images\n")
    print(f"{'eps':>6}" + "".join(f"{name:>14}" for name in names))
    for eps, row in zip(RADII, totals, strict=True):
        print(f"{eps:6.2f}" + "".join(f"{value:14.4f}" for value in row))
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "sdp_against_lp.svg")
    path.write_text(picture(names, totals))
    print(f"\nThe picture: {path}")


if __name__ == "__main__":
    main()
