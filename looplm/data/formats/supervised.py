"""Supervised examples: prompt and answer, or a chat, as the parts of documents of which only answers are learnt."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from looplm.data.account import Skipped
from looplm.data.formats.chat import ASSISTANT, PROBE, Parts, content_text
from looplm.data.formats.document import CHAT_FIELDS, Document, Reading
from looplm.data.formats.jinja import BEGIN, END, BadTemplate
from looplm.data.formats.jsonl import kind_of, no_field, no_text
from looplm.data.formats.template import message_documents, pair_documents

Example = Callable[[dict[str, Any], int], Iterator[Document | Skipped]]


def example_maker(reading: Reading, tokens: Mapping[str, str], special: Sequence[str] = ()) -> Example | None:
    """Return what makes documents of a record; None for plain text.

    `tokens` are the special tokens by what Jinja templates call them. Names in `special` mean their token in a
    template, so a record that holds one of them is left out: nobody else may end a turn.
    """
    if reading.examples is None:
        return None
    assert reading.template is not None
    marks = (*special, BEGIN, END, PROBE)

    def holds_special(texts: Iterable[str]) -> bool:
        return any(name in text for text in texts for name in marks)

    def pairs(record: dict[str, Any], number: int) -> Iterator[Document | Skipped]:
        values = []
        for field in (reading.prompt_field, reading.answer_field):
            if field not in record:
                return iter([no_field(number, field, record)])
            if not isinstance(record[field], str):
                return iter([no_text(number, field, record[field])])
            values.append(record[field])
        if not values[1].strip():
            return iter([Skipped(number, "no_answer")])
        if holds_special(values):
            return iter([Skipped(number, "special_token")])
        return _documents(number, lambda: pair_documents(reading.template or "", values[0], values[1], tokens))

    def chat(record: dict[str, Any], number: int) -> Iterator[Document | Skipped]:
        field = reading.messages_field
        if (messages := record.get(field)) is None:
            return iter([no_field(number, field, record)])
        if wrong := what_is_wrong(messages):
            return iter([Skipped(number, "no_messages", f"{field!r} holds {wrong}")])
        if not any(message["role"] == ASSISTANT and _says_something(message) for message in messages):
            return iter([Skipped(number, "no_answer")])
        try:
            besides = _besides(record)
        except ValueError as error:
            return iter([Skipped(number, "no_tools", str(error))])
        if holds_special(strings_of([messages, besides])):
            return iter([Skipped(number, "special_token")])
        template = (reading.tool_template if besides.get("tools") else None) or reading.template or ""
        return _documents(number, lambda: message_documents(template, messages, {**tokens, **besides}))

    return pairs if reading.examples == "pairs" else chat


def what_is_wrong(messages: object) -> str | None:
    """Why a value is no list of messages; None if it is one."""
    if not isinstance(messages, list) or not messages:
        return "no list of {role, content}" if messages != [] else "no message"
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return "a message without a role; every one is {role, content}"
        content = message.get("content")
        if content is None and not (message["role"] == ASSISTANT and _says_something(message)):
            return f"a message of {message['role']!r} without content"
        if isinstance(content, list):
            for part in content:
                if not isinstance(part, dict) or not isinstance(part.get("text"), str):
                    kind = part.get("type") if isinstance(part, dict) else None
                    return f"content of type {kind!r}; only parts of text can be learnt from"
        elif content is not None and not isinstance(content, str):
            return f"content that is {kind_of(content)}"
    return None


def _says_something(message: Mapping[str, Any]) -> bool:
    return bool(content_text(message).strip() or message.get("tool_calls"))


def _besides(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a record gives a template beside messages. Raises ValueError for what no template could take."""
    found = {}
    for field in CHAT_FIELDS:
        value = record.get(field)
        if isinstance(value, str) and value.strip():
            value = json.loads(value)  # as tables hold it, whose columns cannot hold tools of different kinds
        if value:
            found[field] = value
    for field in ("tools", "documents"):
        if not isinstance(found.get(field, []), list):
            raise ValueError(f"{field!r} holds {kind_of(found[field])} instead of a list")
    options = found.pop("chat_template_kwargs", {})
    if not isinstance(options, dict):
        raise ValueError(f"'chat_template_kwargs' holds {kind_of(options)} instead of an object")
    return {**options, **found}


def strings_of(value: object) -> Iterator[str]:
    """All that a template may write of a message: its role, its content, what Jinja gets besides."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for part in value.values():
            yield from strings_of(part)
    elif isinstance(value, list):
        for part in value:
            yield from strings_of(part)


def _documents(number: int, make: Callable[[], Sequence[Parts]]) -> Iterator[Document | Skipped]:
    try:
        made = make()
    except BadTemplate as error:
        yield Skipped(number, "template_failed", str(error))
        return
    family = b""
    for parts in made:
        document = _document(number, parts, family)
        # Answers of one chat that are documents of their own stay together when some are held out.
        if isinstance(document, Document) and len(made) > 1:
            family = family or document.sha256
        yield document


def _document(number: int, parts: Parts, family: bytes) -> Document | Skipped:
    """Make a document of its parts; `family` is the digest whose first 64 bits decide on the held-out side."""
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
    digest = hashlib.sha256(data + borders).digest()
    return Document(number, parts, len(data), family[:8] + digest[len(family[:8]) :])
