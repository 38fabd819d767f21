"""What cuDNN is asked: it runs on Hopper and newer GPUs alone, so its programs are read, and a stand-in in plain JAX
that takes lengths and offsets as JAX documents them computes what it would."""

import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.config.schema import Mesh
from looplm.ops.attention import Mask, blockwise, cudnn, dense, reference, triton
from looplm.ops.attention.residuals import kept
from looplm.sharding.collective import lay_out
from looplm.sharding.mesh import build_mesh
from looplm.train.flops import bodies, step_flops
from tests.ops.test_attention import Case, step_of, values_and_gradients

FUSED = cudnn._fused()


@pytest.fixture
def hopper(monkeypatch):
    """JAX asks the GPU of this process what cuDNN can; this one says that it is a Hopper."""
    monkeypatch.setattr(FUSED, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(FUSED, "is_cuda_compute_capability_equal", lambda capability: False)
    monkeypatch.setattr(FUSED, "check_cudnn_version", lambda: 91200)
    monkeypatch.setattr(
        triton, "on_device", by_blocks
    )  # JAX lowers that for a described GPU only, and cuDNN's for none


def by_blocks(q, k, v, mask, *, keeps):
    """Stands in for the kernel that takes rows of too many documents."""
    return blockwise.attention(q, k, v, mask)


def shapes(length=256, heads=(4, 2), head_dim=64, batch=8):
    N, K = heads
    return [jax.ShapeDtypeStruct((batch, length, n, head_dim), jnp.bfloat16) for n in (N, K, K)]


def loss_of(q, k, v, segments_BS=None, *, kind="causal", window=None):
    mask = Mask(kind, window, q.shape[1], segments_BS=segments_BS)
    return jnp.sum(cudnn.attention(q, k, v, mask).astype(jnp.float32))


def calls(text):
    """Name and settings of every call of cuDNN in a program."""
    found = re.findall(r'custom_call @(__cudnn\$\w+)\(.*?backend_config = "(.*?)"[,}]', text)
    settings = [json.loads(config.replace("\\22", '"'))["cudnn_fmha_backend_config"] for _, config in found]
    return [(name, each) for (name, _), each in zip(found, settings, strict=True)]


@pytest.mark.parametrize(
    ("options", "packed", "mask_type", "window", "documents"),
    [
        (dict(kind="causal"), False, "CAUSAL", 0, 1),
        (dict(kind="full"), False, "NO_MASK", 0, 1),
        (dict(kind="causal", window=40), False, "CAUSAL", 40, 1),
        (dict(kind="causal"), True, "PADDING_CAUSAL", 0, 8),
        (dict(kind="full"), True, "PADDING", 0, 8),
    ],
)
def test_the_program_of_a_gpu_calls_it_with_the_right_mask(options, packed, mask_type, window, documents, hopper):
    arrays = shapes() + [jax.ShapeDtypeStruct((8, 256), jnp.int32)] * packed
    traced = jax.jit(jax.grad(partial(loss_of, **options), argnums=(0, 1, 2))).trace(*arrays)
    found = calls(traced.lower(lowering_platforms=("cuda",)).as_text())
    assert [name for name, _ in found] == ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"]
    for _, settings in found:
        assert settings["mask_type"] == mask_type
        assert settings["sliding_window_length"] == window
        assert settings["max_seg_per_batch"] == documents
        assert settings["fmha_scale"] == 1 / 8
        assert settings["intermediate_tensor_shape"]["dimensions"] == ["8", "4", "256", "256"]


def test_on_a_mesh_every_device_calls_it_with_its_rows_and_heads(hopper):
    @jax.jit
    def run(q, k, v, segments_BS):
        def loss(q, k, v):
            q, k, v = (
                lay_out(x, "batch", "sequence", heads, "head_dim") for x, heads in zip((q, k, v), HEADS, strict=True)
            )
            return loss_of(q, k, v, lay_out(segments_BS, "batch", "sequence"))

        return jax.grad(loss, argnums=(0, 1, 2))(q, k, v)

    HEADS = ("heads", "kv_heads", "kv_heads")
    with jax.set_mesh(build_mesh(Mesh(data=2, fsdp=2, tensor=2))):
        traced = run.trace(*shapes(), jax.ShapeDtypeStruct((8, 256), jnp.int32))
        found = calls(traced.lower(lowering_platforms=("cuda",)).as_text())
    assert len(found) == 2
    for _, settings in found:
        assert settings["intermediate_tensor_shape"]["dimensions"] == ["2", "2", "256", "256"]


def stand_in(q_BSNH, k_BSNH, v_BSNH, *, q_seqlen, kv_seqlen, q_offsets, kv_offsets, scale, mask_type):
    """Sequence m of a row is what lies from its offset on, as long as its length; nothing else is written."""
    assert q_seqlen is kv_seqlen
    assert q_offsets is kv_offsets
    place_S = jnp.arange(q_BSNH.shape[1])
    start_BM1, length_BM1 = q_offsets[:, :-1, None], q_seqlen[:, :, None]
    inside_BMS = (start_BM1 >= 0) & (place_S >= start_BM1) & (place_S < start_BM1 + length_BM1)
    seen_BST = jnp.any(inside_BMS[:, :, :, None] & inside_BMS[:, :, None, :], axis=1)
    if mask_type == FUSED.MaskType.PADDING_CAUSAL:
        seen_BST &= place_S[:, None] >= place_S
    scores_BNST = jnp.einsum("BSNH,BTNH->BNST", q_BSNH, k_BSNH) * scale
    weights_BNST = jax.nn.softmax(jnp.where(seen_BST[:, None], scores_BNST, -1e30), axis=-1)
    out_BSNH = jnp.einsum("BNST,BTNH->BSNH", weights_BNST, v_BSNH)
    return jnp.where(jnp.any(inside_BMS, axis=1)[:, :, None, None], out_BSNH, jnp.nan)


@pytest.mark.parametrize(
    "case",
    [
        Case(300, 300, documents=(5, 130, 1, 100)),
        Case(300, 300, documents=(300,)),
        Case(300, 300, kind="full", documents=(100, 150)),
        Case(200, 200, documents=(1,) * 200),  # too many for its places
    ],
)
def test_lengths_and_offsets_are_the_documents(case, monkeypatch):
    monkeypatch.setattr(FUSED, "dot_product_attention", stand_in)
    monkeypatch.setattr(triton, "on_device", by_blocks)
    inputs = [jnp.float32(x) for x in case.inputs()]
    expected = values_and_gradients(reference.attention, case.mask(), inputs)
    found = values_and_gradients(cudnn.attention, case.mask(), inputs)
    for array, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(array, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("segments", "lengths", "fits"),
    [
        ([7, 7, 3, 3, 3, 0], [2, 3, 1, -1], True),
        ([1, 1, 1, 1, 1, 1], [6, -1, -1, -1], True),
        ([1, 2, 3, 4, 4, 0], [1, 1, 1, 2], False),  # five documents
        ([1, 2, 1, 1, 1, 1], [1, 1, 4, -1], False),  # the first one is in two pieces
        ([0, 2, 2, -5, -5, 9], [1, 2, 2, 1], True),
    ],
)
def test_runs_of_documents(segments, lengths, fits):
    runs = cudnn.runs_of(jnp.array([segments], jnp.int32), 4)
    assert runs.lengths_BM.tolist() == [lengths]
    assert runs.fit_B.tolist() == [fits]


def count(jaxpr, name):
    """How often an operation, or a kernel of this name, stands in a program."""
    here = sum(name in (eqn.primitive.name, str(eqn.params.get("name"))) for eqn in jaxpr.eqns)
    return here + sum(count(body, name) for eqn in jaxpr.eqns for body in bodies(eqn))


@pytest.mark.parametrize(("policy", "times"), [(kept, 1), (None, 2)])
@pytest.mark.parametrize("backend", ["triton", "cudnn", "cudnn, packed"])
def test_a_layer_that_is_recomputed_does_not_run_a_kernel_again(backend, policy, times, request):
    if backend != "triton":
        request.getfixturevalue("hopper")

    def layer(x_BSNH, k, v, segments_BS):
        mask = Mask("causal", None, 256, segments_BS=segments_BS if "packed" in backend else None)
        module = triton if backend == "triton" else cudnn
        return jnp.sin(module.attention(jnp.sin(x_BSNH), k, v, mask)).astype(jnp.float32)

    def loss(*inputs):
        return jnp.sum(jax.checkpoint(layer, policy=policy)(*inputs))

    kernel = "mha_forward" if backend == "triton" else "dot_product_attention_fwd_wrapper"
    program = jax.make_jaxpr(jax.grad(loss))(*shapes(), jax.ShapeDtypeStruct((8, 256), jnp.int32))
    assert count(program.jaxpr, kernel) == times


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["causal", "full"])
def test_flops_are_those_of_what_is_seen(kind, packed, hopper):
    arrays = shapes() + [jax.ShapeDtypeStruct((8, 256), jnp.int32)] * packed
    traced = jax.jit(jax.value_and_grad(partial(loss_of, kind=kind), argnums=(0, 1, 2))).trace(*arrays)
    found = step_flops(traced.jaxpr).at(0)
    whole = step_flops(step_of(dense, Mask(kind, None, 256)).trace(*shapes()).jaxpr).at(0)
    assert found.model == pytest.approx(whole.model, rel=1e-6)
    assert found.hardware == pytest.approx(found.model * 7 / 6, rel=1e-6)  # the scores once more
