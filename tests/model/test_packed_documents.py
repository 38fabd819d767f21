"""Documents that share a window are strangers: what one says changes no bit of another's logits, per attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import looplm.model.attention
from looplm.data.window import in_runs
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM
from looplm.ops.attention import attention, reference, self_mask

LENGTHS = (5, 1, 7, 4)
"""Documents of the window; three positions of padding follow."""
S = 20
BACKENDS = {"xla": attention, "reference": reference.attention}


@pytest.mark.parametrize(
    ("backend", "dtype", "changes"),
    [
        ("xla", "float32", {}),
        ("xla", "bfloat16", {"attention_window": 4}),
        ("xla", "float32", {"attention_mask": "full"}),
        ("reference", "float32", {}),
    ],
)
def test_a_document_changes_no_logit_of_another(
    backend: str, dtype: str, changes: dict, model_config, random_params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looplm.model.attention, "attention", BACKENDS[backend])
    lm = FunctionalLM(model_config(prelude_layers=0, coda_layers=0, block_layers=1, exit_gate=None, **changes))
    params = random_params(lm)
    starts = np.cumsum((0, *LENGTHS))
    batch = in_runs(starts, np.array([1, 2, 3, 4, 0]), (1, S))

    @jax.jit
    def logits_BSV(tokens_BS: jax.Array) -> jax.Array:
        context = Context(jnp.asarray(batch["positions"]), self_mask(lm.config, jnp.asarray(batch["segments"])))
        model = lm.bind(params)
        hidden_BSD = Forward(model, tokens_BS, context, Depth(2), jnp.dtype(dtype))("all").read[-1]
        return jnp.einsum("BSD,VD->BSV", hidden_BSD, model.head_VD)

    tokens_BS = np.random.default_rng(0).integers(0, lm.config.vocab_size, (1, S))
    before = np.asarray(logits_BSV(tokens_BS))
    for start, length in zip(starts, LENGTHS, strict=False):
        changed_BS = tokens_BS.copy()
        changed_BS[:, start : start + length] = (changed_BS[:, start : start + length] + 5) % lm.config.vocab_size
        after = np.asarray(logits_BSV(changed_BS))
        others = np.ones(S, bool)
        others[start : start + length] = False
        np.testing.assert_array_equal(after[:, others], before[:, others])
        assert (after[:, ~others] != before[:, ~others]).any(axis=-1).all()
