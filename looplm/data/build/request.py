"""What a build is asked for, checked before much is read: files, tokenizer, how files are read, what is made of it all.

A dataset depends on this alone, and so does the digest that names the build.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from looplm.data.account import Account
from looplm.data.build.encode import Encoder, reader_of
from looplm.data.build.plan import Group, plan
from looplm.data.formats.document import Reading
from looplm.data.formats.read import PLAIN
from looplm.data.formats.template import MESSAGE_FIELDS, PAIR_FIELDS, check_template, chosen_template
from looplm.data.formats.token_file import separator_begins
from looplm.data.shard import token_dtype
from looplm.data.source import Source, SourceFile, find_files
from looplm.data.tokenizer import Tokenizer
from looplm.errors import UserError

RULES = 1
"""By which a dataset is made of documents: a change of its bytes needs another number, and datasets of before are then
other builds; the mending of documents that were wrong does not. How the work is cut into units is no part of it
(`plan.FORMAT`)."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the dataset depends on beside its input, as it is in the report."""

    reading: Reading
    tokenizer: str | None
    """Its fingerprint."""
    vocab_size: int | None
    validation_fraction: float
    shuffle_seed: int | None
    dedup: bool

    def listed(self) -> dict[str, Any]:
        """Return the fields as they name a build."""
        return {**asdict(self), "reading": self.reading.listed()}

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "Options":
        """Return what `listed` gave."""
        return cls(**fields | {"reading": Reading(**fields["reading"])})

    def build(self, files: Iterable[SourceFile | Source]) -> str:
        """Return the digest that names the build of these files, hex."""
        listed = [(file.name, file.size) for file in files]
        return hashlib.sha256(json.dumps([RULES, self.listed(), listed]).encode()).hexdigest()


@dataclass(frozen=True)
class Request:
    """A build, ready to be read for. Made by `make_request`. Picklable."""

    inputs: tuple[Path, ...]
    """As they were given."""
    groups: tuple[Group, ...]
    """All files."""
    besides: Account
    """What was passed over in looking for the files."""
    options: Options
    encoder: Encoder
    template: str
    """Which one writes the examples."""

    @property
    def files(self) -> list[SourceFile]:
        """All of them, in order."""
        return [file for group in self.groups for file in group.files]

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self.encoder.tokenizer


def make_request(
    inputs: Sequence[Path],
    tokenizer_file: Path | None,
    *,
    reading: Reading = PLAIN,
    bos: str | None = None,
    eos: str | None = None,
    vocab_size: int | None = None,
    validation_fraction: float = 0.0,
    shuffle_seed: int | None = None,
    dedup: bool = False,
) -> Request:
    """List the files and check what is asked for.

    Args:
        tokenizer_file: None if all files are ready-made tokens.
        bos, eos: names of the tokens that begin and end a document, where the tokenizer does not say it.
        vocab_size: what ready-made tokens are below; by default the largest and one more.
        validation_fraction: above 0, about that share of the documents is held out, and `out/train` and
            `out/validation` are two datasets. The side of a document depends on its text alone, so copies stay
            together and a rebuild with more files moves none.
        shuffle_seed: brings the documents into a random order; None keeps that of the input.
        dedup: leave out documents whose text was there before.

    Raises UserError for a wrong request.
    """
    if not 0.0 <= validation_fraction < 1.0:
        raise UserError(f"validation_fraction={validation_fraction} must be at least 0 and below 1; 0.05 is usual")
    if vocab_size is not None and vocab_size < 1:
        raise UserError(f"vocab_size={vocab_size} must be positive; leave it out for the largest token and one more")
    tokenizer = _load_tokenizer(tokenizer_file, bos, eos, vocab_size)
    reading, template = _completed(reading, tokenizer)
    besides = Account()
    files = find_files(inputs, besides)
    fingerprint = tokenizer.fingerprint if tokenizer else None
    options = Options(reading, fingerprint, vocab_size, validation_fraction, shuffle_seed, dedup)
    # Follows from the files, so it is no option.
    reading = dataclasses.replace(reading, separator_begins=separator_begins(files, reading))
    below = tokenizer.vocab_size if tokenizer else vocab_size
    encoder = Encoder(tokenizer, reader_of(reading, tokenizer), unit_dtype(tokenizer), below)
    groups = plan(files, reading, fingerprint, encoder.dtype)
    return Request(tuple(inputs), tuple(groups), besides, options, encoder, template)


def unit_dtype(tokenizer: Tokenizer | None) -> np.dtype:
    """Return the type of a token in a unit."""
    return token_dtype(tokenizer.vocab_size) if tokenizer else np.dtype("<u4")


def _load_tokenizer(file: Path | None, bos: str | None, eos: str | None, vocab_size: int | None) -> Tokenizer | None:
    if file is None:
        return None
    tokenizer = Tokenizer.load(file, bos=bos, eos=eos)
    if tokenizer.bos_id < 0 or tokenizer.eos_id < 0:
        raise UserError(f"the tokenizer {tokenizer.path} lacks a bos or eos piece; documents begin and end with them")
    if vocab_size is not None and vocab_size != tokenizer.vocab_size:
        raise UserError(f"vocab_size={vocab_size} is not the {tokenizer.vocab_size} of {file}; leave it out")
    return tokenizer


def _completed(reading: Reading, tokenizer: Tokenizer | None) -> tuple[Reading, str]:
    """Fill in what the tokenizer knows, and check the template; also say which template it is."""
    if reading.separator_id is None and tokenizer is not None:
        reading = dataclasses.replace(reading, separator_id=tokenizer.eos_id)
    if reading.examples is None:
        if reading.template is not None:
            raise UserError("a template is for prompts and answers or chats; say which with --examples pairs or chat")
        return reading, ""
    if tokenizer is None:
        raise UserError("supervised examples are texts; give --tokenizer FILE")
    reading, told = chosen_template(reading, tokenizer.chat_templates)
    for template in filter(None, (reading.template, reading.tool_template)):
        fields = PAIR_FIELDS if reading.examples == "pairs" else MESSAGE_FIELDS
        check_template(template, fields, tokenizer.template_tokens)
    return reading, told
