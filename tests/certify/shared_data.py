"""Real networks that are not part of the project; tests that need them skip where they are absent."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("CONVEXNN_SHARED", Path(__file__).resolve().parents[3] / "shared"))


def shared_files(pattern: str) -> list[object]:
    """Files below the shared folder, as parameters of a test; one that skips where there are none."""
    found = sorted(SHARED.glob(pattern))
    if not found:
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"{SHARED / pattern} is absent"))]
    return [pytest.param(path, id=path.name) for path in found]
