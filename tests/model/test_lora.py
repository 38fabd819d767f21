"""Adapters: against the base, against weights with the product added, and against loops run one by one."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.config.load import load_config
from looplm.config.schema import LoRA, Model, MoE, RelativePositions, ZeroState
from looplm.errors import UserError
from looplm.model.depth import Depth
from looplm.model.functional import FunctionalLM, Params
from looplm.model.subset import Subset
from tests.config.shipped import FILES
from tests.model.conftest import VOCAB

SMALL: dict[str, Any] = dict(
    vocab_size=VOCAB, dim=32, num_heads=4, num_kv_heads=None, head_dim=None, hidden_dim=20, dtype="float32",
    state_init=ZeroState(),
)  # fmt: skip
EVERYWHERE = ("attention", "feed_forward", "injection")
R = 3


def adapted(config: Model, **fields: Any) -> FunctionalLM:
    adapter = LoRA(**{"rank": 2, "targets": EVERYWHERE} | fields)
    return FunctionalLM(config.model_copy(update={"adapter": adapter}))


def base_of(lm: FunctionalLM, params: Params) -> tuple[FunctionalLM, Params]:
    base = FunctionalLM(lm.config.model_copy(update={"adapter": None}))
    return base, Subset.of(base, {".".join(names) for names in base.declarations}).only(params)


def merged(lm: FunctionalLM, params: Params, of_loop: int | None = None) -> Params:
    """The base's parameters, with scale * A B in every kernel that has a pair; of one loop, where each has its own."""

    def add(node: Params, name: str, pair: Params) -> None:
        kernel = node[name]
        a, b = (np.asarray(pair[name], np.float64) for name in "ab")
        if of_loop is not None:
            a, b = a[of_loop], b[of_loop]
        of_each = a.shape[: a.ndim + b.ndim - kernel.ndim - 2]  # layers and experts
        a, b = a.reshape(*of_each, -1, a.shape[-1]), b.reshape(*of_each, a.shape[-1], -1)
        node[name] = kernel + lm.config.adapter.scale * (a @ b).reshape(kernel.shape).astype(np.float32)

    def walk(node: Params) -> Params:
        found = {name: walk(child) if isinstance(child, dict) else child for name, child in node.items()}
        if (adapter := found.pop("adapter", None)) is not None:
            for name, pair in {"kernel": adapter}.items() if "kernel" in found else adapter.items():
                add(found, name, pair)
        return found

    return walk(params)


def test_rank_zero_is_the_base(model_config) -> None:
    base = FunctionalLM(model_config())
    assert adapted(model_config(), rank=0).declarations.keys() == base.declarations.keys()


def test_b_of_zero_adds_nothing_to_the_bit(model_config, random_params, run_model, tokens_BS) -> None:
    lm = adapted(model_config(prelude_layers=0, coda_layers=0))
    params = jax.tree.map_with_path(lambda path, leaf: 0 * leaf if path[-1].key == "b" else leaf, random_params(lm))
    found, expected = (run_model(*pair, tokens_BS, Depth(R)).read for pair in ((lm, params), base_of(lm, params)))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_the_base_is_drawn_as_without_an_adapter(model_config) -> None:
    lm = adapted(model_config())
    base, found = base_of(lm, jax.jit(lm.init)(jax.random.key(3)))
    jax.tree.map(np.testing.assert_array_equal, found, jax.jit(base.init)(jax.random.key(3)))


@pytest.mark.slow
def test_a_is_uniform_after_he_and_b_is_zero(model_config) -> None:
    params = jax.jit(adapted(model_config(), rank=64, loops=2, targets=("attention.output",)).init)(jax.random.key(0))
    pair = params["core"]["block"]["layers"]["attention"]["output"]["adapter"]
    assert pair["a"].shape == (2, 2, 4, 6, 64)  # loops, layers, heads, dims of a head, rank
    bound = np.sqrt(6 / 24)
    assert np.abs(pair["a"]).max() == pytest.approx(bound, rel=0.01)
    assert np.std(pair["a"]) == pytest.approx(bound / np.sqrt(3), rel=0.02)
    assert len(np.unique(pair["a"])) > 0.99 * pair["a"].size
    assert not np.any(pair["b"])


@pytest.mark.parametrize(("stabilised", "scale"), [(False, 32 / 4), (True, 32 / 2)])
def test_the_scale(stabilised: bool, scale: float) -> None:
    assert LoRA(rank=4, alpha=32.0, rank_stabilised=stabilised).scale == scale


def test_what_is_added_is_what_a_merge_adds_to_the_weights(model_config, random_params, run_model, tokens_BS) -> None:
    experts = MoE(num_experts=3, experts_per_token=1, expert_dim=8, shared_dim=12, dense_layers=(1,))
    fields = dict(prelude_layers=0, coda_layers=0, read_out={}, qk_bias=True, qk_norm=True, head_dim=8)
    config = model_config(feed_forward=experts, **fields)
    roles = ("attention", "feed_forward", "injection", "read_out")
    lm = adapted(config, alpha=1.0, targets=roles)
    params = random_params(lm)
    base, _ = base_of(lm, params)
    found = run_model(lm, params, tokens_BS, Depth(R)).read
    expected = run_model(base, merged(lm, params), tokens_BS, Depth(R)).read
    plain = run_model(*base_of(lm, params), tokens_BS, Depth(R)).read
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())
    assert np.abs(found - plain).max() > 1e-3 * np.abs(plain).max()


