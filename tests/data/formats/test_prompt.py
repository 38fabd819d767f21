"""What asks for an answer is what a document of the training data begins with, part by part."""

from typing import Any

import pytest

from looplm.data.formats.jinja import BadTemplate
from looplm.data.formats.prompt import around_answer, open_answer, prompt_parts
from looplm.data.formats.template import message_documents, pair_documents

TOKENS = {"eos_token": "<eos>"}
CHAT = [
    {"role": "user", "content": "A river?"},
    {"role": "assistant", "content": "The Elbe."},
    {"role": "user", "content": "Another?"},
    {"role": "assistant", "content": "The Oder."},
]
LOOP = "{% for m in messages %}<{{ m.role }}>"
ASKS = "{% if add_generation_prompt %}<assistant>{% endif %}"
TEMPLATES = {
    "marks": LOOP + "{{ m.content }}<end>\n{% endfor %}" + ASKS,
    "eos_at_the_end": LOOP + "{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}<assistant>"
    "{% else %}{{ eos_token }}{% endif %}",
    "asks_for_nothing": "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}\n{% endfor %}",
    "generation_blocks": LOOP + "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<end>"
    "{% endgeneration %}{% else %}{{ m.content }}<end>{% endif %}{% endfor %}" + ASKS,
    "format": "{role}: {content}\n",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("length", [1, 3])
def test_a_chat_is_asked_as_its_documents_begin(template: str, length: int) -> None:
    document = message_documents(template, CHAT[: length + 1], TOKENS)[-1]
    last = max(n for n, part in enumerate(document) if part.is_learnt)
    assert [part.text for part in prompt_parts(template, CHAT[:length], TOKENS)] == [p.text for p in document[:last]]


@pytest.mark.parametrize(
    ("name", "around"),
    [
        ("marks", ("", "<end>\n", "<end>\n<user>")),
        ("eos_at_the_end", ("", "<end><eos>", "<end><user>")),
        ("asks_for_nothing", (" ", "\n", "\nUSER: ")),
        ("generation_blocks", ("", "<end>", "<end><user>")),
        ("format", ("", "\n", "\nuser: ")),
    ],
)
def test_what_stands_around_an_answer(name: str, around: tuple[str, str, str]) -> None:
    assert around_answer(TEMPLATES[name], TOKENS) == around


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_an_answer_may_go_on(template: str) -> None:
    whole = "".join(part.text for part in message_documents(template, CHAT, TOKENS)[-1])
    assert open_answer(template, CHAT, TOKENS) == whole[: whole.index("The Oder.") + len("The Oder.")]


def test_whether_it_thinks_is_the_models_to_say() -> None:
    empty = "{% if m.role == 'assistant' %}<think></think>{% endif %}"
    template = LOOP + empty + "{{ m.content }}<end>{% endfor %}" + ASKS
    assert [part.text for part in prompt_parts(template, CHAT[:1], TOKENS)] == ["<user>A river?<end><assistant>"]


@pytest.mark.parametrize("template", ["Q: {prompt}\nA: {answer}\n", "Q: {{ prompt }}\nA: {{ answer }}\n"])
def test_a_pair_is_asked_with_one_message(template: str) -> None:
    ((before, _),) = pair_documents(template, "A river?", "The Elbe.", TOKENS)
    assert prompt_parts(template, CHAT[:1], TOKENS) == (before,)
    assert around_answer(template, TOKENS)[1].rstrip("\n") == ""
    with pytest.raises(BadTemplate, match="one message"):
        prompt_parts(template, CHAT[:3], TOKENS)


def test_what_a_template_refuses_is_told() -> None:
    refuses: Any = "{{ raise_exception('no system messages') }}" + TEMPLATES["marks"]
    with pytest.raises(BadTemplate, match="no system messages"):
        prompt_parts(refuses, CHAT[:1], TOKENS)
