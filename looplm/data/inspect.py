"""What is in a dataset, for people: counts, lengths, the beginnings of some documents."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from looplm.data.account import reasons
from looplm.data.dataset import TokenDataset
from looplm.errors import UserError

_STRIDE = 1 << 20
_BAR = 40
_SHOWN_TOKENS = 48


class Told(NamedTuple):
    """A line about a dataset."""

    line: str
    text: str = ""
    """What it ends with: words of the dataset itself, to be shown as they are."""


def describe(path: Path | str, num_samples: int, *, verify: bool) -> Iterator[Told]:
    """Yield lines about a dataset. Raises UserError unless it is one; with `verify`, if a file was changed too."""
    dataset = TokenDataset.open(path)
    if num_samples < 0:
        raise UserError(f"--samples {num_samples} must not be negative")
    yield from map(Told, _summary(dataset))
    yield from map(Told, _histogram(dataset))
    yield from _samples(dataset, num_samples)
    if verify:
        dataset.verify()
        yield Told(f"verified: the digests of {len(dataset.manifest.files)} files are right")


def _summary(dataset: TokenDataset) -> Iterator[str]:
    manifest = dataset.manifest
    size = sum(entry.size for entry in manifest.files)
    tokenizer = f"{manifest.tokenizer_file} {manifest.tokenizer_fingerprint}" if dataset.has_tokenizer else "none"
    counts = f"{dataset.num_documents} documents, {dataset.num_tokens} tokens, {size / 1e6:.1f} MB of files"
    yield f"dataset {dataset.location}: {counts}"
    yield f"tokens: {manifest.dtype}, below {dataset.vocab_size}; tokenizer: {tokenizer}"
    if dataset.num_bytes:
        rate = dataset.num_bytes / dataset.num_tokens
        yield f"text: {dataset.num_bytes / 1e6:.1f} MB in UTF-8, {rate:.2f} bytes a token"
    if manifest.has_loss_mask:
        learnt = 0
        for start in range(0, dataset.num_tokens, _STRIDE):
            learnt += int(np.sum(dataset.loss_mask(start, min(start + _STRIDE, dataset.num_tokens))))  # type: ignore[arg-type]
        yield f"loss on answers only: {learnt} tokens, {learnt / dataset.num_tokens:.1%}"
    yield f"skipped in the build: {reasons(manifest.skipped)}"
    yield f"fingerprint: {dataset.fingerprint}"


def _histogram(dataset: TokenDataset) -> Iterator[str]:
    """Documents and tokens by length, in powers of two."""
    documents, tokens = np.zeros(65, np.int64), np.zeros(65, np.int64)
    offsets = dataset.document_offsets
    shortest, longest = np.iinfo(np.int64).max, 0
    for start in range(0, dataset.num_documents, _STRIDE):
        lengths = np.diff(offsets[start : start + _STRIDE + 1].astype(np.int64))
        powers = np.frexp(lengths.astype(np.float64))[1] - 1
        documents += np.bincount(powers, minlength=65)
        tokens += np.bincount(powers, weights=lengths, minlength=65).astype(np.int64)
        shortest, longest = min(shortest, int(lengths.min())), max(longest, int(lengths.max()))
    mean = dataset.num_tokens / dataset.num_documents
    yield f"tokens a document: {shortest} to {longest}, {mean:.1f} on average"
    there = np.flatnonzero(documents).tolist()
    for power in range(there[0], there[-1] + 1):
        bar = "#" * -(-_BAR * int(documents[power]) // int(documents.max()))
        share = tokens[power] / dataset.num_tokens
        yield f"  from {1 << power:>8}: {documents[power]:>9} documents, {share:6.1%} of tokens {bar}".rstrip()


def _samples(dataset: TokenDataset, count: int) -> Iterator[Told]:
    """The beginnings of documents spread over the dataset, with where they are from."""
    tokenizer = dataset.tokenizer() if dataset.has_tokenizer else None
    numbers = np.unique(np.linspace(0, dataset.num_documents - 1, min(count, dataset.num_documents)).astype(np.int64))
    names = dataset.source_names(dataset.document_sources[numbers, 0].tolist())
    for number in numbers.tolist():
        start, stop = (int(place) for place in dataset.document_offsets[number : number + 2])
        source, record = dataset.document_sources[number].tolist()
        ids = dataset.tokens(start, min(stop, start + _SHOWN_TOKENS))
        shown = repr(tokenizer.decode(ids)) if tokenizer else " ".join(map(str, ids.tolist()))
        more = " ..." * (stop - start > _SHOWN_TOKENS)
        yield Told(f"document {number}, {names[source]}:{record + 1}, {stop - start} tokens: ", f"{shown}{more}")
