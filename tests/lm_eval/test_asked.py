"""What tasks say of the texts that they want."""

from typing import Any

import pytest

from looplm.errors import UserError
from looplm.lm_eval.asked import Asked, read_asked
from looplm.lm_eval.opening import batch_size_of, parse_loops


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, Asked(50, (), 0.0, ())),
        ({"until": "\n", "max_new_tokens": 7}, Asked(7, ("\n",), 0.0, ())),
        ({"until": ["", "."], "max_tokens": 7, "max_gen_toks": 8}, Asked(8, (".",), 0.0, ())),
        ({"do_sample": False, "temperature": 0.7}, Asked(50, (), 0.0, ())),
        ({"do_sample": True}, Asked(50, (), 1.0, ())),
        ({"temperature": 0.7, "top_p": 0.9}, Asked(50, (), 0.7, (("top_p", 0.9),))),
    ],
)
def test_wishes_are_read(given: dict[str, Any], expected: Asked) -> None:
    assert read_asked(given, 100) == expected


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(UserError, match="generation_kwargs hold num_beams=4, which looplm does not know"):
        read_asked({"num_beams": 4}, 100)
    with pytest.raises(UserError, match="max_gen_toks=100 leaves no room for a prompt in max_length=100"):
        read_asked({"max_gen_toks": 100}, 100)
    with pytest.raises(UserError, match="batch_size='many' is neither a number nor auto"):
        batch_size_of("many")


def test_loops_are_read() -> None:
    assert parse_loops("8+1+2", 4) == (1, 2, 8)
    assert (parse_loops(None, 4), parse_loops(3, 4)) == ((4,), (3,))
    assert (batch_size_of("auto:4"), batch_size_of("8"), batch_size_of(None)) == (None, 8, None)
    for wrong in ("0", "1+x", "1,2", ""):
        with pytest.raises(UserError, match="holds something else than loop counts"):
            parse_loops(wrong, 4)
