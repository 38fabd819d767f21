"""A unit: the encoded documents of one block of input, in one file that is there as a whole or not at all.

Tokens, then the loss mask if there is one, the table of documents, what is known without reading these as JSON, and
the size of that. Units belong to one build or one part of it.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from looplm.data.account import Account
from looplm.data.place import Place

ROW = np.dtype(
    [
        ("digest", "V16"),
        ("start", "<u4"),
        ("num_tokens", "<u4"),
        ("num_bytes", "<u4"),
        ("source", "<u4"),
        ("record", "<u4"),
    ]
)
"""A document: the start of its SHA-256, its place in the tokens of the unit, bytes of its text, file and record."""
_SIZE_BYTES = 8
_MOSTLY_ENOUGH = 4096
"""For what is known of a unit."""


@dataclass(frozen=True, slots=True)
class UnitInfo:
    """What is known of a unit without reading its tokens."""

    num_tokens: int
    num_documents: int
    max_token: int
    account: Account

    def listed(self) -> dict[str, Any]:
        """Return the fields as they are written."""
        counts = {name: getattr(self, name) for name in ("num_tokens", "num_documents", "max_token")}
        return counts | vars(self.account)

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "UnitInfo":
        """Return what `listed` gave."""
        return cls(fields["num_tokens"], fields["num_documents"], fields["max_token"], Account.of(fields))


def write_unit(
    place: Place, name: str, tokens: np.ndarray, mask: np.ndarray | None, rows: np.ndarray, account: Account
) -> UnitInfo:
    """Write a unit, whole even after a power cut."""
    assert rows.dtype == ROW
    info = UnitInfo(tokens.size, rows.size, int(tokens.max(initial=0)), account)
    text = json.dumps(info.listed()).encode()
    masks = b"" if mask is None else mask.tobytes()
    size = len(text).to_bytes(_SIZE_BYTES, "little")
    place.write(name, b"".join([tokens.tobytes(), masks, rows.tobytes(), text, size]))
    return info


def read_info(place: Place, name: str) -> UnitInfo | None:
    """Read what is known of a unit; None if it is not there."""
    end = place.read_end(name, _MOSTLY_ENOUGH)
    if end is None:
        return None
    size = int.from_bytes(end[-_SIZE_BYTES:], "little") + _SIZE_BYTES
    if len(end) < size:
        end = place.read_end(name, size) or b""
    return UnitInfo.of(json.loads(end[-size:-_SIZE_BYTES]))


def mask_start(info: UnitInfo, dtype: np.dtype) -> int:
    """Return the byte at which the loss mask begins, or the table where there is no mask."""
    return info.num_tokens * dtype.itemsize


def rows_start(info: UnitInfo, dtype: np.dtype, *, has_mask: bool) -> int:
    """Return the byte at which the table of documents begins."""
    return mask_start(info, dtype) + has_mask * info.num_tokens
