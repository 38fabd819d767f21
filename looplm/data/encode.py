"""Turn files into token arrays on several threads, in the order of the files.

Threads and not processes: SentencePiece (0.2.3 and later) releases the GIL while it encodes, so two threads encode
twice as fast as one, with nothing to pickle and no worker process to lose. The result does not depend on how many.
Deliberately absent: writing.
"""

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from looplm.data.source import Skipped, SourceFile, read_file
from looplm.data.tokenizer import Tokenizer

# Read ahead of the writer at most this much text, so that memory does not grow with the number or size of files.
_MAX_BYTES_AHEAD = 256 << 20


@dataclass(frozen=True, slots=True)
class EncodedDocument:
    """A document as tokens."""

    name: str
    tokens: np.ndarray
    """[bos, tokens..., eos], (num_tokens,), of the dtype asked for."""
    num_bytes: int
    """Bytes of the text in UTF-8."""
    sha256: str
    """Hex digest of those bytes."""


def encode_files(
    files: Sequence[SourceFile], tokenizer: Tokenizer, dtype: np.dtype, num_workers: int
) -> Generator[tuple[SourceFile, EncodedDocument | Skipped], None, None]:
    """Yield every file with its document, in order. One worker runs in the calling thread.

    Raises what reading raises, at the place of the failing file. Close the generator when leaving it early: that
    cancels the work that has not begun.
    """
    if num_workers == 1:
        for file in files:
            yield file, _encode_file(file, tokenizer, dtype)
        return
    pending: deque[tuple[SourceFile, Future[EncodedDocument | Skipped]]] = deque()
    bytes_ahead = 0
    executor = ThreadPoolExecutor(num_workers, thread_name_prefix="encode")
    try:
        for file in files:
            while pending and (len(pending) >= 4 * num_workers or bytes_ahead + file.size > _MAX_BYTES_AHEAD):
                done, future = pending.popleft()
                bytes_ahead -= done.size
                yield done, future.result()
            pending.append((file, executor.submit(_encode_file, file, tokenizer, dtype)))
            bytes_ahead += file.size
        while pending:
            done, future = pending.popleft()
            yield done, future.result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _encode_file(file: SourceFile, tokenizer: Tokenizer, dtype: np.dtype) -> EncodedDocument | Skipped:
    document = read_file(file)
    if isinstance(document, Skipped):
        return document
    ids = tokenizer.encode(document.text)
    tokens = np.empty(ids.size + 2, dtype)
    tokens[0], tokens[1:-1], tokens[-1] = tokenizer.bos_id, ids, tokenizer.eos_id
    return EncodedDocument(document.name, tokens, document.num_bytes, document.sha256)
