"""Array shapes in signatures are checked while the tests run, and only then; draws are the same in every run."""

import pytest
import torch
from jaxtyping import install_import_hook

hook = install_import_hook(["convexnn", "certify"], "beartype.beartype")


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Networks that a test module builds on import have the same weights in every run."""
    if isinstance(collector, pytest.Module):
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """Draws from torch's own generator do not depend on the tests that ran before."""
    torch.manual_seed(0)
