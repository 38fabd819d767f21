"""The text around prompts, answers and messages, and what of it is to be learnt.

A format of Python has one line of rules: in `{prompt}\\n{answer}` everything from {answer} on is learnt; in
`{role}: {content}\\n`, written once for every message, everything from {content} on, where the role is the assistant's.
Braces of the text itself are doubled. What is no such format is a Jinja template: of `prompt` and `answer`, or that of
Hugging Face tokenizers, of `messages` (`chat`), in which a pair is a user's message and the assistant's.
"""

import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from looplm.data.formats.chat import ASSISTANT, PROBE, Message, Parts, chat_documents, content_text
from looplm.data.formats.document import Part, Reading
from looplm.data.formats.jinja import BadTemplate, jinja_template
from looplm.data.tokenizer.chat_templates import DEFAULT
from looplm.errors import UserError

PAIRS_TEMPLATE = "{prompt}\n{answer}"
CHAT_TEMPLATE = "{role}: {content}\n"
PAIR_FIELDS = ("prompt", "answer")
MESSAGE_FIELDS = ("role", "content")
TOOL_USE = "tool_use"
"""The name that `transformers` takes for chats with tools."""


def chosen_template(reading: Reading, named: Mapping[str, str]) -> tuple[Reading, str]:
    """Fill in the template of examples, and say which one it is; `named` are those of the tokenizer.

    As in `transformers`, `default` is the one for chats, and `tool_use` where a chat has tools. Raises UserError for a
    name that is not there, and when there are several and none is for chats in general.
    """
    if reading.template is not None:
        if "{" in reading.template:
            return reading, "that of --template"
        if reading.template not in named:
            there = f", nor one of the tokenizer's {', '.join(named)}" if named else "; the tokenizer brings none along"
            raise UserError(f"--template {reading.template} is neither a format with {{}} nor a file{there}")
        return replace(reading, template=named[reading.template]), f"{reading.template!r} of the tokenizer"
    if reading.examples == "pairs":
        return replace(reading, template=PAIRS_TEMPLATE), f"{PAIRS_TEMPLATE!r}"
    if not named:
        return replace(reading, template=CHAT_TEMPLATE), f"{CHAT_TEMPLATE!r}, the tokenizer brings none along"
    if DEFAULT not in named:
        raise UserError(f"the tokenizer has no template {DEFAULT!r}; name one with --template: {', '.join(named)}")
    for_tools = named.get(TOOL_USE)
    told = f"{DEFAULT!r} of the tokenizer{f', {TOOL_USE!r} for chats with tools' if for_tools else ''}"
    return replace(reading, template=named[DEFAULT], tool_template=for_tools), told


def check_template(template: str, fields: Sequence[str], tokens: Mapping[str, str]) -> None:
    """Raise UserError unless it is a format with exactly these fields, each once, or a Jinja template for them.

    `tokens` are the special tokens that it may name.
    """
    if _format(template, tuple(fields)) is not None:
        return
    if "{%" not in template and "{{" not in template:
        raise _no_format(template, fields)
    try:
        names = jinja_template(template).variables
    except UserError as error:
        if any(f"{{{field}}}" in template for field in fields):  # it is a format rather
            raise _no_format(template, fields) from None
        raise error
    if fields != PAIR_FIELDS or "messages" in names:
        return
    if missing := [field for field in fields if field not in names]:
        raise UserError(f"the template for pairs does not write {{{{ {missing[0]} }}}}; without it nothing is learnt")
    if unknown := sorted(names - {*fields, *tokens}):
        raise UserError(f"the template for pairs asks for {unknown[0]!r}; it gets prompt, answer and special tokens")


def is_for_pairs(template: str) -> bool:
    """Tell whether a template that was checked is for prompts and answers rather than for chats."""
    if is_jinja(template):
        return "messages" not in jinja_template(template).variables
    return _format(template, PAIR_FIELDS) is not None


def is_jinja(template: str) -> bool:
    """Tell whether a template that was checked is one of Jinja rather than a format."""
    return all(_format(template, fields) is None for fields in (PAIR_FIELDS, MESSAGE_FIELDS))


def pair_documents(template: str, prompt: str, answer: str, tokens: Mapping[str, str]) -> Sequence[Parts]:
    """Return the one document of a prompt and an answer. Raises BadTemplate."""
    if (texts := _format(template, PAIR_FIELDS)) is not None:
        begin, between, end = texts
        return [(Part(begin + prompt + between, False), Part(answer + end, True))]
    compiled = jinja_template(template)
    if "messages" in compiled.variables:
        pair: list[Message] = [{"role": "user", "content": prompt}, {"role": ASSISTANT, "content": answer}]
        return chat_documents(template, pair, tokens)
    before, found, _ = compiled.render({**tokens, "prompt": prompt, "answer": PROBE}).partition(PROBE)
    text = compiled.render({**tokens, "prompt": prompt, "answer": answer})
    if not found or not text.startswith(before):
        raise BadTemplate("what the template writes before the answer depends on the answer")
    return [(Part(before, False), Part(text[len(before) :], True))]


def message_documents(template: str, messages: Sequence[Message], variables: Mapping[str, Any]) -> Sequence[Parts]:
    """Return the documents of a chat: as a rule one, see `chat_documents`. Raises BadTemplate."""
    if (texts := _format(template, MESSAGE_FIELDS)) is None:
        return chat_documents(template, messages, variables)
    begin, between, end = texts
    parts = []
    for message in messages:
        if message.get("tool_calls"):
            raise BadTemplate("a format has no place for tool calls; give a Jinja template")
        content = content_text(message)
        parts.append(Part(begin + message["role"] + between, False))
        parts.append(Part(content + end, message["role"] == ASSISTANT))
    return [tuple(parts)]


@lru_cache(maxsize=8)
def _format(template: str, fields: tuple[str, ...]) -> tuple[str, ...] | None:
    """The texts around the fields of a format, one more than these; None if it is no format with just these fields."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError:
        return None
    texts, found = [""], []
    for text, *field in parsed:
        texts[-1] += text
        if field[0] is not None:
            found.append(field)
            texts.append("")
    return tuple(texts) if found == [[name, "", None] for name in fields] else None


def _no_format(template: str, fields: Sequence[str]) -> UserError:
    expected = " and then ".join(f"{{{name}}}" for name in fields)
    try:
        list(string.Formatter().parse(template))
    except ValueError as error:
        return UserError(f"--template {template!r} is no format: {error}; write {{{{ and }}}} for braces of the text")
    return UserError(
        f"--template {template!r} must hold {expected}, each once and nothing else in braces; "
        "write {{ and }} for braces of the text"
    )
