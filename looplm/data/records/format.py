"""The files of one part of a folder of records: opened, checked, digested."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from looplm.errors import UserError

METADATA_FILE, IDENTIFIERS_FILE = "dataset.json", "identifiers.json"
FIELDS = ("inputs", "labels", "puzzle_identifiers", "puzzle_indices", "group_indices")
_OF_PUZZLES = FIELDS[2:]
_CHUNK = 1 << 24
"""Bytes that are looked at together."""


class Metadata(BaseModel):
    """The contents of dataset.json; the sizes are enough. What else is in it is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    seq_len: PositiveInt
    vocab_size: PositiveInt
    """Every token is below this."""
    pad_id: NonNegativeInt = 0
    ignore_label_id: int | None = None
    """Label of cells that are not scored; None: all are."""
    blank_identifier_id: NonNegativeInt = 0
    """The id that stands for no puzzle."""
    num_puzzle_identifiers: PositiveInt = 1
    """Every id is below this, in all parts."""
    total_groups: NonNegativeInt | None = None
    mean_puzzle_examples: float | None = None
    total_puzzles: int | None = None
    """TRM's programs ask for it, HRM's know nothing of it."""
    sets: list[str] = Field(default=["all"], min_length=1)


def file_name(set_name: str, field: str) -> str:
    return f"{set_name}__{field}.npy"


