"""The public names and signatures; everything else is private. See section 11 of the design."""

import ast
import dataclasses
import inspect
import itertools
import re
import textwrap

import pytest

import looplm
from looplm.api import LoadedLM, Result
from looplm.infer.continuation import Continuation, Continuations

PUBLIC = ["__version__", "from_folder", "load"]
REQUIRED = inspect.Parameter.empty
SIGNATURES = {
    looplm.load: {"path": REQUIRED, "step": None, "dtype": None, "ema": False, "allow_keys": ()},
    looplm.from_folder: {"path": REQUIRED, "allow_keys": ()},
    LoadedLM.__call__: {
        "tokens_BS": REQUIRED,
        "num_loops": None,
        "num_detached": 0,
        "initial_state": None,
        "segments": None,
        "ids": None,
        "prefix": None,
    },
    LoadedLM.loss_and_grads: {
        "tokens_BS": REQUIRED,
        "labels_BS": REQUIRED,
        "num_loops": None,
        "num_detached": 0,
        "initial_state": None,
        "objective": None,
    },
    LoadedLM.generate: {
        "prompts": None,
        "num_loops": None,
        "exit": None,
        "max_tokens": 64,
        "temperature": 0.0,
        "seed": 0,
        "kv": None,
        "allow_lossy_kv": False,
        "messages": None,
        "draft": None,
        "top_k": None,
        "top_p": None,
        "min_p": None,
        "repetition_penalty": None,
        "stop": (),
        "contrast": None,
        "step_size": 1.0,
        "warm_start": False,
        "prompt_exits": False,
        "batch_size": None,
        "on_text": None,
        "on_answer": None,
    },
    LoadedLM.official_tensors: {"tree": REQUIRED},
    Result.logits: {"depth": REQUIRED},
    Result.expected_logits: {},
}
RESULT_FIELDS = {"hidden_RBSD", "gate_logits_RBS", "exit_RBS"}


def test_public_names() -> None:
    assert sorted(looplm.__all__) == PUBLIC
    assert all(hasattr(looplm, name) for name in PUBLIC)


def test_signatures() -> None:
    found = {function.__qualname__: parameters(function) for function in SIGNATURES}
    assert found == {function.__qualname__: expected for function, expected in SIGNATURES.items()}


def test_what_a_call_gives() -> None:
    assert {field.name for field in dataclasses.fields(Result)} >= RESULT_FIELDS


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_a_docstring_names_every_argument(function) -> None:
    text = inspect.getdoc(function) or ""
    assert [name for name in parameters(function) if not re.search(rf"\b{name}\b", text)] == []


@pytest.mark.parametrize("cls", [LoadedLM, Result, Continuation, Continuations])
def test_classes_and_what_they_hold_are_described(cls: type) -> None:
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert ast.get_docstring(tree)
    for node, after in itertools.pairwise([*tree.body, None]):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name
        if isinstance(node, ast.AnnAssign):
            assert isinstance(after, ast.Expr), ast.unparse(node)


def parameters(function) -> dict[str, object]:
    """Names and defaults in order, without self."""
    items = inspect.signature(function).parameters.items()
    return {name: parameter.default for name, parameter in items if name != "self"}
