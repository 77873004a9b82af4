"""What tells two questions apart: SHA-256 of everything that an answer depends on."""

import hashlib
from typing import Any

import numpy as np


def digest_of(*parts: Any) -> str:
    """Of texts, bytes and arrays, in this order; each enters with its kind and length, so that none runs into the next.

    Anything else enters by its `repr`.
    """
    total = hashlib.sha256()
    for part in parts:
        kind, content = _content(part)
        total.update(f"{kind}:{len(content)}:".encode())
        total.update(content)
    return total.hexdigest()


def _content(part: Any) -> tuple[str, bytes | memoryview]:
    if isinstance(part, bytes):
        return "bytes", part
    if isinstance(part, np.ndarray):
        plain = np.ascontiguousarray(part, dtype=part.dtype.newbyteorder("<"))
        return f"{part.dtype.name}{part.shape}", plain.tobytes()
    return "text", (part if isinstance(part, str) else repr(part)).encode()
