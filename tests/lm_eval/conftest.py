"""A tokenizer that can be followed by eye, and a tiny model with drawn weights."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from looplm.api import LoadedLM
from looplm.config.schema import AddInjection, FinalCrossEntropy, Loop, Model, NormalInit, NormalState
from looplm.data.tokenizer import Tokenizer
from looplm.model.functional import FunctionalLM

VOCAB_SIZE = 128


class Letters(Tokenizer):
    """An id for every ASCII character; `th` is a token too, and `<b>` and `<e>` mean the marks in a template."""

    file_name = "tokenizer.model"
    files: dict[str, bytes] = {}  # noqa: RUF012
    path = Path("letters/tokenizer.model")
    vocab_size = VOCAB_SIZE
    names = {"<b>": 1, "<e>": 2, "th": 3}  # noqa: RUF012

    def __init__(self, bos_id: int = 1, eos_id: int = 2, template: str | None = None) -> None:
        self.bos_id, self.eos_id, self._template = bos_id, eos_id, template

    def encode(self, text: str) -> np.ndarray:
        return self._ids(text, {"th": 3})

    def encode_template(self, text: str) -> np.ndarray:
        return self._ids(text, self.names)

    def _ids(self, text: str, names: dict[str, int]) -> np.ndarray:
        ids = []
        while text:
            name = next((name for name in names if text.startswith(name)), None)
            ids.append(ord(text[0]) if name is None else names[name])
            text = text[len(name or text[0]) :]
        return np.array(ids, np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return "".join({1: "", 2: "", 3: "th"}.get(i, chr(i)) for i in self._checked(ids))

    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        return [self.decode([i]) for i in ids]

    def token_id(self, name: str) -> int | None:
        return self.names.get(name)

    @property
    def mark_ids(self) -> frozenset[int]:
        return frozenset({1, 2})

    @property
    def template_tokens(self) -> dict[str, str]:
        return {"bos_token": "<b>", "eos_token": "<e>"}

    @property
    def special_names(self) -> tuple[str, ...]:
        return "<b>", "<e>"

    @property
    def chat_templates(self) -> dict[str, str]:
        return {} if self._template is None else {"default": self._template}

    @property
    def fingerprint(self) -> str:
        return "letters"


@pytest.fixture(scope="session")
def letters() -> Callable[..., Letters]:
    """Makes the tokenizer, with other marks."""
    return Letters


@pytest.fixture(scope="session")
def drawn_model() -> Callable[..., LoadedLM]:
    """Makes a model of two loops' training whose first state is drawn, and that has an opinion on what follows; with
    changes of its config."""
    drawn = Model(
        vocab_size=VOCAB_SIZE, dim=16, num_heads=2, hidden_dim=32, block_layers=1, injection=AddInjection(),
        state_init=NormalState(std=1.0), init=NormalInit(std=0.4),
    )  # fmt: skip
    params = FunctionalLM(drawn).init(jax.random.key(0))
    loop = Loop(num_loops=2)

    def make(tokenizer: Tokenizer | None = None, template: str | None = None, **changes: Any) -> LoadedLM:
        config = drawn.model_copy(update=changes)
        return LoadedLM(config, loop, FinalCrossEntropy(), params, tokenizer=tokenizer, template=template)

    return make
