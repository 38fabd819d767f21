"""Build a token dataset from text files: all of it or nothing.

Everything is written into a hidden folder beside the target, synced, and renamed into place; on any failure that
folder is removed. The bytes depend on the texts, the tokenizer and the arguments, not on the machine or the number of
workers. Documents keep their order: mixing them is the business of `index`. Deliberately absent: resuming a build.
"""

import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from looplm.data.encode import encode_files
from looplm.data.manifest import Manifest
from looplm.data.shard import FolderWriter, Source, sync_folder, token_dtype
from looplm.data.source import Skipped, find_files, no_documents, reasons
from looplm.data.tokenizer import Tokenizer
from looplm.errors import UserError

_WHOLE = "."
_PARTS = ("train", "validation")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a build is; given to the callback after every file."""

    num_files: int
    total_files: int
    num_bytes: int
    """Bytes of the files read so far."""
    total_bytes: int
    num_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What was built."""

    path: Path
    datasets: dict[str, Manifest]
    """Manifest of every dataset by its folder under `path`; the key is "." for an undivided dataset."""
    skipped: dict[str, int]
    """Input files that gave no document, by reason."""
    seconds: float
    num_workers: int

    def __str__(self) -> str:
        parts = ", ".join(
            f"{name}: {part.num_documents} documents and {part.num_tokens} tokens"
            for name, part in self.datasets.items()
            if name != _WHOLE
        )
        return (
            f"{self.num_documents} documents, {self.num_bytes / 1e6:.1f} MB, {self.num_tokens / 1e6:.2f} M tokens"
            f"{f' ({parts})' if parts else ''} in {self.seconds:.1f} s; skipped: {reasons(self.skipped)}"
        )

    @property
    def num_tokens(self) -> int:
        return sum(manifest.num_tokens for manifest in self.datasets.values())

    @property
    def num_documents(self) -> int:
        return sum(manifest.num_documents for manifest in self.datasets.values())

    @property
    def num_bytes(self) -> int:
        """Bytes of the texts in UTF-8."""
        return sum(manifest.num_bytes for manifest in self.datasets.values())


def build_dataset(
    inputs: Sequence[Path],
    tokenizer_file: Path,
    out: Path,
    *,
    validation_fraction: float = 0.0,
    num_workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> BuildReport:
    """Tokenize the files of `inputs` into the dataset folder `out`.

    With `validation_fraction` above 0, about that share of the documents is held out, and `out/train` and
    `out/validation` are two datasets. A document's side depends on its text alone, so copies of a text stay together
    and a rebuild with more files moves none. `num_workers` is the number of threads, by default one for every core.
    Raises UserError for missing inputs or tokenizer, no document, an `out` that holds something, or an empty side.
    """
    started = time.monotonic()
    out = Path(out)
    if not 0.0 <= validation_fraction < 1.0:
        raise UserError(f"validation_fraction={validation_fraction} must be at least 0 and below 1; 0.05 is usual")
    if num_workers is None:
        num_workers = _available_cores()
    elif num_workers < 1:
        raise UserError(f"num_workers={num_workers} must be positive; leave it out to use every core")
    _check_free(out)
    tokenizer = Tokenizer.load(tokenizer_file)
    if tokenizer.bos_id < 0 or tokenizer.eos_id < 0:
        raise UserError(f"the tokenizer {tokenizer.path} lacks a bos or eos piece; documents begin and end with them")
    files = find_files(inputs)
    total_bytes = sum(file.size for file in files)
    skipped: Counter[str] = Counter()
    sources: list[Source] = []
    num_bytes = num_tokens = 0

    with _staged(out) as staging, ExitStack() as stack:
        writers = {}
        for part in _PARTS if validation_fraction else [_WHOLE]:
            (staging / part).mkdir(exist_ok=True)
            writers[part] = stack.enter_context(FolderWriter(staging / part, tokenizer))
        encoded = encode_files(files, tokenizer, token_dtype(tokenizer.vocab_size), num_workers)
        stack.enter_context(closing(encoded))
        for number, (file, document) in enumerate(encoded, start=1):
            if isinstance(document, Skipped):
                skipped[document.reason] += 1
            else:
                part = held_out_part(document.sha256, validation_fraction)
                writers[part].add(document.tokens, num_bytes=document.num_bytes, sources=(len(sources), 0))
                sources.append(Source(file.name, file.size, document.sha256))
                num_tokens += document.tokens.size
            num_bytes += file.size
            if progress is not None:
                seconds = time.monotonic() - started
                progress(Progress(number, len(files), num_bytes, total_bytes, num_tokens, seconds))
        _check_not_empty(inputs, writers, skipped, validation_fraction)
        datasets = {part: writer.finish(sources, skipped) for part, writer in writers.items()}
    return BuildReport(out, datasets, dict(skipped), time.monotonic() - started, num_workers)


def held_out_part(sha256: str, validation_fraction: float) -> str:
    """Choose the side of a document by the first 64 bits of its digest."""
    if validation_fraction == 0.0:
        return _WHOLE
    return _PARTS[int(sha256[:16], 16) < validation_fraction * 2.0**64]


def _check_free(out: Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"output {out} exists already; remove it or choose another folder")


def _check_not_empty(
    inputs: Sequence[Path], writers: dict[str, FolderWriter], skipped: Counter[str], validation_fraction: float
) -> None:
    num_documents = sum(writer.num_documents for writer in writers.values())
    if num_documents == 0:
        raise no_documents(inputs, skipped)
    for part, writer in writers.items():
        if writer.num_documents == 0:
            raise UserError(
                f"validation_fraction={validation_fraction} of {num_documents} whole documents leaves the {part} part "
                "empty; change the fraction or give more documents"
            )


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """Give a hidden folder beside `out` that becomes `out` on success and is removed on any failure."""
    parent = out.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, because a rename is atomic only within one file system.
    staging = Path(tempfile.mkdtemp(dir=parent, prefix=f".{out.name}.", suffix=".partial"))
    try:
        staging.chmod(0o755)  # mkdtemp makes it private to the user
        yield staging
        sync_folder(staging)
        try:
            staging.replace(out)
        except OSError as error:
            raise UserError(f"cannot make {out}: {error.strerror}; remove it or choose another folder") from error
        sync_folder(parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _available_cores() -> int:
    # Containers and job schedulers give fewer cores than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
