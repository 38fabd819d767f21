"""Reads stretches of a stream of numbers that lies in several files, all but the last equally long."""

from collections.abc import Sequence

import numpy as np

from looplm.data.remote import RemoteArray

Files = Sequence[np.ndarray | RemoteArray]


def read_stretches(files: Files, ranges: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Return numbers start..stop-1 of the stream for every (start, stop) inside of it, (stop - start,) in the type of
    the files: a view where one file on a disk holds them. At an address, all of a file travel together."""
    size = files[0].size
    if len(files) == 1 and isinstance(files[0], np.ndarray):
        return [files[0][start:stop] for start, stop in ranges]

    def over(start: int, stop: int) -> range:
        """The files that a stretch lies in."""
        return range(start // size, (stop - 1) // size + 1) if start < stop else range(0)

    wanted: list[list[tuple[int, int]]] = [[] for _ in files]
    for start, stop in ranges:
        for number in over(start, stop):
            wanted[number].append((max(start - number * size, 0), min(stop - number * size, size)))
    found = [iter(_read(file, parts)) for file, parts in zip(files, wanted, strict=True)]
    stretches = []
    for start, stop in ranges:
        parts = [next(found[number]) for number in over(start, stop)]
        stretches.append(parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else files[0][0:0])
    return stretches


def _read(file: np.ndarray | RemoteArray, ranges: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    if isinstance(file, RemoteArray):
        return file.read_many(ranges)
    return [file[start:stop] for start, stop in ranges]
