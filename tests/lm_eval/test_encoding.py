"""Texts as ids: marks, borders, and what is left out."""

from collections.abc import Callable

import pytest

from looplm.errors import UserError
from looplm.lm_eval.encoding import Encoding, Span, fitted, windows


def ids(text: str) -> tuple[int, ...]:
    return tuple(map(ord, text))


@pytest.mark.parametrize(
    ("context", "continuation", "expected"),
    [
        ("ab", "cd", Span((1, *ids("abcd")), 2)),
        # The space belongs to the word.
        ("ab ", "cd", Span((1, *ids("ab cd")), 3)),
        ("ab\n\n", "", Span((1, *ids("ab\n\n")), 2)),
        ("", "cd", Span((1, *ids("cd")), 2)),
        ("  ", "cd", Span((1, *ids("  cd")), 4)),
        ("", "", Span((1,), 0)),
        # What begins a document is written by the text itself.
        ("<b>ab", "c", Span((1, *ids("abc")), 1)),
        ("", "<b>c", Span((1, *ids("c")), 1)),
        # A token spans the border. The first is scored as in the harness, which refuses the second; nothing to score
        # would make it the likeliest continuation of all.
        ("at", "he", Span((1, *ids("at"), *ids("e")), 1)),
        ("at", "h", Span((1, *ids("ath")), 1)),
    ],
)
def test_context_and_continuation(letters: Callable, context: str, continuation: str, expected: Span) -> None:
    assert Encoding(letters()).pair(context, continuation) == expected


def test_without_a_token_that_begins_documents_the_one_that_ends_them_stands_before_an_empty_context(
    letters: Callable,
) -> None:
    encoding = Encoding(letters(bos_id=-1))
    assert encoding.pair("", "c") == Span((2, *ids("c")), 1)
    assert encoding.pair("ab", "c") == Span(ids("abc"), 1)
    with pytest.raises(UserError, match="has no token that begins or ends a document"):
        Encoding(letters(bos_id=-1, eos_id=-1)).pair("", "c")


def test_what_is_too_long_loses_tokens_from_the_left() -> None:
    span = Span((1, 2, 3, 4, 5, 6), 2)
    assert fitted(span, 5) == span
    assert fitted(span, 3) == Span((3, 4, 5, 6), 2)
    assert fitted(span, 2) == Span((4, 5, 6), 2)
    with pytest.raises(UserError, match="continuation of 2 tokens is longer than max_length=1"):
        fitted(span, 1)


def test_a_long_text_is_cut_into_stretches_that_score_every_token_once() -> None:
    # The example in the harness's own documentation: ten tokens, four at once.
    found = list(windows(range(10), -1, 4))
    assert found == [Span((-1, 0, 1, 2, 3), 4), Span((3, 4, 5, 6, 7), 4), Span((5, 6, 7, 8, 9), 2)]
    assert list(windows([], -1, 4)) == []
    assert list(windows([7], -1, 4)) == [Span((-1, 7), 1)]
