"""Batches of this host, for training without end and for evaluation once.

An element of the Grain dataset is this host's rows of the global batch of one step, so Grain's cost is paid once a
batch, a start at any step is a seek, and any number of hosts sees the same global batches. Grain imports jax (it starts
no device), hence it is imported when a loader is made. Deliberately absent: device arrays, and state to save: the step
is all there is.
"""

from collections.abc import Iterator

import numpy as np

from looplm.data.mixture import Mixture
from looplm.data.window import Readable
from looplm.errors import UserError

# Grain wants a length; no run gets there.
_ENDLESS = 1 << 60
_MAX_THREADS = 4


def train_loader(
    mixture: Mixture, *, start_step: int, host: int = 0, num_hosts: int = 1, prefetch: int = 4
) -> Iterator[dict[str, np.ndarray]]:
    """Iterate over the batches of steps start_step, start_step + 1, ... without end.

    A batch holds rows host * n .. host * n + n - 1 of the global one, n = batch_size / num_hosts, as int32 (n, S):
    tokens, labels, segments, positions (see `window.read_windows`). Threads read `prefetch` batches ahead; 0 reads in
    the calling thread. Raises UserError when the hosts do not divide the batch, and during iteration for a damaged
    token or a server that cannot be reached.
    """
    import grain  # imports jax; see the module's docstring

    if start_step < 0:
        raise UserError(f"start_step={start_step} must not be negative; steps are counted from 0")
    source = _StepSource(mixture, _host_rows(mixture.batch_size, host, num_hosts), start_step)
    # Threads help where reading waits; where it computes, they only take the interpreter from one another.
    threads = min(prefetch, _MAX_THREADS if mixture.is_remote else 1)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))


def eval_batches(
    windows: Readable, *, batch_size: int, max_batches: int | None = None, host: int = 0, num_hosts: int = 1
) -> Iterator[dict[str, np.ndarray]]:
    """Iterate once over all windows in order, so that every token is scored once; every batch has the same shape.

    Batches are as in `train_loader`, with what else the windows give; numbers past the last window are padding (labels
    -100, segments 0). When `max_batches` does not reach for all windows, the ones read are spread evenly. Every host
    gets the same number of batches. Raises UserError as `train_loader` does.
    """
    if max_batches is not None and max_batches < 1:
        raise UserError(f"eval.max_batches={max_batches} must be positive; leave it out to read all")
    rows = _host_rows(batch_size, host, num_hosts)
    num_batches = -(-len(windows) // batch_size)
    if max_batches is None or max_batches >= num_batches:
        # Numbers past the last window read as padding.
        ids = np.arange(num_batches * batch_size)
    else:
        num_batches = max_batches
        ids = np.arange(num_batches * batch_size) * len(windows) // (num_batches * batch_size)
    return (windows.read(ids_B[rows]) for ids_B in ids.reshape(num_batches, batch_size))


class _StepSource:
    """Grain's random-access source: element n is this host's part of the batch of step start_step + n."""

    def __init__(self, mixture: Mixture, rows: slice, start_step: int) -> None:
        self._mixture, self._rows, self._start_step = mixture, rows, start_step

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, n: int) -> dict[str, np.ndarray]:
        return self._mixture.batch(self._start_step + int(n), self._rows)

    def __repr__(self) -> str:
        rows = f"{self._rows.start}..{self._rows.stop - 1}"
        return f"_StepSource({self._mixture!r}, rows={rows}, start_step={self._start_step})"


def _host_rows(batch_size: int, host: int, num_hosts: int) -> slice:
    if batch_size < 1 or batch_size % num_hosts:
        raise UserError(
            f"batch_size={batch_size} does not divide among {num_hosts} hosts; use a positive multiple of {num_hosts}"
        )
    if not 0 <= host < num_hosts:
        raise ValueError(f"host={host} of num_hosts={num_hosts}")
    rows = batch_size // num_hosts
    return slice(host * rows, host * rows + rows)
