"""Hyperloop Transformers (arXiv 2604.21254) against the equations of the paper, in float64. There is no official code.

z = RMSNorm(all streams);  read = s(a z P + b);  write = 2 s(a z P + b);  keep = s(a z P + b)
Y <- diag(keep) Y + write (middle(read Y) + e)
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.config.load import load_config, override
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM
from looplm.ops.attention import self_mask
from tests.model import plain

LENGTH = 5


@pytest.fixture(scope="module")
def config():
    sizes = {"model.vocab_size": 11, "model.dim": 24, "model.num_heads": 2, "model.hidden_dim": 40}
    return override(load_config("hyperloop:tiny"), sizes | {"model.dtype": "float64"}).model


def by_the_equations(config, params, tokens_S, num_loops):
    """Logits after every loop, each with the end block behind it."""
    core, n, D = params["core"], 4, config.dim
    p, found = core["connection"], []
    Y_nSD = [plain.layers(config, params["prelude"], params["embedding"]["table"][tokens_S], None, tokens_S)] * n
    for loop in range(num_loops):
        own = min(loop, 2)  # three loops have weights of their own
        flat = np.concatenate(Y_nSD, axis=1)
        z = flat / np.sqrt(np.mean(flat**2, axis=1, keepdims=True) + config.norm_eps)
        raw = z @ np.reshape(p["kernel"][own], (n * D, 3 * n))
        a, b = p["scale"][own], [p[f"{name}_bias"][own] for name in ("read", "write", "mix")]
        read, write, keep = (1 / (1 + np.exp(-(a[i] * raw[:, i * n : i * n + n] + b[i]))) for i in range(3))
        h_SD = sum(read[:, [j]] * Y_nSD[j] for j in range(n))
        out_SD = plain.layers(config, core["block"], h_SD, None, tokens_S, loop) + core["vector"][own]
        Y_nSD = [keep[:, [j]] * Y_nSD[j] + 2 * write[:, [j]] * out_SD for j in range(n)]
        found.append(plain.leave(config, params, sum(Y_nSD) / n, None, tokens_S))
    return np.stack(found)


def test_logits_are_those_of_the_equations(config, random_params):
    """At the trained depth, and at one more loop, which uses the weights of the third."""
    lm, depth = FunctionalLM(config), Depth(4)
    tokens_S = np.arange(LENGTH) * 3 % config.vocab_size
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), random_params(lm))

        @jax.jit
        def logits(params):
            tokens_BS, model = jnp.asarray(tokens_S)[None], lm.bind(params)
            context = Context(jnp.arange(LENGTH)[None], self_mask(config, jnp.zeros_like(tokens_BS)))
            return Forward(model, tokens_BS, context, depth, jnp.float64)("all", model.logits).read

        found_RBSV = logits(params)
    expected_RSV = by_the_equations(config, jax.tree.map(np.asarray, params), tokens_S, 4)
    np.testing.assert_allclose(found_RBSV[:, 0], expected_RSV, atol=1e-9)
