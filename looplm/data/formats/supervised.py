"""Supervised examples: prompt and answer, or a chat, as the parts of a document of which only answers are learnt."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from looplm.data.account import Skipped
from looplm.data.formats.document import Document, Part, Reading
from looplm.data.formats.jsonl import no_field, no_text
from looplm.data.formats.template import ASSISTANT, BadTemplate, chat_parts, pair_parts

Example = Callable[[dict[str, Any], int], Document | Skipped]


def example_maker(reading: Reading, tokens: Mapping[str, str], special: Sequence[str] = ()) -> Example | None:
    """Return what makes a document of a record; None for plain text.

    `tokens` are the names of bos and eos, for Jinja. Names in `special` mean their token in a template, so a record
    that holds one of them is left out: nobody else may end a turn.
    """
    if reading.examples is None:
        return None

    def holds_special(texts: Iterable[str]) -> bool:
        return any(name in text for text in texts for name in special)

    def pairs(record: dict[str, Any], number: int) -> Document | Skipped:
        values = []
        for field in (reading.prompt_field, reading.answer_field):
            if field not in record:
                return no_field(number, field, record)
            if not isinstance(record[field], str):
                return no_text(number, field, record[field])
            values.append(record[field])
        if not values[1].strip():
            return Skipped(number, "no_answer")
        if holds_special(values):
            return Skipped(number, "special_token")
        assert reading.template is not None
        return _document(number, pair_parts(reading.template, *values))

    def chat(record: dict[str, Any], number: int) -> Document | Skipped:
        messages = record.get(reading.messages_field)
        if messages is None:
            return no_field(number, reading.messages_field, record)
        if not _are_messages(messages):
            return Skipped(number, "no_messages", f"{reading.messages_field!r} is no list of {{role, content}}")
        if not any(message["role"] == ASSISTANT and message["content"].strip() for message in messages):
            return Skipped(number, "no_answer")
        if holds_special(_strings(messages)):
            return Skipped(number, "special_token")
        assert reading.template is not None
        try:
            return _document(number, chat_parts(reading.template, messages, tokens))
        except BadTemplate as error:
            return Skipped(number, "template_failed", str(error))

    return pairs if reading.examples == "pairs" else chat


def _are_messages(messages: object) -> bool:
    return isinstance(messages, list) and all(
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        for message in messages
    )


def _strings(value: object) -> Iterator[str]:
    """All that a template may write of a message: its role, its content, what Jinja gets besides."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)


def _document(number: int, parts: tuple[Part, ...]) -> Document | Skipped:
    if not any(part.is_learnt for part in parts):
        return Skipped(number, "no_answer", "the template writes none")
    text = "".join(part.text for part in parts)
    if "\0" in text:
        return Skipped(number, "nul")
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError:
        return Skipped(number, "invalid_utf8", "half of a surrogate pair")
    # What is learnt is part of what a document is: the same text may be an answer elsewhere.
    borders = repr([(len(part.text), part.is_learnt) for part in parts]).encode()
    return Document(number, parts, len(data), hashlib.sha256(data + borders).digest())
