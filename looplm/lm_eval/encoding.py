"""What a task asks, as token ids: context and continuation, a whole text, and what is left out where it is too long.

The conventions are those of lm-evaluation-harness, so that numbers compare with those of its other models.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple

from looplm.data.tokenizer import Tokenizer
from looplm.errors import UserError

Ids = tuple[int, ...]


class Span(NamedTuple):
    """Tokens of which the last `num_scored` are predicted, each from all before it; there is at least one before."""

    ids: Ids
    num_scored: int


class Encoding:
    """Texts as ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # Questions with several answers ask about one context again and again.
        self._beginning = lru_cache(maxsize=1024)(self._begin)

    @cached_property
    def prefix_id(self) -> int:
        """What stands before a text of which nothing is known: the token that begins a document, or else the one that
        ends it. Raises UserError for a tokenizer that has neither."""
        for i in (self._tokenizer.bos_id, self._tokenizer.eos_id):
            if i >= 0:
                return i
        raise UserError(
            f"{self._tokenizer.path} has no token that begins or ends a document, which an empty context needs; "
            "name one in its tokenizer_config.json (bos_token)"
        )

    def beginning(self, text: str) -> Ids:
        """Return the ids of a document that begins with a text; names of special tokens mean these tokens. What begins
        a document is not put before a text that writes it itself, as a chat template may."""
        return self._beginning(text)

    def inside(self, text: str) -> Ids:
        """Return the ids of a text with nothing before it."""
        return tuple(self._tokenizer.encode_template(text).tolist())

    def pair(self, context: str, continuation: str) -> Span:
        """Return the ids of both together; those of the continuation are scored.

        Spaces at the end of the context belong to the continuation, whose first token they are a part of. Where a token
        spans the border, the context stays as it is, and the tokens behind the place where it ends are scored; those of
        the continuation alone, if there are none.
        """
        kept = context.rstrip()
        context, continuation = kept, context[len(kept) :] + continuation
        if not context:
            ids = self.inside(continuation)
            is_begun = ids[:1] == (self.prefix_id,)
            return Span(ids, len(ids) - 1) if is_begun else Span((self.prefix_id, *ids), len(ids))
        before = self.beginning(context)
        after = self._begin(context + continuation)[len(before) :] or self.inside(continuation)
        return Span((before or (self.prefix_id,)) + after, len(after))

    def _begin(self, text: str) -> Ids:
        ids = self.inside(text)
        if self._tokenizer.bos_id < 0 or ids[:1] == (self._tokenizer.bos_id,):
            return ids
        return tuple(self._tokenizer.encode_prompt(text).tolist())


def fitted(span: Span, max_length: int) -> Span:
    """Leave tokens out from the left, so that the model reads `max_length` at most: all but the last.

    Raises UserError where that is too few for what is scored.
    """
    if span.num_scored > max_length:
        raise UserError(
            f"a continuation of {span.num_scored} tokens is longer than max_length={max_length}; raise it, or take the "
            "task's example out"
        )
    return Span(span.ids[-(max_length + 1) :], span.num_scored)


def windows(ids: Sequence[int], prefix_id: int, max_length: int) -> Iterator[Span]:
    """Cut a text into stretches that the model reads one by one, so that every token is scored once.

    The first stands behind `prefix_id`. Each of the others overlaps the one before it by a token; the last goes back as
    far as the model can read.
    """
    whole = (prefix_id, *ids)
    for start in range(0, len(ids), max_length):
        end = min(start + max_length, len(ids))
        yield Span(whole[max(end - max_length, 0) : end + 1], end - start)
