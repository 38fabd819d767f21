"""A file of prompts, a file of answers: every prompt once, whatever was interrupted."""

import json

import numpy as np
import pytest

import looplm
from looplm.cli.generate import answer_file
from looplm.errors import UserError
from looplm.infer.answers import Answers, read_prompts

NUM_PROMPTS = 200
ASKED = {"max_tokens": 6, "temperature": 1.0}


@pytest.fixture(scope="module")
def lm(finished_run):
    return looplm.load(finished_run)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("jobs") / "prompts.jsonl"
    words = ["def", " read", " lines", "(path):", " return", " the", " sum"]
    lines = [
        {"prompt": "".join(words[(number + i) % 7] for i in range(1 + number * 5 % 11))}
        | ({"seed": number} if number % 3 else {})
        for number in range(NUM_PROMPTS)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def whole(lm, prompts):
    """The answers of a job that nobody interrupts, by number."""
    out = prompts.with_name("whole.jsonl")
    answer_file(lm, prompts, out, ASKED, 0, 16)
    return records(out)


def records(out):
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(line["number"] for line in lines) == list(range(len(lines)))
    return {line["number"]: line for line in lines}


def test_two_hundred_prompts_are_answered_once(lm, prompts, whole):
    assert len(whole) == NUM_PROMPTS
    for number in (0, 7, 199):  # none of them for the second time
        asked = read_prompts(prompts)[number]
        (alone,) = lm.generate([asked.prompt], seed=0 if asked.seed is None else asked.seed, **ASKED)
        answer = whole[number]
        assert (answer["text"], answer["tokens"]) == (alone, alone.tokens.tolist())
        assert answer["loops"] == [lm.loop.num_loops] * len(answer["tokens"])


@pytest.mark.parametrize("answered", [0, 1, 57, 199])
def test_after_an_interruption_the_rest_is_answered_with_the_same_command(
    lm, prompts, whole, tmp_path, monkeypatch, answered
):
    """Ctrl-C in the middle of a line."""
    out, write = tmp_path / "out.jsonl", Answers.write

    def interrupted(self, number, text):
        if len(self.done) == answered:
            self._file.write(b'{"number": 3, "key": "ab')
            raise KeyboardInterrupt
        write(self, number, text)

    monkeypatch.setattr(Answers, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        answer_file(lm, prompts, out, ASKED, 0, 16)
    monkeypatch.undo()
    assert out.read_bytes().count(b"\n") == answered
    answer_file(lm, prompts, out, ASKED, 0, 16)
    assert records(out) == whole


def test_answers_of_other_prompts_or_settings_are_left_alone(lm, prompts, whole):
    out = prompts.with_name("whole.jsonl")
    before = out.read_bytes()
    with pytest.raises(UserError, match="answers another prompt, or was written with other settings"):
        answer_file(lm, prompts, out, ASKED | {"temperature": 0.5}, 0, 16)
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "\n \n", "holds no prompts"),
        ("a.jsonl", "{}\n", ":1 holds neither a prompt nor messages"),
        ("a.jsonl", '{"prompt": "x"}\n{"prompt"\n', ":2 is no JSON"),
        ("a.jsonl", '{"prompt": "x", "seed": "y"}\n', ":1 has seed 'y'"),
    ],
)
def test_what_is_no_prompt_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_prompts(tmp_path / name)


def test_lines_of_a_text_file_are_prompts(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo  \n")
    assert [one.prompt for one in read_prompts(tmp_path / "a.txt")] == ["one", "two  "]


def test_drafts_and_streams_on_the_command_line(finished_run, lm, command):
    (plain,) = lm.generate(["def f"], max_tokens=12)
    pieces = []
    (again,) = lm.generate(["def f"], max_tokens=12, draft="1:2", on_text=lambda number, piece: pieces.append(piece))
    assert plain == again == "".join(pieces)
    np.testing.assert_array_equal(plain.tokens, again.tokens)
    shown = command("generate", finished_run, "--prompt", "def f", "--max-tokens", 12, "--draft", "1")
    assert (shown.code, shown.stdout) == (0, f"def f{plain}\n")
    assert "passes through the block" in shown.stderr
    assert "drafts kept" in shown.stderr
