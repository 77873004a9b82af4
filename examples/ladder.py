"""One property, every bound: from intervals to the exact answer, with their times, as a table and a picture.

Run it with: python examples/ladder.py   (writes ladder.svg, or the file that you name)
"""

import sys
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import certify
from certify.bounds import METHODS
from certify.properties import margins_of_labels
from certify.search.milp import minimum

EPS = 0.08
Row = tuple[str, float, float]  # rung, lower bound, CPU seconds


def train() -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    """A small classifier of digits; images and labels that it has not seen."""
    data = load_digits()
    X, y = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 10))
    optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(X[:1400]), y[:1400]).backward()
        optimiser.step()
    return network.eval(), X[1400:], y[1400:]


def hard_question(network: nn.Sequential, X: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """An image, its label and a rival that only a search can rule out."""
    for x, label in zip(X[:100], y[:100].tolist(), strict=True):
        question = {"label": label, "eps": EPS, "domain": (0, 1)}
        verdict = certify.verify(network, x, method="lp", **question)
        if verdict.status is certify.Status.UNKNOWN and verdict.worst_margin > -0.5:
            bounds = verdict.lower_bounds
            if certify.verify(network, x, method="complete", timeout=5, **question).status is certify.Status.VERIFIED:
                return x, label, min(bounds, key=bounds.__getitem__)
    raise SystemExit("no image needs a search at this radius; try another eps")


def climb(network: nn.Sequential, x: torch.Tensor, label: int, rival: int) -> tuple[list[Row], Row]:
    """Lower bounds of score[label] - score[rival] over the ball by every method, and its minimum."""
    graph = certify.graph_from_torch(network)
    centre = x[None].double()
    region = certify.LpBall(centre, EPS, "linf", torch.zeros_like(centre), torch.ones_like(centre))
    every = margins_of_labels(torch.tensor([label]), 10)
    target = every.rivals[0].tolist().index(rival)
    rows = []
    for name, method in METHODS.items():
        start = time.process_time()
        with torch.no_grad():
            lower = method.margins(graph, region, method(graph, region), every)[0, target]
        rows.append((name, float(lower), time.process_time() - start))
    start = time.process_time()
    exact = minimum(graph, region, every.rows[0, target], gap=1e-3)
    print(f"HiGHS claims a minimum of {exact.claim:.6f} for the mixed-integer program. What is known of it:")
    print(f"  at least {exact.lower:.6f}, proved by the search on phases, rounding included;")
    print(f"  at most  {exact.upper:.6f}, the network's value at a point of the ball.\n")
    return rows, ("exact", exact.lower, time.process_time() - start)


def picture(rows: list[Row], title: str) -> str:
    """Bounds as dots on a line, as SVG; what is far to the left is drawn at the edge."""
    exact = rows[-1][1]
    inside = sorted(bound for _, bound, _ in rows)[2:]
    low = min(inside[0], 0.0) - 0.3 * (exact - inside[0])
    high = max(exact, 0.0) + 0.15 * (exact - low)

    def place(value: float) -> float:
        return 150 + 380 * (max(value, low) - low) / (high - low)

    height = 70 + 34 * len(rows)
    parts = [f'<text x="16" y="24" font-size="15">{title}</text>']
    for value, name, colour, dash in ((0.0, "0", "#888", ""), (exact, "minimum", "#0a7d38", "5 4")):
        line = f'x1="{place(value):.1f}" x2="{place(value):.1f}" y1="52" y2="{height - 12}"'
        parts.append(f'<line {line} stroke="{colour}" stroke-dasharray="{dash}"/>')
        parts.append(f'<text x="{place(value):.1f}" y="46" fill="{colour}" text-anchor="middle">{name}</text>')
    for k, (name, bound, seconds) in enumerate(rows):
        y, colour = 74 + 34 * k, "#0a7d38" if bound > 0 else "#b3261e"
        left = place(bound)
        parts.append(f'<text x="140" y="{y + 4}" text-anchor="end">{name}</text>')
        parts.append(
            f'<line x1="{left:.1f}" x2="{place(exact):.1f}" y1="{y}" y2="{y}" stroke="{colour}" opacity="0.3"/>'
        )
        mark = f'<circle cx="{left:.1f}" cy="{y}" r="5" fill="{colour}"/>'
        arrow = f'<path d="M{left:.1f} {y} l9 -6 v12 z" fill="{colour}"/>'
        parts.append(arrow if bound < low else mark)
        parts.append(f'<text x="546" y="{y + 4}">{bound:.3f}</text>')
        parts.append(f'<text x="690" y="{y + 4}" text-anchor="end">{seconds:.3g} s</text>')
    size = f'width="710" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">'
    return "\n".join([head, f'<rect {size} fill="white"/>', *parts, "</svg>\n"])


def main() -> None:
    torch.set_num_threads(1)
    network, X, y = train()
    x, label, rival = hard_question(network, X, y)
    print(f"Can a digit {label}, every pixel changed by at most {EPS}, be taken for a {rival}?\n")
    rows, exact = climb(network, x, label, rival)
    print(f"{'rung':>14}  {'score difference at least':>25}  {'CPU s':>8}")
    for name, bound, seconds in [*rows, exact]:
        print(f"{name:>14}  {bound:25.4f}  {seconds:8.4f}  {'proved' if bound > 0 else 'open'}")
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "ladder.svg")
    path.write_text(picture([*rows, exact], f"Lower bounds of score[{label}] - score[{rival}], radius {EPS}"))
    print(f"\nThe picture: {path}")


if __name__ == "__main__":
    main()
