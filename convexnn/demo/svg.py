"""Small charts as SVG text; colours come from the CSS of the page, so they follow light and dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from jaxtyping import Float64

WIDTH, HEIGHT = 460, 290
LEFT, RIGHT, TOP, BOTTOM = 66, 14, 12, 44


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str  # CSS class: "ours", "bound", "rival", "attacked", "clean"
    dashed: bool = False
    step: bool = False  # hold each value until the next point
    markers: bool = False


@dataclass(frozen=True)
class Axis:
    """A range of values and how it is drawn."""

    label: str
    low: float
    high: float
    log: bool = False
    percent: bool = False

    def place(self, value: float) -> float:
        """Position of a value in [0, 1], clipped to the range."""
        value = min(max(value, self.low), self.high)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values inside the range."""
        return _log_ticks(self.low, self.high) if self.log else _linear_ticks(self.low, self.high)

    def text(self, value: float) -> str:
        """A tick value as text."""
        if self.percent:
            return f"{100 * value:g} %"
        if self.log and (value < 1e-3 * (1 - 1e-9) or value >= 1e4):
            return f"10{_superscript(round(math.log10(value)))}"
        return f"{value:g}"


def _superscript(number: int) -> str:
    return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _linear_ticks(low: float, high: float) -> list[float]:
    raw = (high - low) / 5
    size = 10.0 ** math.floor(math.log10(raw))
    step = min((m * size for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - raw))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    stride = max(1, math.ceil((last - first + 1) / 7))
    return [10.0**i for i in range(first, last + 1, stride)]


def line_chart(series: Sequence[Series], x: Axis, y: Axis, title: str) -> str:
    """A line chart with a legend above it, as HTML."""
    body = [_grid(x, y), *(_line(s, x, y) for s in series)]
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>{_legend(series)}"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(body)}'
        "</svg></figure>"
    )


def _legend(series: Sequence[Series]) -> str:
    items = "".join(f'<li class="{s.colour}{" dashed" if s.dashed else ""}">{escape(s.name)}</li>' for s in series)
    return f'<ul class="legend">{items}</ul>'


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.place(value) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.place(value) * (HEIGHT - TOP - BOTTOM)


def _grid(x: Axis, y: Axis) -> str:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    out = []
    for value in y.ticks():
        at = _y(y, value)
        out.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        out.append(f'<text x="{LEFT - 7}" y="{at + 4:.1f}" text-anchor="end">{y.text(value)}</text>')
    for value in x.ticks():
        at = _x(x, value)
        out.append(f'<line class="tick" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        out.append(f'<text x="{at:.1f}" y="{bottom + 17}" text-anchor="middle">{x.text(value)}</text>')
    out.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    out.append(
        f'<text class="label" x="{(LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x.label)}</text>'
    )
    middle = (TOP + bottom) / 2
    out.append(
        f'<text class="label" transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(y.label)}</text>"
    )
    return "".join(out)


def _line(series: Series, x: Axis, y: Axis) -> str:
    points = [(_x(x, a), _y(y, b)) for a, b in series.points]
    if series.step:
        points = _held(points)
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    style = ' stroke-dasharray="6 4"' if series.dashed else ""
    dots = ""
    if series.markers:
        dots = "".join(
            f'<circle cx="{_x(x, a):.1f}" cy="{_y(y, b):.1f}" r="3"><title>{escape(series.name)}: '
            f"{x.text(a)}, {y.text(round(b, 4))}</title></circle>"
            for a, b in series.points
        )
    return f'<g class="{series.colour}"><polyline points="{path}"{style}/>{dots}</g>'


def _held(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    out = points[:1]
    for a, b in points[1:]:
        out += [(a, out[-1][1]), (a, b)]
    return out


def weight_bars(weights: Float64[np.ndarray, "k d"], names: Sequence[str], heads: Sequence[str]) -> str:
    """One row a feature, one column a neuron, one bar a weight, as SVG; scaled by the largest weight.

    Args:
        weights: first-layer weights.
        names: the features.
        heads: a short text above each neuron.

    """
    k, d = weights.shape
    label, column, row, top = 150, 84, 15, 26
    scale = (column / 2 - 6) / max(float(np.abs(weights).max()), 1e-300)
    out = []
    for j in range(k):
        middle = label + column * (j + 0.5)
        out.append(f'<text x="{middle}" y="14" text-anchor="middle" class="head">{escape(heads[j])}</text>')
        out.append(f'<line class="grid" x1="{middle}" x2="{middle}" y1="{top - 4}" y2="{top + d * row}"/>')
        out += [_bar(middle, top + i * row, weights[j, i] * scale, row, names[i]) for i in range(d)]
    for i, name in enumerate(names):
        out.append(f'<text x="{label - 8}" y="{top + i * row + 11}" text-anchor="end">{escape(name)}</text>')
    width, height = label + column * k, top + d * row + 6
    return (
        f'<svg class="bars" style="max-width:{width * 1.25:.0f}px" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="first-layer weights of {k} neurons">{"".join(out)}</svg>'
    )


def _bar(middle: float, top: int, length: float, row: int, name: str) -> str:
    left = middle + min(length, 0.0)
    kind = "plus" if length > 0 else "minus"
    return (
        f'<rect class="{kind}" x="{left:.1f}" y="{top + 3}" width="{abs(length):.1f}" '
        f'height="{row - 5}"><title>{escape(name)}</title></rect>'
    )


def tile(image: Float64[np.ndarray, "h w"], largest: float, caption: str) -> str:
    """A small signed image: opacity is size, colour is sign."""
    rows, columns = image.shape
    cells = "".join(
        f'<rect class="{"plus" if image[i, j] > 0 else "minus"}" x="{j}" y="{i}" width="1.02" height="1.02" '
        f'fill-opacity="{min(1.0, abs(image[i, j]) / largest):.2f}"/>'
        for i in range(rows)
        for j in range(columns)
    )
    return (
        f'<div class="tile"><svg viewBox="0 0 {columns} {rows}" role="img" aria-label="{escape(caption)}">'
        f"{cells}</svg><span>{escape(caption)}</span></div>"
    )
