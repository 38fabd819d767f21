"""Headers of token files: llm.c's, which modded-nanogpt has too, and that of .npy.

llm.c: 256 int32, of which the first are a magic number (20240520: uint16, 20240801: uint32), the version (1 and 7), and
the number of tokens.
"""

import io
from dataclasses import dataclass

import numpy as np

from looplm.data.formats.stream import Damaged

_LLM_C_BYTES = 1024
_LLM_C: dict[int, tuple[int, np.dtype]] = {20240520: (1, np.dtype("<u2")), 20240801: (7, np.dtype("<u4"))}


@dataclass(frozen=True, slots=True)
class TokenHeader:
    """What a header says."""

    num_bytes: int
    """Of the header."""
    dtype: np.dtype
    num_tokens: int


def read_header(head: bytes, size: int) -> TokenHeader | None:
    """Return the header of a file of `size` bytes that begins with `head`; None if it has none.

    Raises Damaged for one that is cut or of another kind: its bytes would be taken for tokens.
    """
    if head.startswith(b"\x93NUMPY"):
        return _npy(head)
    magic, version, count = np.frombuffer(head[:12].ljust(12, b"\0"), "<i4").tolist()
    if magic not in _LLM_C:
        return None
    expected, dtype = _LLM_C[magic]
    if size < _LLM_C_BYTES:
        raise Damaged(f"its header is cut: {size} of {_LLM_C_BYTES} bytes are there")
    if version != expected:
        raise Damaged(f"its header has version {version}, and only {expected} is known")
    return TokenHeader(_LLM_C_BYTES, dtype, count)


def _npy(head: bytes) -> TokenHeader:
    file = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except ValueError as error:
        raise Damaged(f"its header cannot be read ({error})") from None
    if len(shape) != 1 or dtype.kind not in "iu":
        raise Damaged(f"it holds an array of shape {shape} and type {dtype}, and not a row of token ids")
    return TokenHeader(file.tell(), dtype, shape[0])
