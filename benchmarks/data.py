"""Where the benchmarks' data lie: real data and networks that are not part of the project."""

import os
from pathlib import Path

SHARED = Path(os.environ.get("CONVEXNN_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def shared_file(name: str) -> Path:
    """A file below $CONVEXNN_SHARED (default: ../shared beside the repository); exits with a message if absent."""
    path = SHARED / name
    if not path.exists():
        raise SystemExit(f"{path} is absent: set CONVEXNN_SHARED to the folder that holds {name}.")
    return path
