"""The report of the demo: one HTML page with everything inside it."""

from collections.abc import Iterable, Sequence
from html import escape
from importlib.metadata import version
from importlib.resources import files
from string import Template

import numpy as np

from convexnn.demo.study import Robustness, Study, strongest
from convexnn.demo.svg import Axis, Series, line_chart, tile, weight_bars

FIRST_SECONDS = 1e-2  # start of the logarithmic time axes
MAX_BARS = 6
MAX_TILES = 40
Points = Sequence[tuple[float, float]]


def render(studies: Sequence[Study], seconds: float) -> str:
    """The page as HTML text."""
    folder = files("convexnn.demo")
    return Template((folder / "page.html").read_text(encoding="utf-8")).substitute(
        style=(folder / "page.css").read_text(encoding="utf-8"),
        version=version("convexnn"),
        links="".join(f'<a href="#{s.case.key}">{escape(s.case.title)}</a>' for s in studies),
        sections="\n".join(_section(study) for study in studies),
        seconds=f"{seconds:.0f}",
    )


def _section(study: Study) -> str:
    case = study.case
    parts = [
        f'<section id="{case.key}">',
        f"<h2>{escape(case.title)}</h2>",
        f"<p>{escape(case.about)} {len(case.X)} training and {len(case.X_test)} held-out samples, "
        f"{case.X.shape[1]} features, {len(case.classes)} classes; {case.loss} loss, weight decay "
        f"{case.weight_decay:g}.</p>",
        _cards(study),
        _comparison(study),
        f'<p class="note">{_adam_sentence(study)}</p>',
        f'<p class="note">{_proof_sentence(study)}</p>',
        f'<div class="charts">{_values_chart(study)}{_distance_chart(study)}{_robustness_chart(study)}'
        f"{_robustness_table(study)}</div>",
        _tiles(study) if case.image_shape else _bars(study),
        "</section>",
    ]
    return "\n".join(parts)


def _cards(study: Study) -> str:
    """The three numbers, large."""
    result = study.result
    cards = [
        (
            "Objective",
            f"{result.objective:.6g}",
            "of the network that was saved, recomputed from its weights",
        ),
        ("Lower bound", f"{result.bound:.6g}", f"for any width; {result.bound_kind}: evidence, not proof"),
        ("Gap", f"{result.gap:.1e}", "(objective &minus; bound) / objective"),
        ("Neurons", str(result.n_neurons), f"as many as needed, in {result.seconds:.1f} seconds"),
    ]
    inner = "".join(
        f'<div class="card"><h3>{name}</h3><p class="big">{value}</p><p>{note}</p></div>' for name, value, note in cards
    )
    return f'<div class="cards">{inner}</div><p class="status">{escape(result.status.value)}</p>'


def _comparison(study: Study) -> str:
    """Global training and Adam side by side."""
    head = f"<th></th><th>Global training</th><th>Adam, width {study.adam.width}</th>"
    body = "".join(f"<tr><th>{a}</th><td>{b}</td><td>{c}</td></tr>" for a, b, c in _comparison_rows(study))
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _comparison_rows(study: Study) -> list[tuple[str, str, str]]:
    result, gap, adam = study.result, study.adam_gap, study.adam
    ours = _objectives(study)
    timed = [
        (
            f"Seconds until {100 * distance:g} % above the bound",
            _time_to(ours, result.bound, distance),
            _time_to(adam.trace, result.bound, distance),
        )
        for distance in (1e-2, 1e-3)
    ]
    accuracy, adam_accuracy = study.robustness.clean[0], study.adam_robustness.clean[0]
    return [
        ("Objective", f"{result.objective:.7g}", f"{gap.objective:.7g}"),
        (f"Gap ({escape(gap.bound_kind)}: evidence)", f"{result.gap:.1e}", f"{gap.gap:.1e}"),
        ("Gap (proved, checked in exact arithmetic)", *_proved_gaps(study)),
        ("Neurons that are not zero", str(result.n_neurons), str(gap.n_neurons)),
        *timed,
        ("Seconds in all", f"{result.seconds:.1f}", f"{adam.seconds:.1f}"),
        ("Held-out accuracy", f"{accuracy:.1%}", f"{adam_accuracy:.1%}"),
    ]


def _proved_gaps(study: Study) -> tuple[str, str]:
    if study.proofs is None:
        return ("none for this loss", "none for this loss")
    return f"{study.proofs.ours.gap:.1e}", f"{study.proofs.adam.gap:.1e}"


def _proof_sentence(study: Study) -> str:
    """What the two gaps mean beside each other."""
    if study.proofs is None:
        return (
            f"There is no proof for the {study.case.loss} loss yet: what is known of the optimum is evidence from a "
            "search that could have missed a better neuron."
        )
    proved, files = study.proofs.ours, study.proofs.files
    return (
        f"Proved for networks of every width: the objective is at least {proved.bound:.6g}. A search for better "
        f"neurons puts the optimum at {study.result.bound:.6g} or above, which is evidence; the proof is what nobody "
        f"has to trust: <code>certify check {escape(files[0].name)}</code> repeats it without rounding "
        f"(Adam's network: {escape(files[1].name)}). The two differ because the proof bounds the maximum over all "
        "neurons by a relaxation; more time brings them closer."
    )


