"""What goes between the reading of files and the encoding of documents."""

import hashlib
import os
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from looplm.data.account import Account, Skipped, reasons
from looplm.errors import UserError

CHAT_FIELDS = ("tools", "documents", "chat_template_kwargs")
"""What records hold beside messages for their template, if they do."""
MAX_DOCUMENT_BYTES = 64 << 20
"""Memory is bounded by it: longer lines are left out, longer text files are cut at line ends."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How files are read; what the documents are depends on it."""

    field: str = "text"
    """Of .jsonl and .parquet files."""
    examples: Literal["pairs", "chat"] | None = None
    """Supervised examples instead of plain text: loss on answers only."""
    prompt_field: str = "prompt"
    answer_field: str = "answer"
    messages_field: str = "messages"
    template: str | None = None
    """A format with {prompt} and {answer}, or {role} and {content}; or a Jinja template."""
    tool_template: str | None = None
    """Another one for chats with tools."""
    skip_damaged: bool = False
    """Whether what can be read of a damaged file is taken; else it is refused."""
    token_dtype: Literal["uint16", "uint32", "int32"] = "uint16"
    """Of token files that do not say it."""
    separator_id: int | None = None
    """Begins or ends every document of a token file."""
    separator_begins: bool | None = None
    """Which of the two, in all files; where None, every file's first token tells it."""

    def listed(self) -> dict[str, Any]:
        """Return the fields as they name a build.

        One that came later is left out where it says nothing, so that datasets of before are found again.
        """
        fields = asdict(self)
        return {name: value for name, value in fields.items() if value is not None or name not in _LATER}


_LATER = ("tool_template", "separator_begins")


def make_reading(*, template: str | None = None, **options: Any) -> Reading:
    """Return the reading that options of a command line ask for; `template` may name a file, or a template of the
    tokenizer (`complete_template`).

    Given in words, its `\\n` and `\\t` are line ends and tabs: a shell passes them on as they are written.
    Raises UserError for a value that is not one of those that there are.
    """
    for name, known in (("examples", (None, "pairs", "chat")), ("token_dtype", ("uint16", "uint32", "int32"))):
        if name in options and options[name] not in known:
            values = " or ".join(str(value) for value in known if value)
            raise UserError(f"--{name.replace('_', '-')} {options[name]} is not known; use {values}")
    if template is not None and "{" not in template:
        if os.path.exists(template):
            template = _read_template(template)
    elif template is not None:
        template = template.replace("\\n", "\n").replace("\\t", "\t")
    return Reading(template=template, **options)


def _read_template(path: str) -> str:
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read --template {path}: {error}; give a format with {{}} or a file with one") from None
    if "{" not in text:
        raise UserError(f"--template {path} holds nothing in braces; write e.g. {{prompt}} and {{answer}} into it")
    return text


@dataclass(frozen=True, slots=True)
class Piece:
    """Some records of a file, as they are on disk or nearly so."""

    kind: Literal["text", "lines", "table", "tokens"]
    source: int
    """Number of the file in its group."""
    first: int
    """Number of the first record in its file."""
    data: bytes
    lengths: np.ndarray | None = None
    """Of a piece of tokens: tokens of every document; of lines: bytes of every record, where not lines part them."""
    dtype: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a supervised example."""

    text: str
    is_learnt: bool


@dataclass(frozen=True, slots=True)
class Document:
    """A text, tokens, or the parts of a supervised example."""

    record: int
    content: str | np.ndarray | tuple[Part, ...]
    num_bytes: int
    """Bytes of the text in UTF-8; 0 where there are only tokens."""
    sha256: bytes
    notes: tuple[str, ...] = ()
    """What was found and kept."""

    @staticmethod
    def of_text(record: int, data: bytes) -> "Document | Skipped":
        """Check the bytes of a text; its bytes are kept as they are."""
        if b"\0" in data:
            return Skipped(record, "nul")
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            return Skipped(record, "invalid_utf8", f"byte {error.start}")
        if not text or text.isspace():
            return Skipped(record, "empty")
        notes = ("crlf",) if b"\r" in data and b"\r\n" in data else ()  # one byte is found much faster
        return Document(record, text, len(data), hashlib.sha256(data).digest(), notes)


def chat_hint(names: Collection[str]) -> str:
    """Return what to do about records with these fields if they are chats or pairs, and were read as texts."""
    if "messages" in names:
        return "; chats are read with `looplm data build --examples chat`"
    is_pair = any(name in names for name in ("prompt", "instruction", "question"))
    return "; prompts with answers are read with `looplm data build --examples pairs`" if is_pair else ""


class MostlyLeftOut(UserError):
    """Most records gave no document. What was read is of use when the user says that the rest will do."""


def check_most_are_taken(inputs: Sequence[Path | str], account: Account) -> None:
    """Raise MostlyLeftOut when more than half of the records of files were left out: it is rarely meant."""
    if account.num_lost * 2 > account.num_records:
        raise MostlyLeftOut(
            f"{account.num_lost} of {account.num_records} records in {', '.join(map(str, inputs))} were left out: "
            f"{reasons(account.skipped)}{_example(account)}; mend them, or take the others with --skip-damaged"
        )


def no_documents(inputs: Sequence[Path | str], account: Account) -> UserError:
    """Say that everything was left out, and why, with an example."""
    return UserError(
        f"no document in {', '.join(map(str, inputs))}: {reasons(account.skipped)}{_example(account)}; "
        "give texts in UTF-8, or name the right --field"
    )


def _example(account: Account) -> str:
    return next((f" ({shown[0]})" for shown in account.examples.values() if shown), "")