def test_every_loop_has_matrices_of_its_own_and_later_ones_the_last(
    model_config, random_params, run_model, tokens_BS
) -> None:
    """Against loops that are run one by one, each with its own merged weights."""
    fields = dict(prelude_layers=0, coda_layers=0, final_norm=False, exit_gate=None, injection={"kind": "none"})
    lm = adapted(model_config(**fields), alpha=1.0, loops=2, targets=("attention", "feed_forward"))
    params = random_params(lm)
    base, _ = base_of(lm, params)
    state_BSD = None
    for t in range(R):
        weights = merged(lm, params, of_loop=min(t, 1))
        state_BSD = run_model(base, weights, tokens_BS, Depth(1), start=state_BSD, reads="last").read[0]
    found = run_model(lm, params, tokens_BS, Depth(R), reads="last").read[0]
    np.testing.assert_allclose(found, state_BSD, atol=2e-6 * np.abs(state_BSD).max())


@pytest.mark.slow
@pytest.mark.parametrize(("remat", "unroll"), [("loop", False), ("names", True)])
def test_recomputed_or_written_out_it_is_the_same(
    remat: str, unroll: bool, model_config, random_params, run_model, tokens_BS
) -> None:
    lm = adapted(model_config(), alpha=1.0, loops=2)
    params = random_params(lm)

    def value(params: Params, **options: Any) -> jax.Array:
        return jnp.sum(jnp.sin(run_model(lm, params, tokens_BS, Depth(R), **options).read))

    found = jax.grad(lambda p: value(p, remat=remat, unroll=unroll))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, jax.grad(value)(params))


@pytest.mark.parametrize(
    ("fields", "target", "message"),
    [
        ({}, "attention.quary", r"'attention.quary' means no part .* did you mean attention.query"),
        ({}, "head", r"'head' means head, and adapters go beside projections; .*optim.train=\[\"adapter\", \"head\"\]"),
        ({"tie_embeddings": True}, "embedding", r"which is the embedding and the head at once"),
    ],
)
def test_what_cannot_be_adapted_is_named(fields: dict, target: str, message: str, model_config) -> None:
    with pytest.raises(UserError, match=message):
        adapted(model_config(**fields), targets=(target,))


def test_experts_leave_nothing_out(model_config) -> None:
    experts = MoE(num_experts=2, experts_per_token=1, shared_dim=8)
    with pytest.raises(UserError, match=r"of what experts read, and its targets mean .*experts\.up; set dropout and"):
        adapted(model_config(feed_forward=experts), targets=("feed_forward",), dropout=0.1)
    adapted(model_config(feed_forward=experts), targets=("attention", "shared"), dropout=0.1)


@pytest.mark.parametrize(
    "file", [pytest.param(file, marks=[] if file.stem == "moeut" else pytest.mark.slow, id=file.stem) for file in FILES]
)
def test_every_shipped_architecture_takes_an_adapter(file: Path, random_params, run_model, tokens_BS) -> None:
    """Its sizes made small: a merge is the same model, and all matrices of attention and feed-forward have a pair."""
    shipped = load_config(file).model
    small = SMALL | {key: min(getattr(shipped, key), 1) for key in ("prelude_layers", "block_layers", "coda_layers")}
    if isinstance(shipped.feed_forward, MoE):
        sizes = dict(num_experts=5, experts_per_token=2, expert_dim=6)
        small["feed_forward"] = shipped.feed_forward.model_copy(update=sizes)
    lm = adapted(shipped.model_copy(update=small), alpha=1.0, targets=("attention", "feed_forward"))
    params = random_params(lm)
    found = run_model(lm, params, tokens_BS, Depth(R)).read
    expected = run_model(base_of(lm, params)[0], merged(lm, params), tokens_BS, Depth(R)).read
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    paths = {".".join(names) for names in lm.declarations}
    adapted_kernels = {
        re.sub(r"\.adapter$", ".kernel", path.removesuffix(".a")).replace(".adapter.", ".")
        for path in paths
        if path.endswith(".a")
    }
    projection = re.compile(r"\.(attention|feed_forward)\.(?!.*(router|relative|adapter)).*(kernel|experts\.\w+)$")
    assert adapted_kernels == {path for path in paths if projection.search(path)}


def test_relative_positions_are_no_projection_of_the_attention(model_config) -> None:
    """They read no activation."""
    lm = adapted(model_config(positions=RelativePositions()), targets=("attention",))
    assert not [names for names in lm.declarations if "relative" in names and "adapter" in names]
