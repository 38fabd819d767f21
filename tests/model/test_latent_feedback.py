"""Latent thoughts against their definition, written out document by document, pass by pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.config.schema import LatentFeedbackCore, NoInjection
from looplm.errors import UserError
from looplm.infer.cache import check_writes
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM
from looplm.ops.attention import self_mask
from tests.model import plain

LATENT = 36
SIZES = dict(
    num_heads=2, num_kv_heads=1, prelude_layers=0, coda_layers=0, block_layers=1, final_norm=False,
    norm_at_loop_end=True, norm="rms", norm_placement="pre", injection=NoInjection(), exit_gate=None,
    core=LatentFeedbackCore(token=LATENT),
)  # fmt: skip
ROWS = [
    # Side by side in one row: two latents, which follow one another; and one that has no place before it.
    [[3, 1, LATENT, LATENT, 5], [LATENT, 7, 2]],
    [[8, 4, LATENT, 6, LATENT, LATENT, 11, 12]],
]


@pytest.fixture(scope="module")
def model(model_config, random_params):
    lm = FunctionalLM(model_config(**SIZES))
    return lm, random_params(lm)


def defined(config, params, document):
    """As the paper: read up to a latent, put the last state in its place, and go on; read all in a last pass."""
    table = params["embedding"]["table"]
    inputs = [table[token] for token in document]

    def read(count):
        x_SD = plain.layers(config, params["core"]["block"], jnp.stack(inputs[:count]), None, None)
        return plain.norm(config, params["core"]["end_norm"], x_SD)

    for place in range(1, len(document)):
        if document[place] == LATENT:
            inputs[place] = read(place)[-1]
    return read(len(document)) @ params["head"].T


def program(lm, window):
    """The logits of all rows, (B, S, V), as a function of parameters and loops."""
    tokens_BS = jnp.array([[token for document in row for token in document] for row in ROWS])
    positions_BS = jnp.array([[place for document in row for place in range(len(document))] for row in ROWS])
    segments_BS = jnp.cumsum(positions_BS == 0, axis=1)

    def logits(params, num_loops):
        context, model = Context(positions_BS, self_mask(lm.config, segments_BS), "loop"), lm.bind(params)
        return model.logits(Forward(model, tokens_BS, context, Depth(window, num_loops), jnp.float64)().read[-1])

    return logits


def loss(logits_BSV):
    return jnp.sum(jnp.sin(logits_BSV) * jnp.cos(jnp.arange(logits_BSV.shape[-1])))


def test_outputs_and_gradients_are_those_of_the_definition(model):
    """Also where a row has fewer latents than others, and where all have fewer than there are loops."""
    lm, params = model
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)

        def reference(params):
            return jnp.stack([jnp.concatenate([defined(lm.config, params, d) for d in row]) for row in ROWS])

        def with_gradients(logits_of):
            def of(params, *rest):
                logits_BSV = logits_of(params, *rest)
                return loss(logits_BSV), logits_BSV

            return jax.jit(jax.value_and_grad(of, has_aux=True))

        (_, theirs), their_grads = with_gradients(reference)(params)
        run = with_gradients(program(lm, window=5))
        for num_loops in (4, 5):
            (_, ours), grads = run(params, jnp.int32(num_loops))
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
            for (path, mine), other in zip(jax.tree.leaves_with_path(grads), jax.tree.leaves(their_grads), strict=True):
                assert jnp.max(jnp.abs(other)) > 0, f"{jax.tree_util.keystr(path)} gets no gradient"
                np.testing.assert_allclose(mine, other, rtol=0, atol=1e-9, err_msg=jax.tree_util.keystr(path))
        (_, few), _ = run(params, jnp.int32(3))
        np.testing.assert_allclose(few[0], theirs[0], rtol=0, atol=1e-9, err_msg="two latents need three loops")
        assert np.max(np.abs(few[1] - theirs[1])) > 1e-3, "three latents need four"
        assert run._cache_size() == 1, "one compilation for all numbers of loops"


def test_writing_is_refused_by_name(model):
    with pytest.raises(UserError, match=r"model\.core=latent_feedback"):
        check_writes(model[0].config)
