"""A checkpoint written piece by piece, for weights that no process holds as a whole.

Its files, its digests and its seal are those of a checkpoint of a run, and who reads it sees no difference. A leaf
comes in rows, which are its parts along the first dim, a layer's each; a leaf that is not stacked comes at once.
"""

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from looplm.checkpoint import folder as names
from looplm.checkpoint.digest import add_digests, as_text, digest_of_rows, named_leaves
from looplm.checkpoint.seal import CONFIG_FILE, Seal, StoredArray, digest_file, list_files, write_seal
from looplm.data.folder import sync_folder
from looplm.errors import UserError

Rows = Iterator[np.ndarray]
"""The rows of a leaf in their order, each with its leading dim of 1; or the whole leaf at once."""


@dataclass
class Streamed:
    """A leaf that is there while it is written, one row at a time."""

    shape: tuple[int, ...]
    dtype: np.dtype
    rows: Callable[[], Rows]
    digest: np.ndarray | None = None
    """Of what was written."""

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def ndim(self) -> int:
        return len(self.shape)


class StreamedHandler(ocp.type_handlers.NumpyHandler):
    """Writes the leaves one after the other, and of each a row after the other."""

    def __init__(self) -> None:
        super().__init__(deepcopy_host_arrays=False)
        self._turn: asyncio.Lock | None = None
        self.mistake: UserError | None = None
        """Of what was to be written. Nothing more is, and who asked for it raises it: the library's threads cannot."""

    async def _open_and_write(self, value: Any, tspec: dict[str, Any], ts_context: Any) -> None:
        import tensorstore as ts

        assert isinstance(value, Streamed)
        self._turn = self._turn or asyncio.Lock()
        async with self._turn:
            store = await ts.open(ts.Spec(tspec), create=True, open=True, context=ts_context)
            if self.mistake is not None:
                return
            start, total = 0, np.zeros(2, np.uint32)
            try:
                for rows in value.rows():
                    total = add_digests(total, digest_of_rows(rows, start))
                    # Waited for: the next row is made when this one is on the disk.
                    await store[start : start + rows.shape[0]].write(rows)
                    start += rows.shape[0]
            except UserError as error:
                self.mistake = error
            value.digest = total


def write_streamed(
    folder: Path, step: int, params: Mapping[str, Any], *, config: str, seed: int, metrics: Mapping[str, float]
) -> Seal:
    """Writes the checkpoint `folder`/`step`, which holds weights alone, and returns its seal.

    Args:
        params: a tree of `Streamed`.
        config: config.json.

    Raises UserError where it cannot be written or is there already; nothing is left then.
    """
    leaves = named_leaves(params)
    if os.path.lexists(folder / str(step)):
        raise UserError(f"{folder / str(step)} is there already; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    if reason := names.refusal(folder, sum(leaf.nbytes for leaf in leaves.values())):
        raise UserError(reason)
    written = names.writing(folder.absolute(), step)
    absl_logging.set_verbosity(absl_logging.FATAL)  # as for a run's checkpoints
    streaming = StreamedHandler()
    registry = ocp.type_handlers.create_type_handler_registry((Streamed, streaming))
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    args = ocp.args.Composite(params=ocp.args.PyTreeSave(params, save_args=jax.tree.map(_chunks, params)))
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler(params=handler)) as checkpointer:
            checkpointer.save(written, args=args, force=True)
    except ValueError:
        if streaming.mistake is None:
            raise  # else it misses what was not written
    if streaming.mistake is not None:
        for name in names.unfinished(folder):
            shutil.rmtree(folder / name, ignore_errors=True)
        raise streaming.mistake
    (written / CONFIG_FILE).write_text(config)
    seal = Seal(
        step=step,
        seed=seed,
        data="",
        saved_at=datetime.now(UTC).isoformat(timespec="seconds"),
        metrics=dict(metrics),
        arrays={"params": {name: _stored(leaf) for name, leaf in leaves.items()}},
        files={name: digest_file(written, name) for name in list_files(written)},
    )
    write_seal(written, seal)
    os.rename(written, folder / str(step))
    sync_folder(folder)
    return seal


def _chunks(leaf: Streamed) -> ocp.SaveArgs:
    """A chunk of its own for every row: one that is shared would be read and written again for each."""
    return ocp.SaveArgs(chunk_byte_size=max(leaf.nbytes // leaf.shape[0], 1), shard_axes=(0,))


def _stored(leaf: Streamed) -> StoredArray:
    assert leaf.digest is not None, "it was written"
    return StoredArray(shape=leaf.shape, dtype=str(leaf.dtype), digest=as_text(leaf.digest))