@dataclass(frozen=True)
class RecordSet:
    """The arrays of one set, inputs and labels memory-mapped."""

    folder: Path
    name: str
    inputs: np.ndarray
    """(N, S), any integers."""
    labels: np.ndarray
    puzzle_identifiers: np.ndarray
    puzzle_indices: np.ndarray
    group_indices: np.ndarray

    @classmethod
    def open(cls, folder: Path, name: str) -> Self:
        """Open the files of a set; where those of puzzles are all missing, every example is one, with id 0.

        Raises UserError for a file that is not there or holds no array of integers.
        """
        inputs, labels = (_load(folder / file_name(name, field)) for field in ("inputs", "labels"))
        if any((folder / file_name(name, field)).exists() for field in _OF_PUZZLES):
            return cls(folder, name, inputs, labels, *(_load(folder / file_name(name, field)) for field in _OF_PUZZLES))
        every = np.arange(len(inputs) + 1)
        return cls(folder, name, inputs, labels, np.zeros(len(inputs), np.int64), every, every)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return type(self).open, (self.folder, self.name)  # a memory map would be sent with its contents

    def __len__(self) -> int:
        return len(self.inputs)

    def path(self, field: str) -> Path:
        return self.folder / file_name(self.name, field)

    def ids(self, examples: np.ndarray) -> np.ndarray:
        """The puzzle id of every example."""
        return self.puzzle_identifiers[np.searchsorted(self.puzzle_indices, examples, side="right") - 1]

    def check(self, metadata: Metadata) -> None:
        """Raise UserError unless shapes and indices go together and every id is known."""
        shape = (len(self.inputs), metadata.seq_len)
        for field in ("inputs", "labels"):
            if (found := getattr(self, field).shape) != shape:
                raise UserError(
                    f"{self.path(field)} has shape {found} and not {shape}: inputs and labels are (examples, seq_len="
                    f"{metadata.seq_len} of {METADATA_FILE}); write it again"
                )
        _check_indices(self.path("puzzle_indices"), self.puzzle_indices, len(self), "examples")
        puzzles = len(self.puzzle_indices) - 1
        _check_indices(self.path("group_indices"), self.group_indices, puzzles, "puzzles")
        ids = self.puzzle_identifiers
        if ids.shape != (puzzles,):
            raise UserError(
                f"{self.path('puzzle_identifiers')} has shape {ids.shape} and not ({puzzles},), one id for every "
                f"puzzle of {file_name(self.name, 'puzzle_indices')}; write it again"
            )
        if puzzles and not 0 <= ids.min() <= ids.max() < metadata.num_puzzle_identifiers:
            bad = ids[(ids < 0) | (ids >= metadata.num_puzzle_identifiers)][0]
            raise UserError(
                f"{self.path('puzzle_identifiers')} holds id {bad}, and {METADATA_FILE} says num_puzzle_identifiers="
                f"{metadata.num_puzzle_identifiers}; raise that in every part, or write the ids again"
            )

    def scan(self, metadata: Metadata) -> tuple[dict[str, str], int]:
        """Read all of it: the digest (SHA-256) of every array, and how many labels are scored.

        Raises UserError for a token or a label that is not below the vocabulary.
        """
        digests = {field: hashlib.sha256(repr(getattr(self, field).shape).encode()) for field in FIELDS}
        num_labels = 0
        for field, first, chunk in self._chunks():
            digests[field].update(chunk.tobytes())
            if field == "inputs":
                check_tokens(self.path(field), range(first, first + len(chunk)), chunk, metadata.vocab_size)
            elif field == "labels":
                num_labels += check_labels(self.path(field), range(first, first + len(chunk)), chunk, metadata)
        return {f"{self.name}/{field}": digest.hexdigest() for field, digest in digests.items()}, num_labels

    def _chunks(self) -> Iterator[tuple[str, int, np.ndarray]]:
        for field in FIELDS:
            array = getattr(self, field)
            rows = max(1, _CHUNK // max(1, array[:1].nbytes))
            for first in range(0, len(array), rows):
                yield field, first, array[first : first + rows]


def open_part(folder: Path, part: str) -> tuple[Metadata, list[RecordSet]]:
    """Open a part of a folder of records. Raises UserError unless all its files are there and go together."""
    place = folder / part
    if not place.is_dir():
        raise UserError(_no_part(folder, part))
    metadata = _read_metadata(place / METADATA_FILE)
    for field, bound in (("pad_id", "vocab_size"), ("blank_identifier_id", "num_puzzle_identifiers")):
        if (value := getattr(metadata, field)) >= getattr(metadata, bound):
            raise UserError(
                f"{place / METADATA_FILE} says {field}={value}, which is not below {bound}={getattr(metadata, bound)}; "
                "mend it"
            )
    sets = [RecordSet.open(place, name) for name in metadata.sets]
    for each in sets:
        each.check(metadata)
    if not sum(map(len, sets)):
        raise UserError(f"{place} holds no example; write it again")
    groups = sum(len(each.group_indices) - 1 for each in sets)
    if metadata.total_groups not in (None, groups):
        raise UserError(
            f"{place / METADATA_FILE} says total_groups={metadata.total_groups}, and the files hold {groups} groups; "
            "they are not of one making: write the folder again"
        )
    return metadata, sets


def check_tokens(path: Path, numbers: Sequence[int] | np.ndarray, tokens_NS: np.ndarray, vocab_size: int) -> None:
    """Raise UserError for a token that is not below `vocab_size`. numbers: which examples they are of."""
    if tokens_NS.size and (tokens_NS.max() >= vocab_size or tokens_NS.min() < 0):
        _refuse(path, numbers, tokens_NS, (tokens_NS < 0) | (tokens_NS >= vocab_size), "token", vocab_size)


def check_labels(path: Path, numbers: Sequence[int] | np.ndarray, labels_NS: np.ndarray, metadata: Metadata) -> int:
    """Return how many labels are scored. Raises UserError for one that is not below the vocabulary."""
    ignored = metadata.ignore_label_id
    scored_NS = np.ones(labels_NS.shape, bool) if ignored is None else labels_NS != ignored
    bad_NS = scored_NS & ((labels_NS < 0) | (labels_NS >= metadata.vocab_size))
    if bad_NS.any():
        _refuse(path, numbers, labels_NS, bad_NS, "label", metadata.vocab_size)
    return int(scored_NS.sum())


def _refuse(
    path: Path,
    numbers: Sequence[int] | np.ndarray,
    values_NS: np.ndarray,
    bad_NS: np.ndarray,
    what: str,
    vocab_size: int,
) -> None:
    row, column = np.argwhere(bad_NS)[0].tolist()
    raise UserError(
        f"{path} holds {what} {values_NS[row, column]} in example {numbers[row]}, which is not below vocab_size="
        f"{vocab_size} of {METADATA_FILE}; raise that in every part, or write the file again"
    )


def _check_indices(path: Path, indices: np.ndarray, size: int, what: str) -> None:
    ok = indices.ndim == 1 and indices.size and indices[0] == 0 and indices[-1] == size
    if not ok or (np.diff(indices.astype(np.int64)) < 0).any():
        raise UserError(f"{path} does not ascend from 0 to {size}, the number of {what}; write it again")


def _load(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r")
    except FileNotFoundError:
        raise UserError(f"{path} is not there; records need {', '.join(FIELDS)}: write the folder again") from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is no array of numpy ({error}); write it again") from None
    if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.integer):
        raise UserError(f"{path} holds {getattr(array, 'dtype', 'several arrays')} and no integers; write it again")
    return array


def _read_metadata(path: Path) -> Metadata:
    try:
        return Metadata.model_validate(json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise UserError(
            f"{path} is not there, so {path.parent} is no part of records; write the folder again"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{path}: {field}: {first['msg']}; mend it") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}; mend it") from None


def _no_part(folder: Path, part: str) -> str:
    if (folder / METADATA_FILE).is_file():
        return f"records {folder} are one part themselves; name folder={folder.parent} and part={folder.name}"
    if not folder.is_dir():
        return f"records {folder} are not a folder; make one with `looplm data grids`, or see docs/reasoners.md"
    parts = sorted(path.parent.name for path in folder.glob(f"*/{METADATA_FILE}"))
    there = f"it holds {' and '.join(parts)}" if parts else "no folder in it has one; see docs/reasoners.md"
    return f"records {folder} have no {part}/{METADATA_FILE}; {there}"
