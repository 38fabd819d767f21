"""Which arrays of a damaged checkpoint are affected: each is read by itself and compared with its digest."""

from pathlib import Path

import numpy as np
import tensorstore

from looplm.checkpoint.digest import as_text, digests
from looplm.checkpoint.seal import Seal, StoredArray


def damaged_leaves(folder: Path, seal: Seal, items: tuple[str, ...] | None = None) -> list[str]:
    """Names of the arrays that are not what was saved, one of them in memory at a time.

    Args:
        folder: of the checkpoint.
        items: None means all.
    """
    return [
        f"{item} {name}"
        for item, arrays in seal.arrays.items()
        if items is None or item in items
        for name, array in arrays.items()
        if not _is_right(folder.absolute() / item, name, array)
    ]


def _is_right(folder: Path, name: str, expected: StoredArray) -> bool:
    store = {"driver": "ocdbt", "base": f"file://{folder}", "path": f"{name}/"}  # as Orbax names them
    try:
        found = tensorstore.open({"driver": "zarr", "kvstore": store}, open=True, read=True).result()
        if found.shape != expected.shape or found.dtype.name != expected.dtype:
            return False
        value = found.read().result()
    except (ValueError, OSError, RuntimeError, KeyError, NotImplementedError):
        return False
    return as_text(np.asarray(digests([value]))[0]) == expected.digest
