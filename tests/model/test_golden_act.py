"""Universal Transformer with ACT against the PyTorch port of tensor2tensor's (tests/golden/ut_act_a/README.md): states,
probabilities, updates, remainders, outputs, cost, and all gradients.

Other variants, in a folder that LOOPLM_GOLDEN names, are run too.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from looplm.checkpoint.adapters.base import Official, Part, linear, to_official, to_params, vector
from looplm.config.schema import (
    ACTHalting,
    ConvReLU,
    Cost,
    Model,
    NeverHalting,
    NoPositions,
    SinusoidalConditioning,
)
from looplm.model.conditioning import timing_signal
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM
from looplm.ops.attention import self_mask
from tests.checkpoint.folders import config_of, folders

COST = 0.1
"""Weight of the ponder cost in the official loss."""


def model_of(config, batch):
    """Every input vector is a row of the table of embeddings: the official encoder gets vectors."""
    act = ACTHalting(threshold=config.get("threshold", 0.9), mean="running", rest_to_last=False, cost=Cost(weight=COST))
    return Model(
        vocab_size=batch,
        dim=config["hidden_size"],
        num_heads=config["num_heads"],
        head_dim=config["total_key_depth"] // config["num_heads"],
        hidden_dim=config["filter_size"],
        block_layers=1,
        feed_forward=ConvReLU(relu_twice=True),
        attention_mask="full",
        norm="layer_std",
        positions=NoPositions(),
        conditioning=SinusoidalConditioning(),
        halting=act if config["act"] else NeverHalting(),
        final_norm=False,
        tie_embeddings=True,
        dtype="float64",
    )


def tensors(model):
    D, N, H, F = model.dim, model.num_heads, model.head_size, model.hidden_dim
    layer, attention, conv = "core.block.layers", "enc.multi_head_attention", "enc.positionwise_feed_forward.layers"

    def kernel(path, inputs, outputs):
        return Part(path, (2, 1, 0), (outputs, inputs, 3))

    stacked = {
        f"{attention}.query_linear.weight": linear(f"{layer}.attention.query.project.kernel", (D,), (N, H)),
        f"{attention}.key_linear.weight": linear(f"{layer}.attention.key.project.kernel", (D,), (N, H)),
        f"{attention}.value_linear.weight": linear(f"{layer}.attention.value.kernel", (D,), (N, H)),
        f"{attention}.output_linear.weight": linear(f"{layer}.attention.output.kernel", (N, H), (D,)),
        f"{conv}.0.conv.weight": kernel(f"{layer}.feed_forward.up.mix.kernel", D, F),
        f"{conv}.0.conv.bias": vector(f"{layer}.feed_forward.up.bias", F),
        f"{conv}.1.conv.weight": kernel(f"{layer}.feed_forward.down.mix.kernel", F, D),
        f"{conv}.1.conv.bias": vector(f"{layer}.feed_forward.down.bias", D),
    }
    for name, branch in (("mha", "attention_residual"), ("ffn", "feed_forward_residual")):
        stacked[f"enc.layer_norm_{name}.gamma"] = vector(f"{layer}.{branch}.norm.scale", D)
        stacked[f"enc.layer_norm_{name}.beta"] = vector(f"{layer}.{branch}.norm.bias", D)
    unit = {
        "act_fn.p.weight": linear("halting.unit.kernel", (D,), (1,)),
        "act_fn.p.bias": vector("halting.unit.bias", 1),
    }
    return [
        *(Official(name, (part,), layer=0) for name, part in stacked.items()),
        *(Official(name, (part,)) for name, part in unit.items() if isinstance(model.halting, ACTHalting)),
    ]


def rounded(*given):
    """The official signals are float32 also where all else is float64."""
    return timing_signal(*given).astype(jnp.float32).astype(given[-1])


@pytest.fixture(scope="module", params=folders("ut_act"), ids=lambda folder: folder.name)
def passed(request):
    """A pass with the official weights in float64, and its gradients."""
    folder = request.param
    config, io = config_of(folder), dict(np.load(folder / "io.npz"))
    weights = {name: value.astype(np.float64) for name, value in load_file(folder / "model.safetensors").items()}
    B, S, _ = io["inputs"].shape
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        patch.setattr("looplm.model.conditioning.timing_signal", rounded)
        lm = FunctionalLM(model_of(config, B * S))
        official = tensors(lm.config)
        shapes = jax.eval_shape(lm.init, jax.random.key(0))
        params = to_params(official, weights.__getitem__, shapes, np.float64)
        positions_BS, tokens_BS = jnp.broadcast_to(jnp.arange(S), (B, S)), jnp.arange(B * S).reshape(B, S)
        context = Context(positions_BS, self_mask(lm.config, jnp.zeros_like(positions_BS)))

        def loss(params, projection_DE):
            table = jnp.asarray(io["inputs"], jnp.float64).reshape(B * S, -1) @ projection_DE.T
            model = lm.bind(params | {"embedding": {"table": table}})
            output = Forward(model, tokens_BS, context, Depth(config["num_layers"]), jnp.float64)()
            read_BSD = output.read[0]
            told = model.halting.told(output.halt, None, None)
            total = jnp.mean(read_BSD * io["loss_G"])
            if told is not None:
                total += jnp.mean(told.cost_B)
            return total, (read_BSD, output.halt, told)

        run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        (value, (read_BSD, halt, told)), (grads, of_projection) = run(params, weights["embedding_proj.weight"])
        halt, told = jax.tree.map(np.asarray, (halt, told))
        found = to_official(official, grads) | {"embedding_proj.weight": of_projection}
        return SimpleNamespace(
            config=config, io=io, loss=value, read=read_BSD, halt=halt, told=told, grads=found,
            theirs=load_file(folder / "grads.safetensors"), shape=(B, S), depth=config["num_layers"],
        )  # fmt: skip


def test_signals(passed):
    for name in ("timing_signal", "position_signal"):
        theirs_1SD = passed.io[name]
        ours_SD = timing_signal(jnp.arange(theirs_1SD.shape[1]), theirs_1SD.shape[2], jnp.float32)
        np.testing.assert_allclose(ours_SD, theirs_1SD[0], atol=2e-6)


def test_output_and_loss(passed):
    np.testing.assert_allclose(passed.read, passed.io["output_f64"], atol=1e-9)
    np.testing.assert_allclose(passed.loss, passed.io["loss_f64"], atol=1e-9)


def test_updates_remainders_and_cost(passed):
    if passed.told is None:
        pytest.skip("a variant without ACT")
    halt, io = passed.halt, passed.io
    np.testing.assert_array_equal(halt.updates_BS, io["n_updates"].reshape(passed.shape))
    np.testing.assert_allclose(halt.remainder_BS, io["remainders"].reshape(passed.shape), atol=2e-5)
    np.testing.assert_allclose(halt.total_BS, io["halting_probability"][-1].reshape(passed.shape), atol=2e-5)
    np.testing.assert_allclose(np.mean(passed.told.cost_B) / COST, io["ponder_cost"], rtol=1e-5)


def test_all_gradients(passed):
    assert passed.grads.keys() == passed.theirs.keys()
    for name, theirs in passed.theirs.items():
        error = np.max(np.abs(passed.grads[name] - theirs)) / np.max(np.abs(theirs))
        assert error < 1e-4, name
