"""Turn groups of files into units on several processes.

One process reads, decompresses and cuts; the others parse, check and tokenize, and write units themselves, so what
comes back is small. What is there already is not done again, and the bytes do not depend on the number of processes.
Processes and not threads: parsing and looking up words hold the GIL.
"""

import multiprocessing
import os
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from looplm.data.account import Account
from looplm.data.build.plan import Done, Group
from looplm.data.build.unit import ROW, UnitInfo, read_info, write_unit
from looplm.data.formats.document import Document, Part, Piece, Reading
from looplm.data.formats.read import Block, DocumentReader, read_blocks
from looplm.data.place import DiskFolder, Place
from looplm.data.source import Source
from looplm.data.tokenizer import Tokenizer
from looplm.errors import UserError

# Texts that go to the tokenizer in one call: enough to share its overhead, and little memory.
_BATCH_CHARS = 1 << 18


@dataclass(frozen=True)
class Encoder:
    """Makes units of blocks. Picklable."""

    tokenizer: Tokenizer | None
    reader: DocumentReader
    dtype: np.dtype
    """Of a token in a unit."""
    vocab_size: int | None
    """Ids that come ready-made must be below it."""

    def write(self, block: Block, names: Sequence[str], place: Place, unit: str) -> UnitInfo:
        """Encode a block into a unit; `names` are of the files of its group. Raises UserError for ids out of range."""
        account = Account()
        tokens: list[np.ndarray] = []
        masks: list[np.ndarray] = []
        digests: list[bytes] = []
        rows: list[tuple[int, int, int, int]] = []
        for piece in block.pieces:
            for document, (ids, mask) in self._encoded(piece, names[piece.source], account):
                digests.append(document.sha256[: ROW["digest"].itemsize])
                rows.append((ids.size, self._num_bytes(document), piece.source, min(document.record, 2**32 - 1)))
                tokens.append(ids)
                if mask is not None:
                    masks.append(mask)
        table = np.zeros(len(rows), ROW)
        table["digest"] = np.frombuffer(b"".join(digests), ROW["digest"])
        for number, name in enumerate(("num_tokens", "num_bytes", "source", "record")):
            table[name] = [row[number] for row in rows]
        table["start"] = np.cumsum(table["num_tokens"], dtype=np.uint64) - table["num_tokens"]
        mask = np.concatenate([np.zeros(0, np.uint8), *masks]) if self.reader.reading.examples else None
        return write_unit(place, unit, np.concatenate([np.zeros(0, self.dtype), *tokens]), mask, table, account)

    def _encoded(
        self, piece: Piece, name: str, account: Account
    ) -> Iterator[tuple[Document, tuple[np.ndarray, np.ndarray | None]]]:
        waiting: list[tuple[Document, str]] = []
        num_chars = 0
        for document in self.reader.documents(piece, name, account):
            account.notes.update(document.notes)
            if isinstance(document.content, str):
                waiting.append((document, document.content))
                num_chars += len(document.content)
                if num_chars < _BATCH_CHARS:
                    continue
            yield from self._texts(waiting)
            waiting, num_chars = [], 0
            if isinstance(document.content, tuple):
                yield document, self._parts(document.content)
            elif isinstance(document.content, np.ndarray):
                yield document, (self._checked(document.content, name, document.record), None)
        yield from self._texts(waiting)

    def _texts(self, documents: Sequence[tuple[Document, str]]) -> Iterator[tuple[Document, tuple[np.ndarray, None]]]:
        if not documents:
            return
        if self.tokenizer is None:
            raise UserError("texts need a tokenizer; give --tokenizer FILE, or only files of tokens")
        encoded = self.tokenizer.encode_batch([text for _, text in documents])
        for (document, _), ids in zip(documents, encoded, strict=True):
            tokens = np.empty(ids.size + 2, self.dtype)
            tokens[0], tokens[1:-1], tokens[-1] = self.tokenizer.bos_id, ids, self.tokenizer.eos_id
            yield document, (tokens, None)

    def _parts(self, parts: Sequence[Part]) -> tuple[np.ndarray, np.ndarray]:
        """Parts are encoded one by one, so that a token is in an answer or not, as when an answer is generated."""
        assert self.tokenizer is not None
        ids = self.tokenizer.encode_document([part.text for part in parts])
        is_learnt = [0, *(int(part.is_learnt) for part in parts)]
        if not ids[-1].size or ids[-1][-1] != self.tokenizer.eos_id:
            ids.append(np.asarray([self.tokenizer.eos_id]))
            is_learnt.append(is_learnt[-1])
        mask = np.repeat(np.asarray(is_learnt, np.uint8), [array.size for array in ids])
        return np.concatenate(ids).astype(self.dtype), mask

    def _checked(self, ids: np.ndarray, name: str, record: int) -> np.ndarray:
        limit = self.vocab_size or np.iinfo(self.dtype).max + 1
        low, high = int(ids.min()), int(ids.max())
        if low < 0:
            raise UserError(
                f"{name}:{record + 1} holds token {low}: ids of 32768 and more became negative when they were "
                "written as 16 bits with a sign; write them as uint16 or int32"
            )
        if high >= limit:
            raise UserError(
                f"{name}:{record + 1} holds token {high}, which is not below the vocabulary of {limit}; give the "
                "tokenizer it was made with, or check its type (--token-dtype)"
            )
        return ids.astype(self.dtype)

    def _num_bytes(self, document: Document) -> int:
        if isinstance(document.content, np.ndarray) and self.tokenizer is not None:
            return len(self.tokenizer.decode(document.content).encode())
        return document.num_bytes


