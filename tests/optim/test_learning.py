"""What learns: chosen by words, and without gradient or state where it does not."""

import jax
import numpy as np
import pytest

from looplm.config.schema import ExitGate, LoRA, Model, Muon, Optim
from looplm.errors import UserError
from looplm.model.functional import FunctionalLM
from looplm.optim.build import build_optimizer
from looplm.optim.groups import learning_rates
from looplm.optim.learning import learning_of

SMALL = Model(
    vocab_size=16, dim=8, num_heads=2, hidden_dim=12, prelude_layers=1, block_layers=2, exit_gate=ExitGate(),
    injection={"kind": "concat"},
)  # fmt: skip
ADAPTED = SMALL.model_copy(update={"adapter": LoRA(rank=2, targets=("query", "feed_forward.down"))})


def learned(model: Model, trains: frozenset | None = None, **fields) -> set[str]:
    return learning_of(Optim(learning_rate=1.0, **fields), FunctionalLM(model), trains).paths


def every(model: Model) -> set[str]:
    return {".".join(names) for names in FunctionalLM(model).declarations}


def test_without_a_word_all_learn_or_the_adapter_alone() -> None:
    assert learned(SMALL) == every(SMALL)
    adapter = every(ADAPTED) - every(SMALL)
    assert learned(ADAPTED) == adapter
    assert {path.rpartition(".adapter.")[0] for path in adapter} == {
        f"{stack}.layers.{projection}"
        for stack in ("prelude", "core.block")
        for projection in ("attention.query.project", "feed_forward.down")
    }


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"train": ("gate",)}, lambda path: path.startswith("gate.")),  # and not the gates of a feed-forward
        ({"train": ("feed_forward.gate", "head")}, lambda path: "feed_forward.gate" in path or path == "head"),
        ({"train": ("*.norm.scale",)}, lambda path: path.endswith(".norm.scale")),
        ({"frozen": ("core.block", "embedding")}, lambda path: not path.startswith(("core.block.", "embedding."))),
        ({"frozen": ("layers",)}, lambda path: ".layers." not in path),
        ({"train": ("prelude",), "frozen": ("attention",)}, lambda p: p[:8] == "prelude." and ".attention." not in p),
    ],
)  # fmt: skip
def test_words_are_groups_names_on_the_path_or_patterns(fields, expected) -> None:
    found = learned(SMALL, **fields)
    assert found == {path for path in every(SMALL) if expected(path)}
    assert found


def test_an_objective_goes_before_the_adapter_and_what_is_trained() -> None:
    assert learned(ADAPTED, frozenset({"gate"})) == {"gate.kernel", "gate.bias"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frozen": ("embeding",)}, r"optim.frozen: 'embeding' means no part of this model; did you mean embedding"),
        ({"train": ("core.blok.layers",)}, r"optim.train: 'core.blok.layers' .* did you mean core.block.layers"),
        ({"rates": {"attention.quary": 2.0}}, r"optim.rates: 'attention.quary' .* did you mean attention.query"),
        ({"train": ("gate",), "frozen": ("gate",)}, r"optim.frozen=\['gate'\] leaves nothing to learn"),
        ({"train": ("gate",), "rates": {"head": 2.0}}, r"optim.rates: 'head' means only what does not learn"),
    ],
)
def test_a_word_that_means_nothing_is_an_error_with_what_comes_near(fields, message) -> None:
    with pytest.raises(UserError, match=message):
        build_optimizer(Optim(learning_rate=1.0, **fields), FunctionalLM(SMALL), 10)


def test_rates_multiply() -> None:
    lm = FunctionalLM(SMALL)
    rates = {"block": 0.5, "attention": 4.0, "*.norm.scale": 3.0}
    found = learning_rates(Optim(learning_rate=1.0, injection_rate=7.0, rates=rates), lm)
    layers = found["core"]["block"]["layers"]
    assert layers["attention"]["query"]["project"]["kernel"] == 2.0
    assert layers["attention_residual"]["norm"]["scale"] == 1.5
    assert found["prelude"]["layers"]["attention"]["value"]["kernel"] == 4.0
    assert found["core"]["injection"]["linear"]["kernel"] == 7.0
    assert found["head"] == 1.0


@pytest.mark.parametrize("optimizer", [{"kind": "adamw"}, Muon()])
def test_what_does_not_learn_has_no_state_and_no_update(optimizer) -> None:
    """Its gradient is not even asked for."""
    lm = FunctionalLM(ADAPTED)
    built = build_optimizer(Optim(learning_rate=1.0, optimizer=optimizer, ema_decay=0.9), lm, 10)
    subset = learning_of(Optim(learning_rate=1.0), lm)
    state = jax.eval_shape(built.init, lm.shapes)
    updates, after = jax.eval_shape(built.update, subset.only(lm.shapes), state, lm.shapes)
    assert jax.tree.structure(updates) == jax.tree.structure(subset.kept)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    numbers = sum(leaf.size for leaf in jax.tree.leaves(state) if np.ndim(leaf))
    coefficients = 3 if isinstance(optimizer, Muon) else 0
    assert numbers == 3 * subset.size(lm.shapes) + coefficients  # two moments and the average
