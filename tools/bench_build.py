"""How fast and in how much memory `looplm data build` makes a dataset.

    python tools/bench_build.py speed [--mb 100] [--workers 2] [--tokenizer FILE] [--text PATH]
    python tools/bench_build.py memory [--mb 200 --mb 2000]

speed: a build of one .jsonl file of generated text, or of the files of PATH, against the tokenizer library alone on the
same texts, already in memory, with as many threads; in turn, medians of pairs. memory: of generated text, the largest
sum of the resident memory of all processes of the command.
"""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import typer

from looplm.data.formats.read import read_documents
from looplm.data.tokenizer import Tokenizer, train_tokenizer
from looplm.data.tokenizer.huggingface import HuggingFaceTokenizer
from looplm.data.writer import build_dataset

app = typer.Typer(add_completion=False)
NUM_WORDS, VOCAB_SIZE = 20_000, 8192
Text = Annotated[Path | None, typer.Option(help="A file or folder of real text instead.")]
Tokens = Annotated[Path | None, typer.Option(help="Its tokenizer; one is trained on the text when left out.")]


def paragraphs(num: int, seed: int = 0) -> list[str]:
    """Texts of some 3 kB: random words, drawn by Zipf's law."""
    rng = np.random.default_rng(seed)
    letters = list("etaoinshrdlucmfwypvbgkjqxz")
    words = ["".join(rng.choice(letters, size=size)) for size in rng.integers(2, 10, NUM_WORDS)]
    weights = 1.0 / np.arange(3, NUM_WORDS + 3)
    drawn = np.array(words, dtype=object)[rng.choice(NUM_WORDS, size=(num, 600), p=weights / weights.sum())]
    lengths = rng.integers(20, 600, num)
    return [" ".join(row[:length]) + "." for row, length in zip(drawn, lengths, strict=True)]


def write_lines(path: Path, num_mb: float, keep: int | None = None) -> list[str]:
    """Writes so many MB of JSON lines, no two of them equal; returns their texts, or the first few."""
    texts, kept, num_bytes, number = paragraphs(5000), [], 0, 0
    with path.open("w") as file:
        while num_bytes < num_mb * 1e6:
            text = f"{number} {texts[number * 7919 % len(texts)]}"
            line = json.dumps({"id": number, "text": text}) + "\n"
            file.write(line)
            if keep is None or number < keep:
                kept.append(text)
            num_bytes, number = num_bytes + len(line), number + 1
    return kept


def seconds(function: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds, of child processes too."""

    def cpu() -> float:
        return sum(
            usage.ru_utime + usage.ru_stime
            for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        )

    started, cpu_started = time.perf_counter(), cpu()
    function()
    return time.perf_counter() - started, cpu() - cpu_started


def library(tokenizer: Tokenizer, texts: list[str], threads: int) -> None:
    """The tokenizer library alone, until the ids are there."""
    if isinstance(tokenizer, HuggingFaceTokenizer):
        # RAYON_NUM_THREADS threads.
        for encoding in tokenizer._plain.encode_batch_fast(texts, add_special_tokens=False):
            encoding.ids  # noqa: B018
    else:
        tokenizer._processor.encode(texts, num_threads=threads, return_type="numpy")  # type: ignore[attr-defined]


@app.command()
def speed(mb: float = 100, workers: int = 2, rounds: int = 3, tokenizer: Tokens = None, text: Text = None) -> None:
    """Prints a table."""
    os.environ["RAYON_NUM_THREADS"] = str(workers)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if text is None:
            texts = write_lines(folder / "text.jsonl", mb)
        else:
            texts = [str(document.content) for document in read_documents([text])]
        size = sum(len(one.encode()) for one in texts) / 1e6
        file = tokenizer or train_tokenizer(texts[:1000], VOCAB_SIZE, folder)
        loaded = Tokenizer.load(file)

        def build() -> None:
            build_dataset([text or folder / "text.jsonl"], file, folder / "out", num_workers=workers)

        library(loaded, texts[:100], workers)
        pairs = []
        for _ in range(rounds):
            pairs.append((seconds(lambda: library(loaded, texts, workers)), seconds(build)))
            shutil.rmtree(folder / "out")
    print(f"{size:.0f} MB of text in {len(texts)} documents, {workers} threads or processes, {rounds} rounds\n")
    print("| seconds | library alone, MB/s | build, MB/s | ratio |\n|---|---|---|---|")
    for kind, place in (("wall", 0), ("CPU", 1)):
        alone, ours = (statistics.median(size / pair[side][place] for pair in pairs) for side in (0, 1))
        ratio = statistics.median(one[place] / other[place] for one, other in pairs)
        print(f"| {kind} | {alone:.2f} | {ours:.2f} | {ratio:.2f} |")


@app.command()
def memory(mb: Annotated[list[float] | None, typer.Option()] = None, workers: int = 2, shuffle: bool = True) -> None:
    """Prints a table."""
    print("| MB of input | documents | peak resident memory, MB | of the first process | seconds |")
    print("|---|---|---|---|---|")
    for size in mb or [200, 2000]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            file = train_tokenizer(write_lines(folder / "text.jsonl", size, keep=1000), VOCAB_SIZE, folder)
            words = ["--input", folder / "text.jsonl", "--tokenizer", file, "--out", folder / "out"]
            words += ["--workers", workers, "--dedup", "--validation-fraction", 0.01, *(["--shuffle", 1] * shuffle)]
            started = time.perf_counter()
            command = [sys.executable, "-m", "looplm", "data", "build", *map(str, words)]
            process = psutil.Popen(command, stdout=subprocess.DEVNULL)
            peak = peak_first = 0
            while process.poll() is None:
                sizes = []
                for one in (process, *process.children()):
                    try:
                        sizes.append(one.memory_info().rss)
                    except psutil.NoSuchProcess:
                        sizes.append(0)
                peak, peak_first = max(peak, sum(sizes)), max(peak_first, sizes[0])
                time.sleep(0.05)
            assert process.returncode == 0
            num_documents = json.loads((folder / "out/build_report.json").read_text())["num_documents"]
            cells = (size, num_documents, peak / 1e6, peak_first / 1e6, time.perf_counter() - started)
            print("|", " | ".join(f"{cell:.0f}" for cell in cells), "|", flush=True)


if __name__ == "__main__":
    app()
