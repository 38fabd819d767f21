"""The public names and signatures; everything else is private. See section 11 of the design."""

import dataclasses
import inspect

import looplm
from looplm.api import LoadedLM, Result

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


def parameters(function) -> dict[str, object]:
    """Names and defaults in order, without self."""
    items = inspect.signature(function).parameters.items()
    return {name: parameter.default for name, parameter in items if name != "self"}
