"""A unit: the encoded documents of one block of input, in one file that is there as a whole or not at all.

Tokens, then the loss mask if there is one, the table of documents, an account as JSON, and the sizes of the four.
Units belong to one build and are gone when it is done.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from looplm.data.account import Account

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
_FOOTER = np.dtype("<u8")


@dataclass(frozen=True, slots=True)
class UnitInfo:
    """What is known of a unit without reading its tokens."""

    num_tokens: int
    max_token: int
    account: Account


def write_unit(path: Path, tokens: np.ndarray, mask: np.ndarray | None, rows: np.ndarray, account: Account) -> UnitInfo:
    """Write a unit atomically and sync it, so that it is whole even after a power cut."""
    assert rows.dtype == ROW
    info = UnitInfo(tokens.size, int(tokens.max(initial=0)), account)
    text = json.dumps(
        {
            "num_tokens": info.num_tokens,
            "max_token": info.max_token,
            **vars(account),
        }
    ).encode()
    parts = [tokens.tobytes(), b"" if mask is None else mask.tobytes(), rows.tobytes(), text]
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        for part in parts:
            file.write(part)
        file.write(np.array([len(part) for part in parts], _FOOTER).tobytes())
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return info


def read_info(path: Path) -> UnitInfo:
    """Read the account of a unit."""
    with path.open("rb") as file:
        sizes = _sizes(file)
        file.seek(sum(sizes[:3]))
        fields = json.loads(file.read(sizes[3]))
    return UnitInfo(fields["num_tokens"], fields["max_token"], Account.of(fields))


def read_rows(path: Path) -> np.ndarray:
    """Read the table of documents of a unit."""
    with path.open("rb") as file:
        sizes = _sizes(file)
        file.seek(sizes[0] + sizes[1])
        return np.frombuffer(file.read(sizes[2]), ROW)


def _sizes(file: BinaryIO) -> list[int]:
    file.seek(-4 * _FOOTER.itemsize, os.SEEK_END)
    return np.frombuffer(file.read(), _FOOTER).tolist()
