"""The text around prompts, answers and messages, and what of it is to be learnt.

A format of Python has one line of rules: in `{prompt}\\n{answer}` everything from {answer} on is learnt; in
`{role}: {content}\\n`, written once for every message, everything from {content} on, where the role is the assistant's.
A Jinja template is that of Hugging Face tokenizers: `messages`, `add_generation_prompt`, `bos_token` and `eos_token`.
What it adds when an answer follows a prompt is learnt, so it must only ever append.
"""

import string
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from looplm.data.formats.document import Part
from looplm.errors import UserError

ASSISTANT = "assistant"
PAIRS_TEMPLATE = "{prompt}\n{answer}"
CHAT_TEMPLATE = "{role}: {content}\n"


class BadTemplate(ValueError):
    """A template cannot be applied to a record."""


def is_jinja(template: str) -> bool:
    return "{%" in template or "{{" in template


def check_template(template: str, names: Sequence[str]) -> None:
    """Raise UserError unless a format has exactly the fields of these names, each once, or Jinja parses it."""
    if is_jinja(template):
        _jinja(template)
        return
    try:
        found = [field for _, *field in string.Formatter().parse(template) if field[0] is not None]
    except ValueError as error:
        raise UserError(f"--template {template!r} is no format: {error}; write e.g. {PAIRS_TEMPLATE!r}") from None
    if found != [[name, "", None] for name in names]:
        expected = " and then ".join(f"{{{name}}}" for name in names)
        raise UserError(f"--template {template!r} must hold {expected}, each once and nothing else in braces")


def pair_parts(template: str, prompt: str, answer: str) -> tuple[Part, ...]:
    """Prompt and answer in a format."""
    before, after = _halves(template, "answer")
    return Part(before.format(prompt=prompt), False), Part(answer + after, True)


def chat_parts(template: str, messages: Sequence[Mapping[str, str]], tokens: Mapping[str, str]) -> tuple[Part, ...]:
    """Messages in a format or a Jinja template; `tokens` are the names of special tokens. Raises BadTemplate."""
    if is_jinja(template):
        return _jinja_parts(template, messages, tokens)
    before, after = _halves(template, "content")
    parts = []
    for message in messages:
        parts.append(Part(before.format(role=message["role"]), False))
        parts.append(Part(message["content"] + after, message["role"] == ASSISTANT))
    return tuple(parts)


def _jinja_parts(template: str, messages: Sequence[Mapping[str, str]], tokens: Mapping[str, str]) -> tuple[Part, ...]:
    compiled = _jinja(template)
    done, parts = "", []

    def grow(count: int, is_learnt: bool, add_generation_prompt: bool) -> None:
        nonlocal done
        try:
            text = compiled.render(
                messages=messages[:count], add_generation_prompt=add_generation_prompt, tools=None, **tokens
            )
        except Exception as error:  # whatever the template does; `raise_exception` among it
            raise BadTemplate(str(error)) from None
        if not text.startswith(done):
            raise BadTemplate("the template changes what it wrote before the last message")
        parts.append(Part(text[len(done) :], is_learnt))
        done = text

    for number, message in enumerate(messages):
        if message["role"] == ASSISTANT:
            grow(number, False, True)
            grow(number + 1, True, False)
        elif number + 1 == len(messages):
            grow(number + 1, False, False)
    return tuple(part for part in parts if part.text)


@lru_cache(maxsize=8)
def _jinja(template: str) -> Any:
    try:
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise UserError("a Jinja template needs the `jinja2` library; run `pip install looplm[hf]`") from None

    def refuse(message: str) -> None:
        raise BadTemplate(message)

    # As in `transformers`: templates of models rely on these.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"the chat template is no Jinja template: line {error.lineno}: {error.message}") from None


@lru_cache(maxsize=8)
def _halves(template: str, name: str) -> tuple[str, str]:
    """The format before the field of that name, and the plain text after it."""
    before, after = template.split(f"{{{name}}}")
    return before, after.format()
