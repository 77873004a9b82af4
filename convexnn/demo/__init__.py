"""The demo: real data, the global optimum, what that says of Adam, and certificates, as one HTML page."""

import time
from collections.abc import Callable
from pathlib import Path

from convexnn.demo.cases import breast_cancer, digits, small
from convexnn.demo.page import render
from convexnn.demo.study import study

__all__ = ["run"]


def run(folder: str | Path, *, quick: bool = False, say: Callable[[str], None] = lambda line: None) -> Path:
    """Run the demo and write its report.

    Args:
        folder: where ``index.html`` and the trained networks go; made if absent.
        quick: small versions of everything, a few seconds instead of about two minutes.
        say: receives the lines that a user should see.

    Returns:
        The path of ``index.html``.

    """
    start = time.perf_counter()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    cases = [breast_cancer(), digits()]
    studies = [study(small(case) if quick else case, folder, say) for case in cases]
    report = folder / "index.html"
    seconds = time.perf_counter() - start
    report.write_text(render(studies, seconds), encoding="utf-8")
    say(f"\nReport: {report.resolve()} ({seconds:.0f} seconds in all)")
    return report
