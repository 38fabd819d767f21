"""Rows of the leaves of a checkpoint, read one at a time: for weights that no process holds as a whole."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from looplm.checkpoint.seal import Damaged, Seal

SPARE = 64 << 20
"""Bytes beside the largest leaf, for what the store keeps of its own."""


class StoredRows:
    """The weights of a checkpoint whose files are what was saved (`CheckpointReader.verified`)."""

    def __init__(self, folder: Path, seal: Seal, *, item: str = "params", in_rows: bool = False):
        """Args:
            folder: of the checkpoint.
            item: what is read of it, `params` or `opt_state`.
            in_rows: whether `streamed` has written it, a row at a time: then nothing has to be kept between two rows.

        Raises Damaged when its weights cannot be opened.
        """
        self._folder = (folder / item).absolute()
        try:
            metadata = json.loads((self._folder / "_METADATA").read_text())
        except (OSError, ValueError) as error:
            raise Damaged(f"{item}/_METADATA cannot be read ({error})") from error
        self._driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
        import tensorstore as ts

        # A chunk of a run's checkpoint is a whole leaf: it stays until all its rows are read.
        largest = 0 if in_rows else max(4 * math.prod(kind.shape) for kind in seal.kinds(item).values())
        self._context = ts.Context({"cache_pool": {"total_bytes_limit": largest + SPARE}})
        self._opened: tuple[str, Any] | None = None

    def __call__(self, path: str, layer: int | tuple[int, int] | None) -> np.ndarray:
        """A leaf, or a layer of it, or an expert of a layer."""
        store = self._open(path)
        return np.asarray((store if layer is None else store[layer]).read().result())

    def _open(self, path: str) -> Any:
        import tensorstore as ts

        if self._opened is None or self._opened[0] != path:
            kvstore = {"driver": "ocdbt", "base": f"file://{self._folder}/", "path": f"{path}/"}
            store = ts.open(
                {"driver": self._driver, "kvstore": kvstore}, context=self._context, open=True, read=True
            ).result()
            self._opened = path, store
        return self._opened[1]
