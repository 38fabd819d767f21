"""Chats in a Jinja template, as documents of which the assistant's answers are learnt, up to the end of their turn.

Where the template marks answers (`{% generation %}`) they are what it marks. Else an answer begins where the text ends
that asks for it (`add_generation_prompt`), behind an empty thought that the template itself puts before it; and where
the template has no such text, behind all that it puts before an answer.

One document holds all answers of a chat if what is written up to every answer begins the whole. Templates that drop
the thoughts of earlier turns write something else than the model sees when it answers: then every answer is a document,
with what comes before it.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

from looplm.data.formats.document import Part
from looplm.data.formats.jinja import BadTemplate, JinjaTemplate, jinja_template

ASSISTANT = "assistant"
PROBE = "\ufdd2"
"""Stands for an answer where only its place is wanted. A noncharacter: no text holds it."""
Message = Mapping[str, Any]
Parts = tuple[Part, ...]
EMPTY_THOUGHT = re.compile(r"\s*<([^<>]+)>\s*</\1>\s*")
_THOUGHTS = ("reasoning_content", "thinking", "reasoning")


def chat_documents(template: str, messages: Sequence[Message], variables: Mapping[str, Any]) -> Sequence[Parts]:
    """Return the documents of a chat, each in parts. Raises BadTemplate.

    `variables` is what else the template may ask for: special tokens by their names there, tools, documents.
    """
    compiled = jinja_template(template)
    chat = _Chat(compiled, template_messages(template, messages), variables)
    if compiled.marks_answers:
        return [compiled.parts(chat.variables_for(chat.messages))]
    whole = chat.text(chat.messages)
    answers = [chat.answer(n) for n, message in enumerate(chat.messages) if message["role"] == ASSISTANT]
    found = [_place(whole, text, start, variables.get("eos_token", "")) for start, text in answers]
    places = [place for place in found if place]
    if len(places) == len(answers) and all(one[1] <= two[0] for one, two in pairwise(places)):
        return [_cut(whole, places)]
    return [_cut(text, [(start, len(text))]) for start, text in answers]


def chat_prompt(template: str, messages: Sequence[Message], variables: Mapping[str, Any]) -> str:
    """Return the text that asks for the next answer of a chat. Raises BadTemplate."""
    chat = _Chat(jinja_template(template), template_messages(template, messages), variables)
    return chat.text(chat.messages, add_generation_prompt=True)


def template_messages(template: str, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages as `transformers` hands them to a template.

    Keys that hold nothing are left out, and thoughts have all of their names. Texts in parts are joined for templates
    that only know texts, which would write the parts as Python spells a list.
    """
    made = []
    for given in messages:
        message = {key: value for key, value in given.items() if value is not None}
        if thought := next((message[name] for name in _THOUGHTS if name in message), None):
            message = {"thinking": thought, **message, "reasoning_content": thought}
        if isinstance(message.get("content"), list) and not _takes_parts(template):
            message["content"] = content_text(message)
        made.append(message)
    return made


def content_text(message: Message) -> str:
    """Return the text of a message, be it in parts or not there."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


@lru_cache(maxsize=8)
def _takes_parts(template: str) -> bool:
    message = {"role": "user", "content": [{"type": "text", "text": PROBE}]}
    try:
        text = _Chat(jinja_template(template), [message], {}).text([message])
    except BadTemplate:
        return False
    return PROBE in text and "'text'" not in text


class _Chat:
    def __init__(self, template: JinjaTemplate, messages: list[dict[str, Any]], variables: Mapping[str, Any]) -> None:
        self._template, self.messages, self._variables = template, messages, variables

    def variables_for(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> dict[str, Any]:
        asked = {"messages": messages, "add_generation_prompt": add_generation_prompt}
        return {"tools": None, "documents": None, **self._variables, **asked}

    def text(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        return self._template.render(self.variables_for(messages, add_generation_prompt=add_generation_prompt))

    def answer(self, number: int) -> tuple[int, str]:
        """The text up to the end of an answer, and where in it the answer starts."""
        before, message = self.messages[:number], self.messages[number]
        text = self.text(self.messages[: number + 1])
        asked, prompt = self._try(before), self._try(before, add_generation_prompt=True)
        named: dict[str, Any] = {key: message[key] for key in ("role", "name") if key in message}
        own, found, _ = (self._try([*before, {**named, "content": PROBE}]) or "").partition(PROBE)
        is_own = bool(found) and text.startswith(own)
        if prompt is not None and text.startswith(prompt):
            added = own[len(prompt) :] if is_own and own.startswith(prompt) else ""
            # What it adds to the text that asks, but for an empty thought, the model has to write itself.
            is_learnt = prompt != asked and not EMPTY_THOUGHT.fullmatch(added)
            if is_learnt or not added.strip() or content_text(message).lstrip().startswith(added.strip()):
                return len(prompt), text
        if is_own:
            return len(own.rstrip(" ")), text  # a space goes with the word behind it
        if asked is not None and text.startswith(asked):
            return len(asked), text
        raise BadTemplate("the template changes what it wrote before the last message")

    def _try(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str | None:
        try:
            return self.text(messages, add_generation_prompt=add_generation_prompt)
        except BadTemplate:  # no chat may begin so, or end
            return None


def _place(whole: str, text: str, start: int, eos: str) -> tuple[int, int] | None:
    """Where an answer is in the whole chat, if the text up to its end begins it; but for a mark of the end of all."""
    beginning = text if whole.startswith(text) else text.removesuffix(eos)
    return (start, len(beginning)) if whole.startswith(beginning) and start <= len(beginning) else None


def _cut(text: str, places: Sequence[tuple[int, int]]) -> Parts:
    """A text in parts; at these places it is learnt."""
    parts, done = [], 0
    for start, end in places:
        parts += [Part(text[done:start], False), Part(text[start:end], True)]
        done = end
    return tuple(part for part in [*parts, Part(text[done:], False)] if part.text)