@dataclass
class _Waiting:
    """A unit that is worked on, or the end of a group (`block` None)."""

    group: Group
    block: Block | None = None
    made: "Future[tuple[UnitInfo, bool]] | None" = None
    """The unit, and whether it is new."""
    sources: list[Source] = field(default_factory=list)
    account: Account = field(default_factory=Account)


def encode_groups(
    place: Place, groups: Sequence[Group], encoder: Encoder, num_workers: int, tell: Callable[..., None]
) -> list[Done]:
    """Make the units of all groups, and return what is known of the groups. One worker is the calling process.

    `tell` is called after every unit (`report.Meter.encoded`). Raises what reading and encoding raise.
    """
    with _pool(encoder, num_workers, place, groups) as pool:
        try:
            return _encode(place, groups, encoder, pool, 2 * num_workers, tell)
        except BrokenProcessPool:
            raise UserError(
                "a process of the build ended too early, killed for its memory perhaps if it printed nothing; run the "
                f"same command again, with fewer than --workers {num_workers}: it goes on"
            ) from None


def _encode(
    place: Place,
    groups: Sequence[Group],
    encoder: Encoder,
    pool: ProcessPoolExecutor | None,
    most_waiting: int,
    tell: Callable[..., None],
) -> list[Done]:
    waiting: deque[_Waiting] = deque()
    finished: dict[str, Done] = {}
    units: list[UnitInfo] = []  # of the group that is being finished

    def finish(item: _Waiting) -> None:
        if item.block is not None:
            info, is_new = item.made.result()  # type: ignore[union-attr]
            units.append(info)
            tell(item.block.num_bytes, item.block.num_files, info.num_tokens, is_new=is_new)
            return
        done = finished[item.group.folder] = Done(item.group.folder, tuple(units), tuple(item.sources), item.account)
        item.group.write_done(place, done)
        units.clear()

    for group in groups:
        if done := group.read_done(place):
            finished[group.folder] = done
            tell(group.size, len(group.files), sum(unit.num_tokens for unit in done.units), is_new=False)
            continue
        account = Account()
        sources: list[Source] = []
        names = [file.name for file in group.files]
        for block in read_blocks(group.files, encoder.reader.reading, account, sources):
            unit = group.unit(block.number)
            if pool is None:
                made: Future[tuple[UnitInfo, bool]] = Future()
                made.set_result(_made(encoder, block, names, place, unit))
            else:
                made = pool.submit(_made_in_pool, block, names, place, unit)
            waiting.append(_Waiting(group, block, made))
            while len(waiting) > (0 if pool is None else most_waiting):
                finish(waiting.popleft())
        waiting.append(_Waiting(group, sources=sources, account=account))
    while waiting:
        finish(waiting.popleft())
    return [finished[group.folder] for group in groups]


# Of a worker process: set once, and not sent with every task.
_encoder: Encoder | None = None


@contextmanager
def _pool(
    encoder: Encoder, num_workers: int, place: Place, groups: Sequence[Group]
) -> Iterator[ProcessPoolExecutor | None]:
    if num_workers == 1:
        yield None
        return
    # Not forked: the caller may have threads, of jax for one.
    context = multiprocessing.get_context("spawn")
    folder = (place.path / groups[0].folder).parent if isinstance(place, DiskFolder) and groups else None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    # The tokenizer goes by files: more than the buffer of a pipe, and one process would start after the other.
    with tempfile.TemporaryDirectory(dir=folder) as name:
        for file, data in (encoder.tokenizer.files if encoder.tokenizer else {}).items():
            Path(name, file).write_bytes(data)
        rest = replace(encoder, tokenizer=None)
        pool = ProcessPoolExecutor(num_workers, context, initializer=_start, initargs=(rest, Path(name)))
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start(rest: Encoder, folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the first process says when to end
    global _encoder  # noqa: PLW0603
    _encoder = replace(rest, tokenizer=Tokenizer.find(folder))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()
    assert parent is not None

    def leave_with_parent() -> None:
        parent.join()
        os._exit(1)

    # A pool's processes outlive a parent that was killed: each of them holds both ends of their queue.
    threading.Thread(target=leave_with_parent, daemon=True).start()


def _made_in_pool(block: Block, names: Sequence[str], place: Place, unit: str) -> tuple[UnitInfo, bool]:
    assert _encoder is not None
    return _made(_encoder, block, names, place, unit)


def _made(encoder: Encoder, block: Block, names: Sequence[str], place: Place, unit: str) -> tuple[UnitInfo, bool]:
    """Return the unit that an earlier start has made, or make it; and whether it is new."""
    info = read_info(place, unit)
    return (info, False) if info is not None else (encoder.write(block, names, place, unit), True)


def reader_of(reading: Reading, tokenizer: Tokenizer | None) -> DocumentReader:
    """Return the reader of documents that suits a tokenizer."""
    if tokenizer is None:
        return DocumentReader(reading, {})
    return DocumentReader(reading, tokenizer.template_tokens, tokenizer.special_names)
