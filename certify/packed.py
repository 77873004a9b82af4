"""Files that may be gzipped, told by content; a small file never unpacks to a large one."""

import gzip
import io
import zlib

from certify.errors import InvalidInputError

_MAGIC = b"\x1f\x8b"
# gzip packs zeros a thousandfold; weights and properties that people use, less than twentyfold.
_MOST_PER_BYTE = 100
_ALWAYS = 2**24  # bytes


def unpacked(content: bytes, most: int) -> bytes:
    """The content of a file, which a gzip archive holds packed.

    Args:
        content: of the file.
        most: bytes that the result may have.

    Raises:
        InvalidInputError: for an archive that is damaged, or that unpacks to more than `most` bytes or, beyond
            16 MiB, to more than 100 times its own size.
    """
    if not content.startswith(_MAGIC):
        return content
    limit = min(most, max(_ALWAYS, _MOST_PER_BYTE * len(content)))
    try:
        with gzip.open(io.BytesIO(content)) as stream:
            result = stream.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidInputError(f"a broken gzip archive: {error}; fetch the file again") from None
    if len(result) > limit:
        raise InvalidInputError(
            f"a gzip archive of {len(content)} bytes that unpacks to more than {limit} bytes; unpack it by hand if"
            " it is what it should be"
        )
    return result
