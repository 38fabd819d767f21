"""Presets have the published sizes; nothing is allocated."""

import pytest

from looplm.config.file import find_config
from looplm.config.load import load_config, override
from looplm.model.functional import FunctionalLM

PUBLISHED = {
    # Embedding and head 2 * 49152 * 2048; a layer 4 * D^2 + 3 * D * F + 4 * D; one norm; the gate D + 1.
    "ouro:1.4b": 2 * 49152 * 2048 + 24 * (4 * 2048**2 + 3 * 2048 * 5632 + 4 * 2048) + 2048 + 2049,
    "ouro:2.6b": 2 * 49152 * 2048 + 48 * (4 * 2048**2 + 3 * 2048 * 5632 + 4 * 2048) + 2048 + 2049,
    # From the shapes of the released state dict.
    "huginn:3.5b": 3_564_976_800,
    # Embedding; attention, feed-forward with biases, two norms, the unit of ACT.
    "universal_transformer:base": 32768 * 1024 + 4 * 1024**2 + 2 * 1024 * 4096 + 4096 + 6 * 1024 + 1,
    "universal_transformer:big": 32768 * 2048 + 4 * 2048**2 + 2 * 2048 * 8192 + 8192 + 6 * 2048 + 1,
    # 118 M without embeddings: 12 layers of SmolLM-360M, the last norm, three routers.
    "mor:360m": 49152 * 960 + 12 * (2 * 960**2 + 2 * 960 * 320 + 3 * 960 * 2560 + 2 * 960) + 4 * 960,
    # Counted in the official models, instantiated without allocating.
    "parcae:140m": 144_323_136,
    "parcae:370m": 388_003_328,
    "parcae:770m": 776_655_680,
    "parcae:1.3b": 1_338_591_744,
    # A layer 5 D^2 + 2 D F + F + 5 D; embedding and head share a table, and the head has a bias; two vectors of D.
    "transformer_xl:enwik8.12l": 204 * 513 + 12 * (5 * 512**2 + 2 * 512 * 2048 + 2048 + 5 * 512) + 2 * 512,
    # AlbertModel of the library without its pooler, and what AlbertForMaskedLM has in front of the tied head.
    "albert:base": 11_683_584 - 769 * 768 + 128 * 768 + 3 * 128 + 30_000,
    "albert:large": 17_683_968 - 1025 * 1024 + 128 * 1024 + 3 * 128 + 30_000,
    "albert:xlarge": 58_724_864 - 2049 * 2048 + 128 * 2048 + 3 * 128 + 30_000,
    "albert:xxlarge": 222_595_584 - 4097 * 4096 + 128 * 4096 + 3 * 128 + 30_000,
    # 277 M without what compresses: a layer of it has 4 matrices and a bias.
    "compressive:enwik8": 277_231_820 + 24 * (4 * 1024**2 + 1024),
    # Embedding and head; layers of 4 D^2 and 3 * 2.75 D^2; the last norm; of each of three loops 12 weights of four
    # streams (reading, writing, keeping), three scales and a vector.
    "hyperloop:136m": 2 * 32000 * 1024 + 8 * (12.25 * 1024**2 + 2 * 1024) + 1024 + 3 * (12 * 4097 + 3 + 1024),
    "hyperloop:580m": 2 * 32000 * 2048 + 10 * (12.25 * 2048**2 + 2 * 2048) + 2048 + 3 * (12 * 8193 + 3 + 2048),
    "hyperloop:990m": 2 * 32000 * 2048 + 18 * (12.25 * 2048**2 + 2 * 2048) + 2048 + 3 * (12 * 8193 + 3 + 2048),
    # Thirty-two branches, each with 4 + 4 + 16 weights of four streams and three scales.
    "hyperloop:mhc_241m": 2 * 32000 * 1024 + 16 * (12.25 * 1024**2 + 2 * 1024) + 1024 + 32 * (24 * 4097 + 3),
    # Tokens and positions; layers of 4 D^2, two matrices, and scales and gates of both branches from a vector; two
    # embeddings of times; the last norm, the only one with a scale.
    "loopformer:3x8": 51328 * 2048
    + 3 * (4 * 2048**2 + 2 * 2048 * 5120 + 4 * (2048**2 + 2048))
    + 2 * (256 * 2048 + 2048**2 + 2 * 2048)
    + 2048,
    # 151,107,538 officially, 1,233 of them for the clusters of an adaptive softmax.
    "transformer_xl:wt103.base": 151_107_538 - 3 * 411,
}

