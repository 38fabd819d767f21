"""A model that was trained on chats answers as it was trained: by messages, on standard input, on a terminal."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from rich.console import Console
from tokenizers import decoders, models, pre_tokenizers

import looplm
from looplm.api import LoadedLM
from looplm.config.schema import Run
from looplm.data.formats.document import make_reading
from looplm.data.manifest import TEMPLATE_FILE
from looplm.data.tokenizer import Tokenizer
from looplm.data.writer import build_dataset
from looplm.errors import UserError
from looplm.infer.prompt import Chat
from tests.conftest import Outcome

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + (
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ASKED, ANSWERED = "hi", "hello there"
CHAT = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}]


def byte_tokenizer(folder: Path) -> Path:
    """Bytes and three marks."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    rules = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    rules.pre_tokenizer, rules.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    rules.add_special_tokens(["<|end|>", "<|im_start|>", "<|im_end|>"])
    folder.mkdir(parents=True, exist_ok=True)
    rules.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    return folder


@pytest.fixture(scope="module")
def run(tiny_run: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on one chat, over and over, whose template is a file beside the tokenizer."""
    from looplm.train.trainer import Trainer

    folder = tmp_path_factory.mktemp("chat")
    (folder / "chats.jsonl").write_text((json.dumps({"messages": CHAT}) + "\n") * 64)
    (folder / "mine.jinja").write_text(TEMPLATE)
    reading = make_reading(examples="chat", template=str(folder / "mine.jinja"))
    tokenizer = byte_tokenizer(folder / "tokenizer")
    build_dataset([folder / "chats.jsonl"], tokenizer, folder / "data", reading=reading, num_workers=1)
    changes = {
        "data.train": str(folder / "data"), "data.validation": None, "data.sequence_length": 64,
        "data.batch_tokens": 512, "num_steps": 150, "checkpoint.every_steps": 150, "optim.learning_rate": 1e-2,
    }  # fmt: skip
    Trainer(tiny_run(**changes), folder / "run", Console(file=io.StringIO())).train()
    return folder / "run"


@pytest.fixture(scope="module")
def lm(run: Path) -> LoadedLM:
    return looplm.load(run)


def test_the_template_travels_with_the_run(run: Path) -> None:
    assert (run.parent / "data" / TEMPLATE_FILE).read_text() == (run / TEMPLATE_FILE).read_text() == TEMPLATE


def test_it_answers_messages_texts_with_marks_and_ids(lm: LoadedLM) -> None:
    text = f"<|im_start|>user\n{ASKED}<|im_end|>\n<|im_start|>assistant\n"
    ids = np.append(lm.tokenizer.bos_id, lm.tokenizer.encode_template(text))
    assert lm.chat.prompt(CHAT[:1]).tolist() == ids.tolist()
    assert lm.generate(messages=CHAT[:1]) == [ANSWERED]
    assert lm.generate(messages=[CHAT[:1], CHAT[:1]], max_tokens=16) == [ANSWERED] * 2
    assert lm.generate([text, ids]) == [ANSWERED] * 2


@pytest.mark.parametrize("message", ["hi<|im_end|>\n", "<|im_start|>system\n"])
def test_a_message_holds_no_marks(lm: LoadedLM, message: str) -> None:
    with pytest.raises(UserError, match=r"messages hold <\|im_\w+\|>"):
        lm.generate(messages=[{"role": "user", "content": message}])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "must be a list"), ("hi", "must be a list"), (CHAT, "the last of the messages is an answer"),
        ([{"content": "x"}], "a message without a role"), ([["hi"]], "a message without a role"),
    ],
)  # fmt: skip
def test_what_is_no_chat_is_refused(lm: LoadedLM, messages: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        lm.generate(messages=messages)
    with pytest.raises(UserError, match="both prompts and messages"):
        lm.generate(["x"], messages=CHAT[:1])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_command_answers_a_prompt_a_pipe_and_a_person(
    run: Path, command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("generate", run, "--chat", "--prompt", ASKED).stdout == f"{ANSWERED}\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{ASKED}\n".encode())))
    assert command("generate", run, "--chat").stdout == f"{ANSWERED}\n"
    histories = []

    def generate(self: LoadedLM, *, messages: list[dict[str, str]], **_: object) -> list[str]:
        histories.append([message["content"] for message in messages])
        if messages[-1]["content"] == "bad":
            raise UserError("messages hold something")
        return [f"re {messages[-1]['content']}"]

    monkeypatch.setattr(LoadedLM, "generate", generate)
    monkeypatch.setattr(sys, "stdin", Terminal("one\n\nbad\ntwo\n"))
    said = command("generate", run, "--chat")
    assert (said.code, said.stdout) == (0, "re one\nre two\n")
    assert histories == [["one"], ["one", "re one", "bad"], ["one", "re one", "two"]]
    assert "looplm: messages hold something\n" in said.stderr


@pytest.mark.parametrize(("data", "message"), [(b" \n", "holds no message"), (b"\xff\n", "is not UTF-8")])
def test_a_pipe_without_a_message_is_refused(
    run: Path, command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, data: bytes, message: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    said = command("generate", run, "--chat")
    assert said.code == 2
    assert message in said.stderr


@pytest.mark.parametrize(
    ("template", "text", "end", "answer"),
    [
        (TEMPLATE, "hello", "<|im_end|>", "hello"),
        (TEMPLATE.replace("<|im_end|>", "\n<|im_end|>"), "hello\n", "<|im_end|>", "hello"),
        ("{role}: {content}\n", "hello\nthere\nuser: more\n", None, "hello\nthere"),
        ("{role}: {content}\n", "hello\n", None, "hello"),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", " hello\n", None, "hello"),
    ],
)
def test_an_answer_ends_with_its_turn(template: str, text: str, end: str | None, answer: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(byte_tokenizer(tmp_path))
    chat = Chat(tokenizer, template)
    assert chat.end_ids == ([] if end is None else [tokenizer.token_id(end)])
    assert chat.answer(tokenizer.encode(text)) == answer
