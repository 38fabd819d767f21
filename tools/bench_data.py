"""How fast are batches ready? looplm's loader against other readers of the same tokens, in one process.

    python tools/bench_data.py                                  table of tokens/s and ratios, a minute or two
    python tools/bench_data.py --batch 512 --rounds 9

Windows of S tokens in shuffled order, from files that are in the page cache: what is left is the reader. Everybody
reads as many windows in turn, several times; rates are medians, and ratios medians of pairs. "Tokens only" readers give
the bare numbers; looplm and the row that says so also give labels, segments and positions, with documents kept apart.
A reader's own reading ahead counts from its start. Peers that are not installed (torch, mosaicml-streaming) are left
out with a line.
"""

import gc
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import grain
import numpy as np
import typer

from looplm.config.schema import Data
from looplm.data.dataset import TokenDataset
from looplm.data.loader import train_loader
from looplm.data.mixture import open_mixture
from looplm.data.shard import FolderWriter
from looplm.data.window import read_windows

Reader = Callable[[], Iterator[Any]]
VOCAB = 50_000


def write_tokens(folder: Path, num_tokens: int) -> TokenDataset:
    """Documents of some 600 tokens on average, from very short to very long."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5.9, 1.0, num_tokens // 600), 8, 50_000).astype(np.int64)
    folder.mkdir()
    with FolderWriter(folder, None, vocab_size=VOCAB) as writer:
        writer.add(rng.integers(0, VOCAB, int(lengths.sum()), dtype=np.uint16), lengths=lengths)
        writer.finish()
    return TokenDataset.open(folder)


def looplm_reader(dataset: TokenDataset, S: int, B: int, prefetch: int, **options: Any) -> Reader:
    data = Data(train=str(dataset.path), sequence_length=S, batch_tokens=S * B, **options)
    mixture = open_mixture(data, seed=0)
    return lambda: train_loader(mixture, start_step=0, prefetch=prefetch)


class Slices:
    """One window an example, as Grain and PyTorch want it."""

    def __init__(self, file: Path, S: int) -> None:
        self.tokens, self.S = np.memmap(file, "<u2", mode="r"), S

    def __len__(self) -> int:
        return len(self.tokens) // self.S

    def __getitem__(self, index: int) -> np.ndarray:
        return self.tokens[index * self.S : (index + 1) * self.S].astype(np.int32)


class Rows:
    """One window an example, with all that looplm gives."""

    def __init__(self, dataset: TokenDataset, S: int) -> None:
        self.dataset, self.S = dataset, S

    def __len__(self) -> int:
        return (self.dataset.num_tokens - 1) // self.S

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        batch = read_windows(self.dataset, np.array([index]), self.S)
        return {name: value[0] for name, value in batch.items()}


def grain_reader(source: Any, B: int) -> Reader:
    """Grain's defaults: shuffled examples, read by its threads, then batched."""
    return lambda: iter(grain.MapDataset.source(source).shuffle(seed=0).repeat().to_iter_dataset().batch(B))


def torch_reader(source: Any, B: int, workers: int) -> Reader:
    from torch.utils.data import DataLoader

    return lambda: iter(DataLoader(source, batch_size=B, shuffle=True, num_workers=workers, drop_last=True))


def streaming_reader(file: Path, folder: Path, S: int, B: int) -> Reader:
    """MosaicML Streaming on its own format, written here."""
    from streaming import MDSWriter, StreamingDataset
    from torch.utils.data import DataLoader

    tokens = np.memmap(file, "<u2", mode="r")
    with MDSWriter(out=str(folder), columns={"tokens": f"ndarray:uint16:{S}"}) as writer:
        for start in range(0, len(tokens) - S, S):
            writer.write({"tokens": np.asarray(tokens[start : start + S])})
    dataset = StreamingDataset(local=str(folder), shuffle=True, batch_size=B)
    return lambda: iter(DataLoader(dataset, batch_size=B, drop_last=True))


def rates(reader: Reader, tokens_each: int, batches: int) -> tuple[float, float]:
    """Tokens a second, and a second of this process's work on all cores."""
    started, worked = time.perf_counter(), time.process_time()
    count = sum(1 for _ in islice(reader(), batches))
    seconds = time.perf_counter() - started, time.process_time() - worked
    return count * tokens_each / seconds[0], count * tokens_each / seconds[1]


def settle() -> None:
    """Wait until nothing computes in this process: what read ahead for the reader before goes on for a while."""
    gc.collect()
    worked = -1.0
    while time.process_time() - worked > 0.01:
        worked = time.process_time()
        time.sleep(0.3)


def main(
    length: Annotated[int, typer.Option(help="S.")] = 2048,
    batch: Annotated[int, typer.Option(help="B.")] = 64,
    tokens: Annotated[int, typer.Option(help="Tokens on disk.")] = 60_000_000,
    batches: Annotated[int, typer.Option(help="Batches a round.")] = 150,
    rounds: int = 5,
    prefetch: Annotated[int, typer.Option(help="Batches looplm reads ahead.")] = 4,
) -> None:
    """Prints the table."""
    work = Path(tempfile.mkdtemp(prefix="bench_data"))
    try:
        dataset = write_tokens(work / "data", tokens)
        file = dataset.path / "tokens-00000.bin"
        packed = {"packing": "best_fit", "cache_dir": str(work)}
        readers: dict[str, Callable[[], Reader]] = {
            "looplm": lambda: looplm_reader(dataset, length, batch, prefetch),
            "looplm, best-fit packing": lambda: looplm_reader(dataset, length, batch, prefetch, **packed),
            "Grain, one window an example, the same arrays": lambda: grain_reader(Rows(dataset, length), batch),
            "Grain, one window an example, tokens only": lambda: grain_reader(Slices(file, length), batch),
            "PyTorch DataLoader over a memory map, tokens only": lambda: torch_reader(Slices(file, length), batch, 0),
            "the same, two worker processes": lambda: torch_reader(Slices(file, length), batch, 2),
            "MosaicML Streaming, tokens only": lambda: streaming_reader(file, work / "mds", length, batch),
        }
        ready: dict[str, Reader] = {}
        for name, make in readers.items():
            try:
                ready[name] = make()
            except ImportError as error:
                print(f"without {name}: {error}")
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in ready}
        for _ in range(rounds):
            for name, reader in ready.items():
                settle()
                found[name].append(rates(reader, length * batch, batches))
        print(f"{len(os.sched_getaffinity(0))} cores, S={length}, B={batch}, {dataset.num_tokens / 1e6:.0f} M tokens")
        print(
            "\n| reader | M tokens/s | looplm is so many times as fast | M tokens per CPU second |\n|---|---|---|---|"
        )
        for name, pairs in found.items():
            by_clock, by_work = (statistics.median(column) / 1e6 for column in zip(*pairs, strict=True))
            ratio = statistics.median(ours[0] / theirs[0] for ours, theirs in zip(found["looplm"], pairs, strict=True))
            # What worker processes do is not in this process's time.
            print(f"| {name} | {by_clock:.1f} | {ratio:.1f} | {'-' if 'processes' in name else f'{by_work:.1f}'} |")
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    typer.run(main)