# Queries and outputs, keys and values, norms of both branches and of heads.
ATTENTION_1B = 2 * 1024**2 + 2 * 1024 * 512 + 4 * 1024 + 2 * 64
ROUTER_1B, EXPERT_1B = 1024 * 64 + 2 * 4 * 64, 3 * 1024 * 512
DENSE_1B = 2 * 49152 * 1024 + 1024 + 4 * (ATTENTION_1B + 3 * 1024 * 2816) + 8 * (ATTENTION_1B + ROUTER_1B)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_published(name):
    count = FunctionalLM(load_config(name).model).num_params
    assert count == PUBLISHED[name]
    assert f"{name.partition(':')[2]} has {count:,}" in " ".join(find_config(name).path.read_text().split())


@pytest.mark.parametrize(
    ("name", "published", "changes"),
    [
        ("136m", 135.7, {}),
        ("136m", 135.5, {"model.core.streams": None}),
        ("580m", 579.7, {}),
        ("580m", 579.4, {"model.core.streams": None}),
        ("990m", 990.5, {"model.core.streams": None}),
        ("mhc_241m", 241, {}),
    ],
)
def test_hyperloop_has_the_published_parameters_without_its_embedding(name, published, changes):
    model = override(load_config(f"hyperloop:{name}"), changes).model
    millions = (FunctionalLM(model).num_params - model.vocab_size * model.dim) / 1e6
    assert round(millions, 1 if isinstance(published, float) else None) == published


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_preset_has_a_tiny_sibling_with_the_same_axes(name):
    large, tiny = (load_config(n).model for n in (name, f"{name.partition(':')[0]}:tiny"))
    for axis in (
        "norm_placement",
        "norm_at_loop_end",
        "norm_before_coda",
        "prelude_norm",
        "injection",
        "feed_forward",
        "value_embedding",
        "read_out",
        "qk_norm",
        "qk_norm_scale",
        "qk_bias",
        "rope",
        "tie_embeddings",
    ):
        assert getattr(large, axis) == getattr(tiny, axis)
    assert large.state_init.kind == tiny.state_init.kind
    assert large.init.kind == tiny.init.kind
    assert FunctionalLM(tiny).num_params < 2_000_000


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        # Embedding, head, final norm; dense layers; layers with 64 experts, router, its biases of 4 loops.
        ("looped_moe:1b", DENSE_1B + 8 * 64 * EXPERT_1B, DENSE_1B + 8 * 8 * EXPERT_1B),
        ("smelt:100m", 366_769_280, 91_518_080),
        # Of the official modules: embedding, head with its bias, norms; two layers.
        ("moeut:44m", 44_345_792, 10_937_536),
    ],
)
def test_presets_with_experts_say_how_many_parameters_are_active(name, total, active):
    lm = FunctionalLM(load_config(name).model)
    assert (lm.num_params, lm.num_active_params) == (total, active)
    assert f"{total:,} parameters, {active:,} of them active" in find_config(name).path.read_text()
    large, tiny = (load_config(n).model for n in (name, f"{name.partition(':')[0]}:tiny"))
    for axis in (
        "norm",
        "norm_placement",
        "head_bias",
        "rope",
        "attention",
        "injection",
        "residual_step",
        "qk_norm",
        "prelude_feed_forward",
        "coda_feed_forward",
    ):
        assert getattr(large, axis) == getattr(tiny, axis)
    sizes = ("num_experts", "experts_per_token", "expert_dim", "balance")
    assert large.feed_forward.model_dump(exclude=set(sizes)) == tiny.feed_forward.model_dump(exclude=set(sizes))
    assert FunctionalLM(tiny).num_params < 2_000_000


@pytest.mark.parametrize(
    ("name", "count"),
    [("base", 11_813_810), ("large", 17_847_474), ("xlarge", 59_021_490), ("xxlarge", 223_158_450)],
)
def test_an_albert_with_the_classes_of_sentence_order_is_that_of_pretraining(name, count):
    assert FunctionalLM(override(load_config(f"albert:{name}"), {"model.sequence_head": {}}).model).num_params == count
    assert f"{count:,}" in find_config("albert").path.read_text()
