"""What asks a model for an answer: the beginning of the document that it would have been trained on.

Found by the functions that write these documents, with a sign in the place of the answer.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from looplm.data.formats.chat import ASSISTANT, EMPTY_THOUGHT, PROBE, Message, Parts, chat_prompt, content_text
from looplm.data.formats.document import Part
from looplm.data.formats.jinja import BadTemplate
from looplm.data.formats.template import is_for_pairs, is_jinja, message_documents, pair_documents

_USER = {"role": "user", "content": "\ufdd3"}


class Around(NamedTuple):
    """What a template writes around an answer."""

    before: str
    """What the model writes before the answer itself, as a rule nothing or a space."""
    last: str
    """Behind it at the end of a document."""
    between: str
    """Behind it up to the text of the user's next message; as `last` where there is no next message."""


def prompt_parts(template: str, messages: Sequence[Message], variables: Mapping[str, Any]) -> Parts:
    """Return the text that asks for the next answer, in the parts that are encoded one by one. Raises BadTemplate.

    Args:
        template: a format or a Jinja template, for chats or for pairs; a pair's prompt is the one user's message.
        messages: the chat so far.
        variables: what else the template may ask for, special tokens by their names there.
    """
    if is_for_pairs(template):
        if [message["role"] for message in messages] != ["user"]:
            raise BadTemplate("it is for pairs of prompt and answer, so there is one message, the user's")
        return _before_answer(pair_documents(template, content_text(messages[0]), PROBE, variables)[0])
    if not is_jinja(template):
        return _before_answer(_answered(template, messages, variables))
    text = chat_prompt(template, messages, variables)
    try:
        parts = _before_answer(_answered(template, messages, variables))
    except BadTemplate:  # it refuses some last answer, but asks for one
        return (Part(text, False),)
    # Behind what asks for an answer there may be more before one: an empty thought where the answer has none. Whether
    # it thinks is the model's to say. Where nothing asks, all of it is known.
    added = _text(parts).removeprefix(text)
    if added != _text(parts) and EMPTY_THOUGHT.fullmatch(added):
        return (*parts[:-1], Part(parts[-1].text.removesuffix(added), False))
    return parts if _text(parts).startswith(text) else (Part(text, False),)


def around_answer(template: str, variables: Mapping[str, Any]) -> Around:
    """Return what a template writes around any answer. Raises BadTemplate."""
    if is_for_pairs(template):
        parts = pair_documents(template, "", PROBE, variables)[0]
    else:
        parts = _answered(template, [_USER], variables)
    before, found, last = _text(parts).partition(PROBE)
    if not found:
        raise BadTemplate("it does not write the answer")
    before = before.removeprefix(_text(_before_answer(parts)))
    if is_for_pairs(template):
        return Around(before, last, last)
    try:
        answered = [_USER, {"role": ASSISTANT, "content": PROBE}, _USER | {"content": f"{PROBE}{PROBE}"}]
        documents = message_documents(template, [*answered, {"role": ASSISTANT, "content": "\ufdd4"}], variables)
        pieces = _text(documents[-1]).split(PROBE)
    except BadTemplate:
        pieces = []
    return Around(before, last, pieces[1] if len(pieces) == 4 else last)


def open_answer(template: str, messages: Sequence[Message], variables: Mapping[str, Any]) -> str:
    """Return the text of a chat up to the last character of its last message, an answer that may go on. Raises
    BadTemplate. Arguments as of `prompt_parts`."""
    *before, answer = messages
    if not is_for_pairs(template):
        parts = _answered(template, before, variables)
    elif [message["role"] for message in before] == ["user"]:
        parts = pair_documents(template, content_text(before[0]), PROBE, variables)[0]
    else:
        raise BadTemplate("it is for pairs of prompt and answer, so one message of the user is answered")
    text, found, _ = _text(parts).partition(PROBE)
    if not found:
        raise BadTemplate("it does not write the answer")
    return text + content_text(answer)


def _answered(template: str, messages: Sequence[Message], variables: Mapping[str, Any]) -> Parts:
    return message_documents(template, [*messages, {"role": ASSISTANT, "content": PROBE}], variables)[-1]


def _before_answer(parts: Parts) -> Parts:
    """The parts before the one that is the answer; what it begins with, if anything, is the model's to write."""
    number = next((n for n, part in enumerate(parts) if PROBE in part.text), None)
    if number is None:
        raise BadTemplate("it does not write the answer")
    if parts[number].is_learnt:
        return parts[:number]
    return (*parts[:number], Part(parts[number].text.partition(PROBE)[0], False))


def _text(parts: Parts) -> str:
    return "".join(part.text for part in parts)
