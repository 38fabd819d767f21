"""Held-out data: what a depth sweep reads, from a token dataset, records or a task."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from looplm.config.schema import Data, Masking
from looplm.data.dataset import TokenDataset
from looplm.data.loader import eval_batches
from looplm.data.masked import MaskedWindows, Masks
from looplm.data.mixture import check_unmasked, open_dataset, open_examples
from looplm.data.streams import Streams
from looplm.data.synthetic import TaskWindows
from looplm.data.tokenizer import Tokenizer
from looplm.data.window import IGNORED, AllWindows, DatasetWindows, Windows
from looplm.errors import UserError


@dataclass(frozen=True)
class HeldOut:
    """Windows that hold every token once, with the document (of a task: the example) that each is from."""

    name: str
    windows: Windows
    num_documents: int
    dataset: TokenDataset | None
    """None for records or a task."""

    @classmethod
    def of(cls, dataset: TokenDataset, sequence_length: int, masking: Masking | None = None) -> "HeldOut":
        windows: Windows = AllWindows(dataset, sequence_length)
        if masking is not None:
            check_unmasked(dataset)
            windows = MaskedWindows(windows, Masks(masking, dataset.vocab_size))
        return cls(dataset.name, windows, dataset.num_documents, dataset)

    @property
    def num_bytes(self) -> int:
        """Bytes of all texts in UTF-8; 0 where there is no text."""
        return self.dataset.num_bytes if self.dataset else 0

    @property
    def tokens_per_byte(self) -> float | None:
        """Tokens that can be scored, all but every document's first, over bytes; None where no text is scored whole."""
        if self.dataset is None or not self.num_bytes or self.dataset.manifest.has_loss_mask:
            return None
        if isinstance(self.windows, MaskedWindows):
            return None
        return (self.dataset.num_tokens - self.num_documents) / self.num_bytes

    def batches(
        self, *, batch_size: int, max_batches: int | None = None, in_streams: bool = False
    ) -> Iterator[dict[str, np.ndarray]]:
        """Iterate over all windows, as `eval_batches` does.

        in_streams: every row of a batch goes on where it ended in the batch before (see `data.streams`), and
        `max_batches` are the first ones of every stream. Examples go on in nothing, and are read as always.
        """
        if in_streams and isinstance(self.windows, DatasetWindows):
            streams = Streams(self.windows, batch_size, whole=True)
            return islice(eval_batches(streams, batch_size=batch_size), max_batches)
        return eval_batches(self.windows, batch_size=batch_size, max_batches=max_batches)

    def check_vocab(self, vocab_size: int) -> None:
        """Raise UserError unless a model with `vocab_size` embeddings knows every token."""
        if self.dataset is not None:
            self.dataset.check_vocab(vocab_size)
        elif vocab_size < self.windows.vocab_size:
            raise UserError(
                f"model.vocab_size={vocab_size} is below the {self.windows.vocab_size} tokens of the held-out "
                f"{self.name}; set it to that or more"
            )

    def check_tokenizer(self, tokenizer: Tokenizer | None) -> None:
        """Raise UserError unless the texts were made with `tokenizer`; tasks have no texts."""
        if self.dataset is not None:
            self.dataset.check_tokenizer(tokenizer)

    def check_labels(self, *, batch_size: int, max_batches: int | None) -> None:
        """Raise UserError when no token of what an evaluation reads has a label."""
        batches = eval_batches(self.windows, batch_size=batch_size, max_batches=max_batches)
        if not any((batch["labels"] != IGNORED).any() for batch in batches):
            part = "" if max_batches is None else f" in eval.max_batches={max_batches}"
            raise UserError(
                f"held-out data {self.name} has no token with a label{part}, so nothing can be scored; give data with "
                "answers to learn, or read more of it"
            )

    def pieces(self, tokens: np.ndarray) -> list[str]:
        """What tokens stand for; their numbers where there is no tokenizer."""
        if self.dataset is not None and self.dataset.has_tokenizer:
            return self.dataset.tokenizer().pieces(tokens)
        return [f"{token} " for token in tokens.tolist()]


def open_held_out(where: object, data: Data) -> HeldOut:
    """Open a folder, an address, records or a task as windows of data.sequence_length. Raises UserError."""
    if isinstance(where, str | Path):
        return HeldOut.of(open_dataset(str(where), data), data.sequence_length, data.masking)
    if data.masking is not None:
        raise UserError(
            f"data.masking hides tokens of texts, and {getattr(where, 'kind', where)} has answers of its own; give a "
            "token dataset"
        )
    windows = open_examples(where, data, with_documents=True)
    if isinstance(windows, TaskWindows):
        return HeldOut(str(getattr(where, "kind", where)), windows, windows.task.num_examples, None)
    return HeldOut(f"{windows.location.parent.name}/{windows.location.name}", windows, len(windows), None)
