"""Chats in Jinja templates: what is written is what `transformers` writes, what is learnt is the answers.

The texts that are expected were rendered by `apply_chat_template` of transformers 5.24, or follow from it.
"""

from typing import Any

import pytest

from looplm.data.formats.chat import chat_documents, chat_prompt
from looplm.data.formats.jinja import BEGIN, BadTemplate, jinja_template

TOKENS = {"eos_token": "<eos>"}
USER = {"role": "user", "content": "A river?"}
ELBE, ODER = ({"role": "assistant", "content": f"The {name}."} for name in ("Elbe", "Oder"))
AGAIN = {"role": "user", "content": "Another?"}
TWO_TURNS = [USER, ELBE, AGAIN, ODER]
FIRST, SECOND = "<user>A river?<end><assistant>", "<user>Another?<end><assistant>"

HEAD = "{% for m in messages %}<{{ m.role }}>"
ASKS = "{% if add_generation_prompt %}<assistant>{% endif %}"
PLAIN = HEAD + "{{ m.content }}<end>{% endfor %}" + ASKS
ENDS_ALL = PLAIN.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")
THINKS = (
    HEAD + "{% set said = m.content.split('</think>') %}{% if m.role != 'assistant' %}{{ m.content }}"
    "{% elif loop.last %}<think>{{ said[0].split('<think>')[-1] if said[1:] }}</think>{{ said[-1] }}"
    "{% else %}{{ said[-1] }}{% endif %}<end>{% endfor %}" + ASKS
)
"""Like Qwen3: the last answer has a thought, be it an empty one, and earlier ones have none."""


def documents(template: str, messages: list[dict], **variables: Any) -> list[tuple[str, list[str]]]:
    """The text of every document, and what of it is learnt."""
    made = chat_documents(template, messages, {**TOKENS, **variables})
    return [("".join(part.text for part in parts), [p.text for p in parts if p.is_learnt]) for parts in made]


def test_answers_are_learnt_to_the_end_of_their_turn() -> None:
    text = f"{FIRST}The Elbe.<end>{SECOND}The Oder.<end>"
    assert documents(PLAIN, TWO_TURNS) == [(text, ["The Elbe.<end>", "The Oder.<end>"])]
    assert chat_prompt(PLAIN, TWO_TURNS[:3], TOKENS) == f"{FIRST}The Elbe.<end>{SECOND}"


def test_a_mark_of_the_end_of_all_stands_at_the_end_of_all() -> None:
    text = f"{FIRST}The Elbe.<end>{SECOND}The Oder.<end><eos>"
    assert documents(ENDS_ALL, TWO_TURNS) == [(text, ["The Elbe.<end>", "The Oder.<end><eos>"])]


def test_where_thoughts_leave_the_history_every_answer_is_a_document() -> None:
    thought = ODER | {"content": "<think>Not that.</think>The Oder."}
    history = f"{FIRST}The Elbe.<end>{SECOND}"
    assert documents(THINKS, [USER, ELBE, AGAIN, thought]) == [
        # The empty thought is the template's own, and is not learnt.
        (f"{FIRST}<think></think>The Elbe.<end>", ["The Elbe.<end>"]),
        (f"{history}<think>Not that.</think>The Oder.<end>", ["<think>Not that.</think>The Oder.<end>"]),
    ]
    empty = ELBE | {"content": "<think></think>The Elbe."}
    ((_, learnt),) = documents(THINKS, [USER, empty])
    assert learnt == ["<think></think>The Elbe.<end>"], "here the thought is the answer's"


@pytest.mark.parametrize(
    ("asks", "text", "learnt"),
    [
        ("", f"{FIRST}The Elbe.<end>", "The Elbe.<end>"),  # it does not ask: the name of the role is no answer
        ("<assistant><think>", f"{FIRST}The Elbe.<end>", "The Elbe.<end>"),  # R1: asks for what it takes out again
    ],
)
def test_the_answer_begins_behind_what_the_template_puts_before_it(asks: str, text: str, learnt: str) -> None:
    template = PLAIN.replace("<assistant>{% endif %}", asks + "{% endif %}")
    assert documents(template, [USER, ELBE]) == [(text, [learnt])]


def test_a_space_goes_with_the_word_behind_it() -> None:
    template = "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}\n{% endfor %}"
    assert documents(template, [USER, ELBE]) == [("USER: A river?\nASSISTANT: The Elbe.\n", [" The Elbe.\n"])]


