"""Make a folder of records: written group by group into a hidden folder beside it, renamed when all is there."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from looplm.data.folder import make_folder, sync_folder, write_synced
from looplm.data.records.format import FIELDS, IDENTIFIERS_FILE, METADATA_FILE, Metadata, file_name
from looplm.errors import UserError

SET, BLANK, NO_PUZZLE = "all", 0, "<blank>"
"""The one set that is written, and the id, with its name, of examples that belong to no puzzle in particular."""


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a hidden folder that becomes `out` when nothing is raised, and is removed otherwise.

    Raises UserError when something is there, or the folder cannot be made.
    """
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out {out} is there already; remove it or choose another folder")
    work = out.absolute().parent / f".{out.name}.partial"
    shutil.rmtree(work, ignore_errors=True)  # of a start that was killed
    make_folder(work, out)
    try:
        yield work
        sync_folder(work)
        work.replace(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    sync_folder(out.absolute().parent)


class PartWriter:
    """Writes the records of a part, group after group. A context; `finish` makes its dataset.json."""

    def __init__(self, folder: Path, seq_len: int) -> None:
        """The folder is made."""
        folder.mkdir(parents=True)
        self.folder, self.seq_len = folder, seq_len
        shapes = {"inputs": (seq_len,), "labels": (seq_len,)}
        self._files = {
            field: _ArrayFile(folder / file_name(SET, field), shapes.get(field, ()), "u1" if field in shapes else "<i4")
            for field in FIELDS
        }
        for field in ("puzzle_indices", "group_indices"):
            self._files[field].append(np.zeros(1))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()

    @property
    def num_examples(self) -> int:
        return self._files["inputs"].rows

    @property
    def num_puzzles(self) -> int:
        return self._files["puzzle_identifiers"].rows

    @property
    def num_groups(self) -> int:
        return self._files["group_indices"].rows - 1

    def add(
        self,
        inputs_NS: np.ndarray,
        labels_NS: np.ndarray,
        *,
        examples_P: Sequence[int] | np.ndarray | None = None,
        ids_P: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        """Append a group of puzzles.

        Args:
            inputs_NS: tokens of all its examples, (N, seq_len) below 256.
            labels_NS: their answers.
            examples_P: examples of every puzzle; one each when left out.
            ids_P: the id of every puzzle; the blank one when left out.
        """
        examples_P = np.ones(len(inputs_NS), np.int64) if examples_P is None else np.asarray(examples_P)
        assert examples_P.sum() == len(inputs_NS) == len(labels_NS)
        self._files["puzzle_indices"].append(self.num_examples + np.cumsum(examples_P))
        self._files["inputs"].append(inputs_NS)
        self._files["labels"].append(labels_NS)
        self._files["puzzle_identifiers"].append(
            np.full(len(examples_P), BLANK) if ids_P is None else np.asarray(ids_P)
        )
        self._files["group_indices"].append(np.array([self.num_puzzles]))

    def finish(self, *, vocab_size: int, num_ids: int = 1) -> Metadata:
        """Write dataset.json: padding and labels that are not scored are token 0."""
        metadata = Metadata(
            seq_len=self.seq_len,
            vocab_size=vocab_size,
            pad_id=0,
            ignore_label_id=0,
            blank_identifier_id=BLANK,
            num_puzzle_identifiers=num_ids,
            total_groups=self.num_groups,
            mean_puzzle_examples=self.num_examples / max(1, self.num_puzzles),
            total_puzzles=self.num_puzzles,
            sets=[SET],
        )
        write_json(self.folder / METADATA_FILE, metadata.model_dump())
        return metadata


def write_identifiers(folder: Path, names: Sequence[str] = ()) -> None:
    """Write the names of the ids from 1 on; 0 is that of no puzzle."""
    write_json(folder / IDENTIFIERS_FILE, [NO_PUZZLE, *names])


def write_json(path: Path, value: Any) -> None:
    write_synced(path, json.dumps(value).encode())


class _ArrayFile:
    """An .npy file that grows by rows: numpy leaves room in the header of an array for more of them."""

    def __init__(self, path: Path, row: tuple[int, ...], dtype: str) -> None:
        self.rows, self._row, self._dtype = 0, row, np.dtype(dtype)
        self._file = path.open("xb")
        self._write_header()

    def append(self, values: np.ndarray) -> None:
        info = np.iinfo(self._dtype)
        assert values.shape[1:] == self._row
        assert not values.size or info.min <= values.min() <= values.max() <= info.max
        self._file.write(values.astype(self._dtype, copy=False).tobytes())
        self.rows += len(values)

    def close(self) -> None:
        self._write_header()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _write_header(self) -> None:
        self._file.seek(0)
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.rows, *self._row)}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._file.seek(0, os.SEEK_END)
