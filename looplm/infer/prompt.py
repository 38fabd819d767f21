"""Prompts as ids: texts like documents of the training data, chats like its examples, and ids as they are."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from looplm.data.formats.jinja import BadTemplate
from looplm.data.formats.prompt import Around, around_answer, prompt_parts
from looplm.data.formats.supervised import ASSISTANT, strings_of, what_is_wrong
from looplm.data.tokenizer import Tokenizer
from looplm.errors import UserError

Messages = Sequence[Mapping[str, Any]]


def ids_of_prompts(
    tokenizer: Tokenizer,
    chat: "Chat | None",
    prompts: Sequence[str | Sequence[int] | np.ndarray] | None,
    messages: "Messages | Sequence[Messages] | None",
) -> list[np.ndarray]:
    """Return the ids of every prompt, or of every chat, (num_tokens,) int32 each.

    Raises UserError unless exactly one of them is given, with at least one entry.
    """
    if messages is None:
        if prompts is None or isinstance(prompts, str) or not len(prompts):
            raise UserError(f"prompts={prompts!r} must be a list of at least one text")
        return [prompt_ids(tokenizer, prompt) for prompt in prompts]
    if prompts is not None:
        raise UserError("generate was given both prompts and messages; give one of them")
    if not isinstance(messages, list | tuple) or not messages:
        raise UserError(f"messages={messages!r} must be a list of {{role, content}}, or a list of such lists")
    chats: Any = [messages] if isinstance(messages[0], Mapping) else messages
    return [require_template(chat).prompt(each) for each in chats]


def require_template(chat: "Chat | None") -> "Chat":
    """Return the chat. Raises UserError where a model was not trained on chats."""
    if chat is None:
        raise UserError(
            "there is no chat template: the run's data was not built with --examples, and its tokenizer brings none "
            "along; give a prompt"
        )
    return chat


def prompt_ids(tokenizer: Tokenizer, prompt: str | Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the ids of a prompt, (num_tokens,) int32.

    A text begins a document. Names of special tokens in it mean these tokens: who writes a prompt may write marks,
    unlike the author of a text in the training data. Ids are taken as they are. Raises UserError for what is neither.
    """
    if isinstance(prompt, str):
        return tokenizer.encode_prompt(prompt)
    ids = np.asarray(prompt)
    if ids.ndim != 1 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
        raise UserError(f"a prompt of shape {ids.shape} and type {ids.dtype} must be a text, or at least one token id")
    for value in (int(ids.min()), int(ids.max())):
        if not 0 <= value < tokenizer.vocab_size:
            raise UserError(f"a prompt holds {value}, which is none of the tokenizer's {tokenizer.vocab_size} ids")
    return ids.astype(np.int32)


class Chat:
    """Asks a model as its training examples did, and reads its answer."""

    def __init__(self, tokenizer: Tokenizer, template: str) -> None:
        """template: that of the examples; see `data.formats.template`."""
        self._tokenizer, self.template = tokenizer, template

    def prompt(self, messages: Messages) -> np.ndarray:
        """Return the ids that ask for the next answer, (num_tokens,) int32.

        Raises UserError for what is no list of messages, ends with an answer, or cannot be told from a mark of the
        template.
        """
        messages = list(messages)
        if wrong := what_is_wrong(messages):
            raise UserError(f"messages hold {wrong}")
        if messages[-1]["role"] == ASSISTANT:
            raise UserError(f"the last of the messages is an answer of {ASSISTANT!r}; end with what it shall answer")
        for name in self._tokenizer.special_names:
            if any(name in text for text in strings_of(messages)):
                raise UserError(f"messages hold {name}, a special token of the template; write it otherwise")
        try:
            parts = prompt_parts(self.template, messages, self._tokenizer.template_tokens)
        except BadTemplate as error:
            raise UserError(f"the run's chat template does not take these messages: {error}") from None
        return np.concatenate(self._tokenizer.encode_document([part.text for part in parts]))

    @property
    def end_ids(self) -> list[int]:
        """The token that ends a turn, if one does."""
        return [] if self._end is None else [self._end[0]]

    def answer(self, ids: np.ndarray) -> str:
        """Return the text of an answer without what the template writes around it.

        Where no token ends a turn, the answer ends where the user's next turn begins.
        """
        text = self._tokenizer.decode(ids).removeprefix(self._around.before)
        if self._end is not None:
            return text.removesuffix(self._end[1])
        if self._around.between:
            text = text.partition(self._around.between)[0]
        return text.removesuffix(self._around.last)

    @cached_property
    def _around(self) -> Around:
        try:
            return around_answer(self.template, self._tokenizer.template_tokens)
        except BadTemplate as error:
            raise UserError(f"the run's chat template does not take an answer: {error}") from None

    @cached_property
    def _end(self) -> tuple[int, str] | None:
        """The first mark behind an answer, if there is one, and the text between the two."""
        for text in (self._around.last, self._around.between):
            ids = self._tokenizer.encode_template(text).tolist()
            for place, i in enumerate(ids):
                if i in self._tokenizer.mark_ids:
                    return i, self._tokenizer.decode(ids[:place])
        return None
