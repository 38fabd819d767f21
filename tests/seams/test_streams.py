"""Manifold-constrained hyper-connections (arXiv 2512.24880, DeepSeek's form): several streams as a placement."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from looplm.model.layers import parameter
from looplm.ops.norm import rms_norm
from tests.seams.conftest import bound, fixture, relative_error

EPS, STREAMS, ITERATIONS, LAYERS = 1e-6, 4, 20, 3


class Ways(NamedTuple):
    pre_BSn: jax.Array
    post_BSn: jax.Array
    mix_BSnn: jax.Array
    """From stream j (first) to stream k."""


class HyperConnection(nnx.Module):
    """A residual placement: the branch is a function that it is given, as `model.residual.Pre` is."""

    def __init__(self, dim, *, rngs):
        ways, zeros = (2 + STREAMS) * STREAMS, nnx.initializers.zeros
        self.kernel = parameter(rngs, zeros, (STREAMS, dim, ways), ("one", "embed", "routes"), wide=True)
        self.scale = parameter(rngs, zeros, (3,), ("one",), elementwise=True)
        self.base = parameter(rngs, zeros, (ways,), ("routes",), elementwise=True)

    def ways(self, x_BSnD):
        flat_BSnD = rms_norm(x_BSnD, eps=EPS, num_dims=2)
        raw_BSw = jnp.einsum("BSnD,nDw->BSw", flat_BSnD, self.kernel.get_value())
        n, scale, base = STREAMS, self.scale.get_value(), self.base.get_value()
        cuts = (slice(0, n), slice(n, 2 * n), slice(2 * n, None))
        pre, post, mix = (raw_BSw[..., cut] * scale[i] + base[cut] for i, cut in enumerate(cuts))
        mix_BSnn = sinkhorn(mix.reshape(*mix.shape[:2], n, n), ITERATIONS)
        return Ways(jax.nn.sigmoid(pre) + EPS, 2 * jax.nn.sigmoid(post), mix_BSnn)

    def __call__(self, x_BSnD, branch, scale):
        ways = self.ways(x_BSnD)
        h_BSD = jnp.einsum("BSn,BSnD->BSD", ways.pre_BSn, x_BSnD)
        out_BSD, _ = branch(h_BSD, h_BSD)
        mixed_BSnD = jnp.einsum("BSjk,BSjD->BSkD", ways.mix_BSnn, x_BSnD)
        return ways.post_BSn[..., None] * scale * out_BSD[:, :, None] + mixed_BSnD, h_BSD


def sinkhorn(logits, iterations):
    """Rows and columns of the last two dims that sum to 1."""
    mix = jax.nn.softmax(logits, axis=-1) + EPS
    mix /= jnp.sum(mix, axis=-2, keepdims=True) + EPS
    for _ in range(iterations - 1):
        mix /= jnp.sum(mix, axis=-1, keepdims=True) + EPS
        mix /= jnp.sum(mix, axis=-2, keepdims=True) + EPS
    return mix


@pytest.fixture(scope="module")
def official():
    return fixture("mhc_a")


@pytest.mark.parametrize("case", ["plain", "large", "near_identity"])
@pytest.mark.parametrize("iterations", [1, 3, 20])
def test_sinkhorn(official, case, iterations):
    found = sinkhorn(jnp.asarray(official.io[f"sinkhorn/{case}/logits"]), iterations)
    np.testing.assert_allclose(found, official.io[f"sinkhorn/{case}/deepseek_v4/iters{iterations}"], atol=1e-6)


def test_streams_through_three_layers(official):
    io, names = official.io, [name for name in official.weights if name.startswith("deepseek")]
    x_BSD = jnp.asarray(io["x"])
    D = x_BSD.shape[-1]
    placement = HyperConnection(D, rngs=nnx.Rngs(0))

    def net(weights):
        x_BSnD, seen = jnp.broadcast_to(x_BSD[:, :, None], (*x_BSD.shape[:2], STREAMS, D)), []
        for i in range(LAYERS):
            kernel = weights[f"deepseek.hc.{i}.fn"].T.reshape(STREAMS, D, -1)
            own = {name: weights[f"deepseek.hc.{i}.{name}"] for name in ("scale", "base")}
            branch_kernel, bias = (weights[f"deepseek.branch.{i}.{name}"] for name in ("weight", "bias"))

            def branch(h_BSD, read_BSD, kernel=branch_kernel, bias=bias):
                return jnp.tanh(h_BSD @ kernel.T + bias), None

            x_BSnD, h_BSD = bound(placement, {"kernel": kernel} | own)(x_BSnD, branch, 1.0)
            seen.append((h_BSD, x_BSnD))
        flat = rms_norm(x_BSnD, eps=EPS, num_dims=2).reshape(*x_BSnD.shape[:2], -1)
        raw = flat @ weights["deepseek.head.hc_fn"].T * weights["deepseek.head.hc_scale"]
        head_BSn = jax.nn.sigmoid(raw + weights["deepseek.head.hc_base"]) + EPS
        return jnp.einsum("BSn,BSnD->BSD", head_BSn, x_BSnD), seen

    weights = {name: jnp.asarray(official.weights[name]) for name in names}
    out_BSD, seen = net(weights)
    for i, (h_BSD, x_BSnD) in enumerate(seen):
        np.testing.assert_allclose(h_BSD, io[f"deepseek/layer{i}/collapsed"], atol=1e-5)
        np.testing.assert_allclose(x_BSnD, io[f"deepseek/layer{i}/streams_out"], atol=1e-5)
    np.testing.assert_allclose(out_BSD, io["deepseek/output"], atol=1e-5)
    grads = jax.grad(lambda weights: jnp.mean(net(weights)[0] * io["loss_G"]))(weights)
    stored = load_file(official.folder / "grads.safetensors")
    assert max(relative_error(grads[name], stored[name]) for name in names) < 1e-4
