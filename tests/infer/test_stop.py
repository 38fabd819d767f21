"""Stop strings and streamed text, over a tokenizer of one byte a token."""

import numpy as np
import pytest

from looplm.infer.stop import Listener

TEXT = "one two, three: höhe. stop here"


def to_text(_, tokens):
    return bytes(int(token) for token in tokens).decode("utf-8", "replace")


def ids(text):
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


def written(listener, step, text=TEXT):
    """Watch the text in pieces of so many tokens. Returns (tokens that it ends with, the answer)."""
    tokens = ids(text)
    for end in range(step, len(tokens) + step, step):
        if (kept := listener.watch(0, tokens[:end])) is not None:
            return kept, listener.end(0, tokens[:kept])
    return len(tokens), listener.end(0, tokens)


@pytest.mark.parametrize("step", [1, 3, 7, 100])
@pytest.mark.parametrize("stops", [(), ("two",), (", th", "two, t"), ("stop",), ("absent", "höhe"), ("here!",)])
def test_what_was_told_is_the_answer_and_is_never_taken_back(step, stops):
    told = []
    kept, answer = written(Listener(to_text, stops, lambda number, piece: told.append(piece)), step)
    places = [(TEXT.find(stop), stop) for stop in stops if stop in TEXT]
    expected = TEXT[: min(places)[0]] if places else TEXT
    assert answer == expected
    assert "".join(told) == expected
    assert "\ufffd" not in "".join(told)
    if step == 1 and places:
        assert kept == min(len(TEXT[: place + len(stop)].encode()) for place, stop in places)
    if step == 1 and len(places) == 0:
        assert len(told) > 20, "text comes while it is written"


def test_an_answer_that_ends_within_a_character_is_told_whole():
    told = []
    tokens = ids("hö")[:2]
    listener = Listener(to_text, (), lambda number, piece: told.append(piece))
    assert listener.watch(0, tokens) is None
    assert told == ["h"]
    assert listener.end(0, tokens) == "h\ufffd" == "".join(told)
