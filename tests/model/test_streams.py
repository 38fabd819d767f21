"""Residual streams against a plain definition (`plain_streams.py`), in float64, and what they are with one stream."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from looplm.config.schema import (
    ConcatInjection,
    DiagonalMix,
    ExitGate,
    FreeMix,
    IdentityMix,
    LoopStreams,
    NoInjection,
    SingleCore,
    SinkhornMix,
    Streams,
)
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM
from looplm.model.residual import PLACEMENTS
from looplm.model.streams import Ends, HyperConnection
from looplm.ops.attention import self_mask
from looplm.train.flops import bodies
from tests.model import plain

SMALL = dict(prelude_layers=0, block_layers=1, coda_layers=0, exit_gate=None, injection=NoInjection())
PER_STREAM = Streams(weights="per_stream", bounds="none", mix=FreeMix(), collapse="sum")
LANES = LoopStreams(
    count=2, loops=4, weights="static", bounds="none", mix=FreeMix(), collapse="sum", vectors=False
)  # arXiv 2604.21106
STATIC = Streams(weights="static", bounds="softmax", mix=DiagonalMix())
CASES = {
    "joint": dict(streams=Streams(count=3, mix=SinkhornMix(iterations=3), collapse="head")),
    "per_stream": dict(streams=PER_STREAM, norm_placement="post"),
    "rows_last": dict(
        streams=Streams(weights="per_stream", mix=SinkhornMix(iterations=3, last="rows"), eps=0.0),
        norm_placement="sandwich_sum",
    ),
    "static": dict(streams=STATIC, norm_placement="peri"),
    "identity": dict(streams=Streams(weights="joint", mix=IdentityMix()), norm_placement="output", block_layers=2),
    "loops": dict(core=SingleCore(streams=LoopStreams(count=3, loops=2))),
    "loops with a head": dict(
        core=SingleCore(streams=LoopStreams(collapse="head", mix=SinkhornMix(iterations=3), vectors=False)),
        injection=ConcatInjection(),
        exit_gate=ExitGate(),
    ),
    "lanes": dict(core=SingleCore(streams=LANES, damping=0.7), norm_at_loop_end=True, prelude_layers=1),
}
QUICK = ("joint", "loops")
"""What the others differ in is in the golden tests."""


@pytest.mark.parametrize("case", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in CASES])
def test_a_model_and_its_gradients_are_those_of_the_definition(case, model_config, random_params, tokens_BS):
    config, depth = model_config(**SMALL | CASES[case], dtype="float64"), Depth(3 if "core" in CASES[case] else 1)
    lm, tokens_BS = FunctionalLM(config), tokens_BS[:, :5]
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), random_params(lm))

        def ours(params):
            positions_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape)
            context = Context(positions_BS, self_mask(config, jnp.zeros_like(tokens_BS)))
            model = lm.bind(params)
            return model.logits(Forward(model, tokens_BS, context, depth, jnp.float64)().read[0])

        def theirs(params):
            return jax.vmap(lambda tokens_S: plain.forward(config, params, tokens_S, depth.window)[0][-1])(tokens_BS)

        def run(function):
            loss = lambda params: (jnp.sum(jnp.sin(out := function(params))), out)  # noqa: E731
            return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

        ((_, found), gradient), ((_, expected), wanted) = run(ours), run(theirs)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    for (path, mine), other in zip(jax.tree.leaves_with_path(gradient), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-8, rtol=1e-7, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(
    "streams",
    [
        *(
            Streams(count=1, weights="static", bounds="softmax", mix=mix, eps=0.0)
            for mix in (IdentityMix(), SinkhornMix())
        ),
        *(Streams(count=count, weights="per_stream", bounds="none", mix=FreeMix()) for count in (1, 4)),
    ],
    ids=["one that stays", "one that is mixed", "one at first", "four at first"],
)
def test_branches_are_those_of_one_stream_to_the_bit(streams, model_config):
    """Around every placement of norms: two branches, with one stream, or with several as they begin."""
    draw = np.random.default_rng(0)
    x_BSD, matrix_DD = (jnp.asarray(draw.normal(size=shape), jnp.float32) for shape in ((2, 3, 24), (24, 24)))

    def branch(values_of_BSD, keys_of_BSD):
        return jnp.tanh(values_of_BSD @ matrix_DD) + keys_of_BSD, None

    def after(config):
        residual = PLACEMENTS[config.norm_placement]
        ends = Ends(config, config.streams, rngs=nnx.Rngs(0)) if config.streams else None
        x = ends.spread(x_BSD) if ends else x_BSD
        for number in range(2):
            x, _ = residual(config, number, rngs=nnx.Rngs(0))(x, branch, 0.5)
        return ends.collapse(x) if ends else x

    for placement in PLACEMENTS:
        found, plain = (after(model_config(norm_placement=placement, streams=given)) for given in (streams, None))
        np.testing.assert_array_equal(found, plain, err_msg=placement)


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for body in bodies(equation):
            yield from equations(body)


def test_all_tokens_are_mixed_at_once_in_float32(model_config):
    """The only loops are Sinkhorn's iterations, and no number is float64 where JAX would allow it."""
    with jax.enable_x64(True):
        connection = HyperConnection(model_config(), Streams(mix=SinkhornMix(iterations=7)), 0, rngs=nnx.Rngs(0))

        def loss(x_BSnD):
            h_BSD, logits = connection.read(x_BSnD)
            return jnp.sum(connection.write(x_BSnD, logits, h_BSD), dtype=jnp.float32)

        program = jax.make_jaxpr(jax.grad(loss))(jnp.zeros((3, 11, 4, 24), jnp.bfloat16))
    found = list(equations(program.jaxpr))
    assert not [equation for equation in found if equation.primitive.name == "while"]
    assert {equation.params["length"] for equation in found if equation.primitive.name == "scan"} == {6}
    assert "f64" not in str(program)
