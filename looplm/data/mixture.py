"""The examples of every training step, from one source or several: a function of the step.

Example n of a run is row n mod B of step n div B, for every mixture and any number of hosts: `schedule` says which
source it is from and how many of that were before, `index` which window that is, and the source reads it. Every source
goes through its windows in an order of its own, epoch after epoch, so that what is mixed with it changes nothing in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from looplm.config.schema import Data, Masking, Records, Source
from looplm.data.dataset import TokenDataset, default_cache
from looplm.data.index import shuffled
from looplm.data.masked import TRAINING, Masks
from looplm.data.packing import PackedWindows
from looplm.data.records.windows import RecordWindows
from looplm.data.schedule import Schedule
from looplm.data.streams import Streams
from looplm.data.synthetic import TaskWindows, build_task
from looplm.data.tokenizer import Tokenizer
from looplm.data.window import IGNORED, DatasetWindows, SplitWindows, Windows, check_ids
from looplm.errors import UserError

LOOKED_AT = 1000
"""So many batches are looked through for a first label."""


@dataclass(frozen=True, slots=True)
class Part:
    """One source of a mixture."""

    name: str
    windows: Windows
    weights: Mapping[int, float]
    """By the first step that they hold for."""
    seed: int | str
    """Of its order."""
    max_epochs: float | None = None
    streams: Streams | None = None
    """Its order, where rows go on over steps; None: it is shuffled."""

    def read(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """Read the windows that have these numbers in the order of the source, as `Windows.read` gives them."""
        return self.windows.read(self.window(numbers)) if self.streams is None else self.streams.read(numbers)

    def window(self, numbers: np.ndarray) -> np.ndarray:
        """Return which windows have these numbers in the order of the source."""
        if self.streams is not None:
            return self.streams.window(numbers)
        return shuffled(numbers, len(self.windows), self.seed)

    @property
    def limit(self) -> int | None:
        """The most examples that are read."""
        return None if self.max_epochs is None else max(1, int(Fraction(str(self.max_epochs)) * len(self.windows)))


class Mixture:
    """Batches of all steps. Pickles, so that they can be read by other processes."""

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        batch_size: int,
        sequence_length: int,
        masking: Masking | None = None,
        seed: int = 0,
    ) -> None:
        """`batch_size` is global. All parts have weights for the same steps, the first of which is 0. masking: hides
        tokens, by the seed.

        Raises UserError where some parts have puzzle ids and others have none.
        """
        self.parts, self.batch_size, self.sequence_length = tuple(parts), batch_size, sequence_length
        self.seed = seed
        self.masks = None if masking is None else Masks(masking, self.vocab_size)
        with_ids = {bool(part.windows.num_ids): part.name for part in parts}
        if len(with_ids) > 1:
            raise UserError(
                f"data.train mixes {with_ids[True]}, whose examples have puzzle ids, with {with_ids[False]}, whose "
                "have none; a batch has ids of all rows or of none: write both as records, or train on one of them"
            )
        steps = sorted(parts[0].weights)
        weights = {step * batch_size: [part.weights[step] for part in parts] for step in steps}
        self._schedule = Schedule(weights, [part.limit for part in parts])

    def __repr__(self) -> str:
        names = ", ".join(f"{part.name}: {len(part.windows)} windows" for part in self.parts)
        return f"Mixture({names}, batch_size={self.batch_size}, sequence_length={self.sequence_length})"

    @property
    def fingerprint(self) -> str:
        """Equal means the same windows; of a mixture, name:fingerprint of every part."""
        if len(self.parts) == 1:
            return self.parts[0].windows.fingerprint
        return " ".join(_mark(part) for part in self.parts)

    def is_what_was_read(self, fingerprint: str, num_batches: int) -> bool:
        """Tell whether a mixture with that fingerprint had what this one reads in its first `num_batches` batches."""
        if len(self.parts) == 1:
            return fingerprint in (self.fingerprint, _mark(self.parts[0]))
        counts = self._schedule.counts(num_batches * self.batch_size)
        return {_mark(part) for part, count in zip(self.parts, counts, strict=True) if count} <= {*fingerprint.split()}

    @property
    def location(self) -> str:
        """Where its datasets are, for people."""
        records = (str(part.windows.location) for part in self.parts if isinstance(part.windows, RecordWindows))
        return ", ".join((*(dataset.location for dataset in self.datasets), *records)) or "data.train"

    @property
    def vocab_size(self) -> int:
        """Every token is below this."""
        return max(part.windows.vocab_size for part in self.parts)

    @property
    def num_ids(self) -> int:
        """Every id of a puzzle is below this; 0 where there are none."""
        return max(part.windows.num_ids for part in self.parts)

    @property
    def datasets(self) -> list[TokenDataset]:
        """Those of the parts that are token datasets."""
        return [part.windows.dataset for part in self.parts if isinstance(part.windows, DatasetWindows)]

    @property
    def tokenizer(self) -> Tokenizer | None:
        """What the tokens are, if they are text. Raises UserError when a tokenizer file was exchanged."""
        return next((dataset.tokenizer() for dataset in self.datasets if dataset.has_tokenizer), None)

    @property
    def templates(self) -> dict[str, list[str]]:
        """The templates of supervised examples, each with the names of the parts that it wrote."""
        found: dict[str, list[str]] = {}
        for part in self.parts:
            if isinstance(part.windows, DatasetWindows) and (template := part.windows.dataset.template) is not None:
                found.setdefault(template, []).append(part.name)
        return found

    @property
    def is_remote(self) -> bool:
        """Whether reading waits for a network."""
        return any(dataset.is_remote for dataset in self.datasets)

    @property
    def padding(self) -> float:
        """The largest share of padding that a part has."""
        return max(part.windows.padding for part in self.parts)

    def check(self, *, vocab_size: int, num_steps: int, id_rows: int = 0) -> None:
        """Raise UserError unless the parts go together, a model can read them, and there is enough for `num_steps`."""
        tokenizer = self.tokenizer
        for dataset in self.datasets:
            dataset.check_vocab(vocab_size)
            dataset.check_tokenizer(tokenizer)
        for part in self.parts:
            if part.windows.vocab_size > vocab_size:
                raise UserError(
                    f"model.vocab_size={vocab_size} is below the {part.windows.vocab_size} tokens of {part.name}; "
                    f"set it to {part.windows.vocab_size} or more"
                )
            check_ids(part.name, part.windows, id_rows)
        end = self._schedule.end
        if end is not None and end < num_steps * self.batch_size:
            raise UserError(
                f"max_epochs of data.train leaves examples for {end // self.batch_size} steps, and num_steps="
                f"{num_steps}; raise a max_epochs, or train at most so long"
            )
        self._check_labels(num_steps)

    def _check_labels(self, num_steps: int) -> None:
        """As a rule one batch is read, and one of every source, and none where every token is learnt."""
        read = self._schedule.counts(num_steps * self.batch_size)
        masked = [part for part, count in zip(self.parts, read, strict=True) if count and _masked(part)]
        if not masked:
            return
        remedy = (
            "so nothing would be learnt; give longer answers or shorter prompts, raise data.sequence_length or "
            "data.batch_tokens, or look at it with `looplm data inspect`"
        )
        every_row, looked_at = slice(0, self.batch_size), min(num_steps, LOOKED_AT)
        if not any(_has_label(self.batch(step, every_row)) for step in range(looked_at)):
            raise UserError(f"data.train ({self.location}) has no label in its first {looked_at} batches, {remedy}")
        for part in masked:
            size = min(len(part.windows), LOOKED_AT * self.batch_size)
            pieces = np.split(np.arange(size), range(self.batch_size, size, self.batch_size))
            if not any(_has_label(part.read(numbers)) for numbers in pieces):
                raise UserError(f"{part.name} of data.train has no label in its first {size} windows, {remedy}")

    def batch(self, step: int, rows: slice) -> dict[str, np.ndarray]:
        """Read rows of the global batch of `step`, counted from 0: int32 (rows, S), as `Windows.read` gives them, or
        with tokens hidden."""
        batch = self._read(step, rows)
        if self.masks is None:
            return batch
        return self.masks.hidden(batch, [(TRAINING, self.seed, step, row) for row in range(rows.start, rows.stop)])

    def _read(self, step: int, rows: slice) -> dict[str, np.ndarray]:
        count = rows.stop - rows.start
        source_B, number_B = self._schedule.locate(step * self.batch_size + rows.start, count)
        batch: dict[str, np.ndarray] = {}
        for source in np.unique(source_B).tolist():
            here = np.flatnonzero(source_B == source)
            read = self.parts[source].read(number_B[here])
            if here.size == count:
                return read
            for name, value in read.items():
                batch.setdefault(name, np.empty((count, *value.shape[1:]), value.dtype))[here] = value
        return batch

    def stage(self, step: int) -> int:
        """Return the number of the last stage that the global batch of `step` has examples of.

        A stage begins where other weights do, and where a source has been read as often as it may.
        """
        return self._schedule.stage((step + 1) * self.batch_size - 1)

    def numbers(self, step: int) -> dict[str, list[int]]:
        """Return which windows of every part the global batch of `step` holds, as `Windows.read` numbers them."""
        source_B, number_B = self._schedule.locate(step * self.batch_size, self.batch_size)
        return {
            part.name: part.window(number_B[source_B == source]).tolist()
            for source, part in enumerate(self.parts)
            if (source_B == source).any()
        }

    def progress(self, num_steps: int) -> dict[str, float]:
        """What the first `num_steps` steps have read: epochs, and for a mixture both tokens and epochs of every part.

        Tokens of padded windows are counted by their mean, so they are exact at the end of every epoch.
        """
        metrics: dict[str, float] = {}
        for part, count in zip(self.parts, self._schedule.counts(num_steps * self.batch_size), strict=True):
            epochs = count / len(part.windows)
            if len(self.parts) == 1:
                return {"data/epochs": epochs}
            metrics[f"data/tokens_{part.name}"] = round(count * self.sequence_length * (1 - part.windows.padding))
            metrics[f"data/epochs_{part.name}"] = epochs
        return metrics


def _masked(part: Part) -> bool:
    """Whether some of its tokens may not be learnt."""
    return isinstance(part.windows, DatasetWindows) and part.windows.dataset.manifest.has_loss_mask


def _has_label(batch: Mapping[str, np.ndarray]) -> bool:
    return bool((batch["labels"] != IGNORED).any())


def _mark(part: Part) -> str:
    return f"{part.name}:{part.windows.fingerprint}"


def open_mixture(data: Data, *, seed: int) -> Mixture:
    """Open everything that `data.train` names. Raises UserError for whatever cannot be opened or read."""
    steps = sorted({step for source in data.sources for step in source.changes})
    batch_size = data.batch_tokens // data.sequence_length

    def part(source: Source) -> Part:
        windows = open_windows(source.data, data)
        return Part(
            source.name,
            windows,
            {step: source.weight_at(step) for step in steps},
            # One dataset alone has the order of the seed; in a mixture, every name has its own.
            f"{seed}/{source.name}" if isinstance(data.train, tuple) else seed,
            source.max_epochs,
            Streams(windows, batch_size) if data.order == "streams" and isinstance(windows, SplitWindows) else None,
        )

    # Whose turn comes first among equals does not depend on how they are listed.
    parts = [part(source) for source in sorted(data.sources, key=lambda source: source.name)]
    return Mixture(parts, batch_size=batch_size, sequence_length=data.sequence_length, masking=data.masking, seed=seed)


def open_windows(where: object, data: Data) -> Windows:
    """Open the training windows of a folder, an address, records or a task."""
    if not isinstance(where, str):
        return open_examples(where, data)
    dataset = open_dataset(where, data)
    if data.masking is not None:
        check_unmasked(dataset)
    if data.packing == "best_fit":
        return PackedWindows(dataset, data.sequence_length, cache_folder(data))
    return SplitWindows(dataset, data.sequence_length)


def check_unmasked(dataset: TokenDataset) -> None:
    """Raise UserError for a dataset that says itself which of its tokens are learnt."""
    if dataset.manifest.has_loss_mask:
        raise UserError(
            f"data.masking chooses what is learnt among all tokens, and dataset {dataset.location} says which are; set "
            "data.masking=null, or build it from texts"
        )


def open_examples(where: object, data: Data, *, with_documents: bool = False) -> RecordWindows | TaskWindows:
    """Open records or a task as windows of data.sequence_length; `with_documents`: also give the number of examples."""
    if isinstance(where, Records):
        return RecordWindows(where, data.sequence_length, with_documents=with_documents)
    return TaskWindows(build_task(where), data.sequence_length, with_documents=with_documents)


def open_dataset(where: str, data: Data) -> TokenDataset:
    """Open a token dataset with the cache of `data`."""
    return TokenDataset.open(where, cache=cache_folder(data), cache_bytes=data.cache_gb * 1e9)


def cache_folder(data: Data) -> Path:
    return Path(data.cache_dir).expanduser() if data.cache_dir else default_cache()
