"""The progress bar of a run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

from convexnn.result import TraceEntry, relative_gap


@contextmanager
def progress_bar(show: bool, tol: float) -> Iterator[Callable[[TraceEntry], None] | None]:
    """What a solver calls after each round; None where no bar is shown."""
    if not show:
        yield None
        return
    with tqdm(unit=" rounds", desc="training") as bar:

        def report(entry: TraceEntry) -> None:
            gap = relative_gap(entry.objective, entry.bound)
            bar.set_postfix_str(
                f"objective {entry.objective:.6g}, gap {gap:.1e} (aim {tol:.0e}), {entry.n_neurons} neurons"
            )
            bar.update()

        yield report