def _adam_sentence(study: Study) -> str:
    """What the gap certificate says of Adam's network, fairly."""
    gap = study.adam_gap
    return (
        f"Adam minimised the same objective for {study.case.adam_steps} full-batch steps. Its network is at "
        f"most {100 * gap.gap:.2g}&nbsp;% above the best network of any width, says the bound "
        f"({escape(gap.bound_kind)}: evidence, not proof). Adam alone cannot tell; with the bound one knows "
        "whether more training could pay."
    )


def _objectives(study: Study) -> Points:
    return [(entry.seconds, entry.objective) for entry in study.result.trace]


def _time_to(trace: Points, bound: float, distance: float) -> str:
    """First time at which the objective is within a relative distance of the bound."""
    for seconds, objective in trace:
        if objective <= bound + distance * abs(bound):
            return f"{seconds:.2f}"
    return "not reached"


def _time_axis(study: Study) -> Axis:
    longest = max(study.result.seconds, study.adam.seconds, 10 * FIRST_SECONDS)
    return Axis("seconds (logarithmic)", FIRST_SECONDS, longest, log=True)


def _values_chart(study: Study) -> str:
    bound = [(entry.seconds, entry.bound) for entry in study.result.trace]
    series = [
        Series("Adam's objective", study.adam.trace, "rival", step=True),
        Series("lower bound", bound, "bound", step=True),
        Series("objective, global training", _objectives(study), "ours", step=True),
    ]
    axis = Axis("objective and bound", 0.0, 2.0 * study.result.objective)
    return line_chart(series, _time_axis(study), axis, "Objective and bound over time")


def _distance_chart(study: Study) -> str:
    """Relative distance to the final bound, on a logarithmic axis."""
    bound = study.result.bound
    floor = max(1e-6, min(study.result.gap, 1e-2) / 3)

    def distance(trace: Iterable[tuple[float, float]]) -> Points:
        return [(seconds, max((value - bound) / abs(bound), floor)) for seconds, value in trace]

    series = [
        Series("Adam", distance(study.adam.trace), "rival", step=True),
        Series("global training", distance(_objectives(study)), "ours", step=True),
    ]
    axis = Axis("relative distance", floor, 10.0, log=True)
    return line_chart(series, _time_axis(study), axis, "How far above the final bound")


def _robustness_chart(study: Study) -> str:
    ours, adam, case = study.robustness, study.adam_robustness, study.case
    series = [
        Series("clean", _points(ours, ours.clean), "clean"),
        Series("under attack (PGD)", _points(ours, ours.attacked), "attacked", markers=True),
        Series("certified (CROWN)", _points(ours, ours.certified), "ours", markers=True),
        Series("certified, Adam's network", _points(adam, adam.certified), "rival", dashed=True),
    ]
    x = Axis(f"ε, radius of the l∞ ball ({case.eps_unit})", 0.0, case.eps[-1])
    y = Axis("held-out accuracy", 0.0, 1.0, percent=True)
    return line_chart(series, x, y, "Clean, attacked and certified accuracy")


def _points(robustness: Robustness, values: Sequence[float]) -> Points:
    return list(zip(robustness.eps, values, strict=True))


def _robustness_table(study: Study) -> str:
    """The figures behind the chart, and what they say at a radius in the middle."""
    ours, adam = study.robustness, study.adam_robustness
    columns = (ours.attacked, ours.certified, adam.certified)
    body = "".join(
        f"<tr><th>{eps:g}</th>{''.join(f'<td>{column[i]:.1%}</td>' for column in columns)}</tr>"
        for i, eps in enumerate(ours.eps)
    )
    head = "<tr><th>ε</th><th>attacked</th><th>certified</th><th>certified, Adam</th></tr>"
    i = len(ours.eps) // 2
    return f"""<div><div class="scroll">
<table class="small"><thead>{head}</thead><tbody>{body}</tbody></table></div>
<p class="note">At ε = {ours.eps[i]:g}, {ours.certified[i]:.1%} of the held-out samples are proved to keep their
right label everywhere in the ball, and the attack leaves {ours.attacked[i]:.1%} right.</p></div>"""


def _bars(study: Study) -> str:
    case = study.case
    rows = strongest(study.result.network, MAX_BARS)
    weights, outer = rows[:, : len(case.features)], rows[:, len(case.features) :]
    heads = [case.classes[1 if a > 0 else 0] for a in outer[:, 0]]
    return f"""<h3>{_count_phrase(len(rows), study.result.n_neurons)}</h3>
<p>Each column is one neuron; its bars are the weights of the features, positive ones to the right. Above it
stands the class for which it speaks when it is active.</p>
<div class="scroll">{weight_bars(weights, case.features, heads)}</div>"""


def _tiles(study: Study) -> str:
    case = study.case
    rows = strongest(study.result.network, MAX_TILES)
    d = len(case.features)
    largest = float(np.quantile(np.abs(rows[:, :d]), 0.99)) or 1.0  # the few larger ones saturate
    tiles = "".join(
        tile(row[:d].reshape(case.image_shape or (1, d)), largest, f"for {case.classes[row[d:].argmax()]}")
        for row in rows
    )
    return f"""<h3>{_count_phrase(len(rows), study.result.n_neurons)}</h3>
<p>First-layer weights as images, largest neurons first: <span class="key plus">positive</span> and
<span class="key minus">negative</span> pixels. Below each stands the digit for which it speaks most.</p>
<div class="tiles">{tiles}</div>"""


def _count_phrase(shown: int, total: int) -> str:
    return f"All {total} neurons of the network" if shown >= total else f"The {shown} largest of {total} neurons"
