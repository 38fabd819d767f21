"""Records as windows: one example each, with the id of its puzzle."""

import hashlib
import json
from pathlib import Path

import numpy as np

from looplm.config import schema
from looplm.data.records.format import check_labels, check_tokens, open_part
from looplm.data.window import IGNORED, PADDING
from looplm.errors import UserError


class RecordWindows:
    """The examples of a part, sets one after another. All cells are seen, padded ones too: segments are 1."""

    padding = 0.0

    def __init__(self, config: schema.Records, sequence_length: int, *, with_documents: bool = False) -> None:
        """Reads all of it once. Raises UserError for files that are broken or have another length.

        with_documents: also give the number of every example.
        """
        self.location = Path(config.folder).expanduser() / config.part
        self.metadata, self.sets = open_part(self.location.parent, config.part)
        if self.metadata.seq_len != sequence_length:
            raise UserError(
                f"data.sequence_length={sequence_length} is not the length of {self.location}; use "
                f"{self.metadata.seq_len}"
            )
        self.with_documents = with_documents
        self._starts = np.cumsum([0, *map(len, self.sets)])
        scanned = [each.scan(self.metadata) for each in self.sets]
        if not sum(count for _, count in scanned):
            raise UserError(f"{self.location} has no label that is scored, so there is nothing to learn or to measure")
        said = {"records": self.metadata.model_dump(), "files": [digests for digests, _ in scanned]}
        self.fingerprint = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def __repr__(self) -> str:
        return f"RecordWindows({str(self.location)!r}, examples={len(self)}, length={self.metadata.seq_len})"

    @property
    def vocab_size(self) -> int:
        return self.metadata.vocab_size

    @property
    def num_ids(self) -> int:
        return self.metadata.num_puzzle_identifiers

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, window_ids_B: np.ndarray) -> dict[str, np.ndarray]:
        """Read examples as `window.read_windows` gives windows, and `ids`, (B,) int32.

        Examples past the last are padding, with the blank id. Raises UserError where a file was changed for the worse
        since it was opened.
        """
        ids_B = np.asarray(window_ids_B, np.int64)
        B, S = ids_B.size, self.metadata.seq_len
        batch = {
            "tokens": np.full((B, S), self.metadata.pad_id, np.int32),
            "labels": np.full((B, S), IGNORED, np.int32),
            "segments": np.full((B, S), PADDING, np.int32),
            "positions": np.zeros((B, S), np.int32),
            "ids": np.full(B, self.metadata.blank_identifier_id, np.int32),
        }
        if self.with_documents:
            batch["documents"] = np.full((B, S), -1, np.int32)
        for each, start in zip(self.sets, self._starts, strict=False):
            here = np.flatnonzero((ids_B >= start) & (ids_B < start + len(each)))
            examples = ids_B[here] - start
            tokens, labels = each.inputs[examples], each.labels[examples]
            check_tokens(each.path("inputs"), examples, tokens, self.vocab_size)
            check_labels(each.path("labels"), examples, labels, self.metadata)
            batch["tokens"][here], batch["labels"][here] = tokens, labels
            batch["segments"][here] = 1
            batch["positions"][here] = np.arange(S)
            batch["ids"][here] = each.ids(examples)
            if self.with_documents:
                batch["documents"][here] = ids_B[here, None]
        if self.metadata.ignore_label_id is not None:
            batch["labels"][batch["labels"] == self.metadata.ignore_label_id] = IGNORED
        return batch
