"""Secrets are found by name and by shape, and nothing else is."""

import io
import sys

import pytest

from looplm.masking import mask, mask_tree, masked, unmasked


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://KEY:pa$$word@bucket/data", "s3://***@bucket/data"),
        ("dataset s3:/KEY:word@bucket is no folder", "dataset s3:/***@bucket is no folder"),
        ("https://host/x?X-Amz-Signature=abcdef&part=1", "https://host/x?X-Amz-Signature=***&part=1"),
        ("--set data.api_key=xyz", "--set data.api_key=***"),
        ("{'password': 'two words', 'n': 1}", "{'password': ***, 'n': 1}"),
        ('{"access_key": "zz"}', '{"access_key": ***}'),
        ("hf_abcdefghijklmnopqrstuvwx", "***"),
        ("ghp_0123456789abcdefghijklmnop is refused", "*** is refused"),
        ("AKIAABCDEFGHIJKLMNOP", "***"),
        ("sk-proj-0123456789abcdef", "***"),
        ("Bearer eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJSMeKKF2QT4", "Bearer ***"),
    ],
)
def test_what_looks_like_a_secret_is_replaced(text: str, shown: str) -> None:
    assert mask(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "data.batch_tokens = 128",
        "model.feed_forward.experts_per_token = 2",
        "step 3/9  loss 2.1  5.1k tokens/s",
        "num_tokens=5, tokenizer=x, tokens: 'abc'",
        "gs://bucket/folder@2/file",
        "token 17 is not below the vocabulary",
        "runs/mine/checkpoints/12",
    ],
)
def test_what_does_not_is_left_alone(text: str) -> None:
    assert mask(text) == text


def test_values_of_secret_variables_are_found_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "canary-4711")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "parallel-canary")
    monkeypatch.setenv("SHORT_PASSWORD", "no")
    assert mask("/data/canary-4711/x parallel-canary no") == "/data/***/x parallel-canary no"


@pytest.mark.parametrize(
    "name",
    [
        "OPENAI_KEY",
        "GITHUB_PAT",
        "TOKEN",
        "HF_TOKEN",
        "token_of_mine",
        "DB_PASSWORD",
        "AWS_SECRET_ACCESS_KEY",
        "my_apikey",
    ],
)
def test_names_of_secret_variables_are_known_by_their_words(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "canary-4711")
    assert mask("canary-4711") == "***"


@pytest.mark.parametrize("name", ["KEYBOARD", "MONKEY", "KEY_FILE_NAME", "PATH_OF_IT", "SPAT", "TOKENS", "AUTHOR"])
def test_names_that_only_contain_such_a_word_are_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "canary-4711")
    assert mask("canary-4711") == "canary-4711"


def test_a_value_of_eight_letters_is_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "eight888")
    monkeypatch.setenv("B_TOKEN", "seven77")
    assert mask("eight888 seven77") == "*** seven77"


def test_strings_under_a_secret_name_are_replaced() -> None:
    tree = {"token": "a", "batch_tokens": 3, "list": ["x", {"api_key": "b"}], "path": "s3://u:p@h/d"}
    assert mask_tree(tree) == {
        "token": "***",
        "batch_tokens": 3,
        "list": ["x", {"api_key": "***"}],
        "path": "s3://***@h/d",
    }


def test_output_and_tracebacks_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", masked(stream))
    print("api_token=abc", file=sys.stderr)
    sys.excepthook(ValueError, ValueError("password=def"), None)
    assert unmasked(sys.stderr) is unmasked(stream) is stream
    assert "abc" not in stream.getvalue()
    assert "ValueError: password=***" in stream.getvalue()
