"""Which backend computes an attention, and what is said about it."""

import jax
import jax.numpy as jnp
import pytest

from looplm.errors import UserError
from looplm.ops.attention import Asked, Mask, choose, cudnn, prepare
from looplm.sharding.rules import MESH_AXES

DOCUMENTS = jax.ShapeDtypeStruct((1, 4096), jnp.int32)


def asked(queries=4096, head_dim=128, dtype=jnp.bfloat16, biased=False):
    return Asked(queries, dtype, head_dim, biased)


def program_for(platform, context=1):
    """While a program for this platform is traced."""
    device = jax.sharding.AbstractDevice(device_kind=platform, num_cores=None, platform=platform)
    sizes = tuple(context if axis == "context" else 1 for axis in MESH_AXES)
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh(sizes, MESH_AXES, abstract_device=device))


@pytest.fixture
def gpu_of_capability(monkeypatch):
    """Pretends that this process has such a GPU, with cuDNN."""

    def pretend(capability):
        monkeypatch.setattr(cudnn, "_capability", lambda: capability)
        monkeypatch.setattr(cudnn._fused(), "check_cudnn_version", lambda: 91200)

    return pretend


@pytest.mark.parametrize(
    ("platform", "queries", "biased", "backend"),
    [
        ("cpu", 128, True, "blockwise"), ("cpu", 127, False, "dense"), ("tpu", 128, False, "splash"),
        ("tpu", 1, False, "dense"), ("tpu", 128, True, "dense"), ("tpu", 4096, True, "blockwise"),
        ("gpu", 4096, False, "triton"), ("gpu", 4096, True, "blockwise"), ("gpu", 1, False, "dense"),
    ],
)  # fmt: skip
def test_the_platform_of_the_program_decides(platform, queries, biased, backend):
    """A mask is written out before the loops where all scores are held, and only there."""
    with program_for(platform):
        mask, what = Mask("causal", None, queries), asked(queries, biased=biased)
        assert choose(mask, what).backend == backend
        prepared = jax.eval_shape(lambda: prepare(mask, what))
        assert choose(prepared, what).backend == backend
    assert (prepared.seen_BST is not None) == (backend == "dense")


@pytest.mark.parametrize(
    ("capability", "mask", "what", "backend", "why"),
    [
        ((9, 0), Mask("causal", None, 4096, segments_BS=DOCUMENTS), asked(), "cudnn", ""),
        ((10, 0), Mask("full", None, 4096, segments_BS=DOCUMENTS), asked(), "cudnn", ""),
        ((9, 0), Mask("causal", 512, 4096), asked(), "cudnn", ""),
        ((9, 0), Mask("causal", None, 4096), asked(head_dim=256), "cudnn", ""),
        ((8, 0), Mask("causal", None, 4096, segments_BS=DOCUMENTS), asked(), "triton", "compute capability 8.0"),
        (None, Mask("causal", None, 4096), asked(), "triton", "asks an NVIDIA GPU"),
        ((9, 0), Mask("causal", None, 4096), asked(dtype=jnp.float32), "triton", "bfloat16 and float16"),
        ((9, 0), Mask("causal", None, 4096), asked(head_dim=100), "triton", "multiple of 8"),
        ((9, 0), Mask("causal", 512, 4096, segments_BS=DOCUMENTS), asked(), "blockwise", "windows within documents"),
        ((9, 0), Mask("full", 512, 4096), asked(), "blockwise", "windows within both directions"),
        ((9, 0), Mask("causal", None, 4096, DOCUMENTS, DOCUMENTS), asked(), "blockwise", "in a cache"),
        ((9, 0), Mask("causal", None, 5000), asked(), "blockwise", "keys that are not theirs"),
        ((9, 0), Mask("prefix", None, 4096), asked(), "blockwise", "attention_mask=prefix"),
        ((9, 0), Mask("causal", None, 100), asked(100), "dense", "less than a block"),
        ((9, 0), Mask("causal", None, 4096, segments_BS=DOCUMENTS), asked(head_dim=256), "blockwise", "need triton"),
    ],
)  # fmt: skip
def test_on_a_gpu_its_age_and_what_is_asked_decide(capability, mask, what, backend, why, gpu_of_capability):
    gpu_of_capability(capability)
    with program_for("gpu"):
        found = choose(mask, what)
    assert found.backend == backend
    assert why in found.why
    assert bool(found.why) == bool(why)


def test_a_sequence_that_is_split_is_left_to_blocks_on_a_gpu(gpu_of_capability):
    gpu_of_capability((9, 0))
    with program_for("gpu", context=2):
        found = choose(Mask("causal", None, 4096), asked())
    assert found.backend == "blockwise"
    assert "mesh.context=2" in found.why


@pytest.mark.parametrize(
    ("backend", "platform", "mask", "reason"),
    [
        ("splash", "cpu", Mask("causal", None, 4096, backend="splash"), "it is a kernel for a tpu, and this is a cpu"),
        ("cudnn", "gpu", Mask("causal", None, 4096, backend="cudnn"), "asks an NVIDIA GPU of this process"),
        ("triton", "gpu", Mask("causal", 64, 4096, backend="triton"), "windows (model.attention_window=64)"),
        ("splash", "tpu", Mask("prefix", None, 4096, backend="splash"), "model.attention_mask=prefix"),
    ],
)
def test_what_the_wanted_backend_cannot_do_is_refused(backend, platform, mask, reason):
    with program_for(platform), pytest.raises(UserError, match=r"use model\.attention_backend=auto") as e:
        choose(mask, asked())
    assert f"model.attention_backend={backend} does not" in str(e.value)
    assert reason in str(e.value)


@pytest.mark.parametrize("backend", ["dense", "blockwise"])
def test_what_computes_everything_is_taken_where_it_is_wanted(backend):
    for platform in ("cpu", "gpu", "tpu"):
        with program_for(platform):
            assert choose(Mask("prefix", 3, 9, backend=backend), asked(1)).backend == backend