def test_generation_blocks_say_what_is_learnt() -> None:
    template = (
        HEAD + "{% if m.role == 'assistant' %}{% generation %}\n  {{ m.content }}<end>{% endgeneration %}"
        "{% else %}{{ m.content }}<end>{% endif %}{% endfor %}"
    )
    text = f"{FIRST}  The Elbe.<end>{SECOND}  The Oder.<end>"
    assert documents(template, TWO_TURNS) == [(text, ["  The Elbe.<end>", "  The Oder.<end>"])]
    assert jinja_template(template).render({"messages": TWO_TURNS}) == text
    nested = "{% generation %}a{% generation %}b{% endgeneration %}{% endgeneration %}"
    with pytest.raises(BadTemplate, match="one generation block lies in another"):
        documents(nested, TWO_TURNS)
    assert BEGIN not in jinja_template(nested).render({})


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("x | tojson", '{"b": "l\'\u00e9t\u00e9 <b> & co", "a": [1, 2]}'),
        ("x | tojson(ensure_ascii=True)", '{"b": "l\'\\u00e9t\\u00e9 <b> & co", "a": [1, 2]}'),
        ("x | tojson(sort_keys=True)", '{"a": [1, 2], "b": "l\'\u00e9t\u00e9 <b> & co"}'),
        ("x.a | tojson(indent=1)", "[\n 1,\n 2\n]"),
        ("x | tojson(separators=(',', ':'))", '{"b":"l\'\u00e9t\u00e9 <b> & co","a":[1,2]}'),
        ("strftime_now('%Y')[:2]", "20"),
        ("missing", ""),
        ("eos_token ~ (bos_token is defined)", "<eos>False"),
        ("documents", "None"),
        ("namespace(a=3).a ~ (range(2) | list | length)", "32"),
    ],
)
def test_the_environment_of_transformers(call: str, expected: str) -> None:
    variables = {"x": {"b": "l'\u00e9t\u00e9 <b> & co", "a": [1, 2]}, "documents": None, **TOKENS}
    assert jinja_template("{{ " + call + " }}").render(variables) == expected


def test_blocks_are_trimmed_and_loops_may_be_left() -> None:
    template = "{% for n in [1, 2, 3] %}\n  {% if n == 2 %}\n{% continue %}{% endif %}\n{{ n }}\n  {% endfor %}\n"
    assert jinja_template(template).render({}) == "1\n3\n"


def test_what_a_template_refuses_is_told() -> None:
    with pytest.raises(BadTemplate, match=r"^roles must alternate$"):
        documents("{{ raise_exception('roles must alternate') }}", TWO_TURNS)
    with pytest.raises(BadTemplate, match="unsafe"):
        documents("{{ ''.__class__.__mro__ }}", TWO_TURNS)


def test_messages_come_as_from_transformers() -> None:
    template = "{% for m in messages %}{{ m.keys() | sort | join(' ') }};{% endfor %}"
    chat = [USER, {"role": "assistant", "content": None, "tool_calls": [1], "reasoning": "hm"}]
    with pytest.raises(BadTemplate):  # the answer is not written
        documents("{{ messages[5].x.y }}", chat)
    assert chat_prompt(template, chat, {}) == "content role;reasoning reasoning_content role thinking tool_calls;"


PARTS = [{"type": "text", "text": "A "}, {"type": "text", "text": "river?"}]
KNOWS_PARTS = HEAD + (
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endif %}"
    "{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "expected"), [(PLAIN, "<user>A river?<end>"), (KNOWS_PARTS, "<user>[A ][river?]")]
)
def test_texts_in_parts_are_joined_for_templates_of_texts(template: str, expected: str) -> None:
    assert chat_prompt(template, [USER | {"content": PARTS}], {}).startswith(expected)


def test_tools_and_documents_are_variables() -> None:
    template = "{{ tools | tojson }}{{ documents[0].title }}{{ thinking }}" + PLAIN
    ((text, learnt),) = documents(
        template, [USER, ELBE], tools=[{"name": "f"}], documents=[{"title": "D"}], thinking="on"
    )
    assert text == '[{"name": "f"}]Don' + f"{FIRST}The Elbe.<end>"
    assert learnt == ["The Elbe.<end>"]
