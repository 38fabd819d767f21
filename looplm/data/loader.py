"""Batches of this host, for training without end and for evaluation once.

An element of the Grain dataset is this host's rows of the global batch of one step, so Grain's cost is paid once a
batch, a start at any step is a seek, and any number of hosts sees the same global batches. Grain imports jax (it starts
no device), hence it is imported when a loader is made. Deliberately absent: device arrays, and state to save: the step
is all there is.
"""

from collections.abc import Iterator

import numpy as np

from looplm.data.dataset import TokenDataset
from looplm.data.index import EpochIndex
from looplm.data.window import num_windows, read_windows
from looplm.errors import UserError

# Grain wants a length; no run gets there.
_ENDLESS = 1 << 60
_MAX_THREADS = 4


def train_loader(
    dataset: TokenDataset,
    *,
    sequence_length: int,
    batch_size: int,
    seed: int,
    start_step: int,
    host: int = 0,
    num_hosts: int = 1,
    prefetch: int = 4,
) -> Iterator[dict[str, np.ndarray]]:
    """Iterate over the batches of steps start_step, start_step + 1, ... without end.

    `batch_size` is global; a batch holds rows host * n .. host * n + n - 1 of it, n = batch_size / num_hosts, as int32
    (n, S): tokens, labels, segments, positions (see `window.read_windows`). Threads read `prefetch` batches ahead; 0
    reads in the calling thread. Raises UserError when the hosts do not divide the batch or the dataset is shorter than
    a window, and during iteration for a damaged token.
    """
    import grain  # imports jax; see the module's docstring

    if start_step < 0:
        raise UserError(f"start_step={start_step} must not be negative; steps are counted from 0")
    rows = _host_rows(batch_size, host, num_hosts)
    windows = num_windows(dataset, sequence_length, complete_only=True)
    if windows == 0:
        raise UserError(
            f"dataset {dataset.path} has {dataset.num_tokens} tokens, but a window of data.sequence_length="
            f"{sequence_length} needs {sequence_length + 1}; use at most {max(dataset.num_tokens - 1, 1)} or more text"
        )
    source = _StepSource(dataset, EpochIndex(windows, seed, batch_size), rows, sequence_length, start_step)
    options = grain.ReadOptions(num_threads=min(prefetch, _MAX_THREADS), prefetch_buffer_size=prefetch)
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))


def eval_batches(
    dataset: TokenDataset,
    *,
    sequence_length: int,
    batch_size: int,
    max_batches: int | None = None,
    host: int = 0,
    num_hosts: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Iterate once over all windows in order, so that every token is scored once; every batch has the same shape.

    Batches are as in `train_loader`, with `documents` too; rows of the last batch that no window is left for are
    padding (labels -100, segments 0). When `max_batches` does not reach for all windows, the ones read are spread
    evenly over the dataset. Every host gets the same number of batches. Raises UserError as `train_loader` does; a
    dataset shorter than a window is padded instead.
    """
    if max_batches is not None and max_batches < 1:
        raise UserError(f"eval.max_batches={max_batches} must be positive; leave it out to read all")
    rows = _host_rows(batch_size, host, num_hosts)
    windows = num_windows(dataset, sequence_length, complete_only=False)
    num_batches = -(-windows // batch_size)
    if max_batches is None or max_batches >= num_batches:
        # Numbers past the last window read as padding.
        ids = np.arange(num_batches * batch_size)
    else:
        num_batches = max_batches
        ids = np.arange(num_batches * batch_size) * windows // (num_batches * batch_size)
    return (read_windows(dataset, ids_B[rows], sequence_length) for ids_B in ids.reshape(num_batches, batch_size))


class _StepSource:
    """Grain's random-access source: element n is this host's part of the batch of step start_step + n."""

    def __init__(
        self, dataset: TokenDataset, index: EpochIndex, rows: slice, sequence_length: int, start_step: int
    ) -> None:
        self._dataset = dataset
        self._index = index
        self._rows = rows
        self._sequence_length = sequence_length
        self._start_step = start_step

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, n: int) -> dict[str, np.ndarray]:
        ids_B = self._index.batch(self._start_step + int(n))[self._rows]
        batch = read_windows(self._dataset, ids_B, self._sequence_length)
        del batch["documents"]  # training has no use for it, and it would travel to the device
        return batch

    def __repr__(self) -> str:
        return (
            f"_StepSource({self._dataset!r}, {self._index!r}, rows={self._rows.start}..{self._rows.stop - 1}, "
            f"sequence_length={self._sequence_length}, start_step={self._start_step})"
        )


def _host_rows(batch_size: int, host: int, num_hosts: int) -> slice:
    if batch_size < 1 or batch_size % num_hosts:
        raise UserError(
            f"batch_size={batch_size} does not divide among {num_hosts} hosts; use a positive multiple of {num_hosts}"
        )
    if not 0 <= host < num_hosts:
        raise ValueError(f"host={host} of num_hosts={num_hosts}")
    rows = batch_size // num_hosts
    return slice(host * rows, host * rows + rows)
