"""The kernel for GPUs of any age against the definition in float64, interpreted: every operation by itself, on the
CPU."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.ops.attention import Asked, Mask, dense, reference, triton
from looplm.train.flops import step_flops
from tests.ops.test_attention import CASES, Case, by_definition, step_of, values_and_gradients  # noqa: F401

INTERPRETED = partial(triton.attention, interpret=True)
IN_THE_KERNEL = ["odd", "one key head", "both sides", "packed, with padding", "documents of one token"]
LENGTHS = (1, 127, 1000, 2048)


def compare(found, expected, atol):
    for array, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(array, wanted, atol=atol * max(1, np.abs(wanted).max()))


@pytest.mark.parametrize("name", IN_THE_KERNEL)
def test_it_gives_the_values_and_gradients_of_the_definition(name, by_definition):  # noqa: F811
    case = CASES[name]
    inputs = [jnp.float32(x) for x in case.inputs()]
    if case.queries > 128:
        assert triton.cannot(case.mask(), Asked(case.queries, jnp.float32, 64)) is None
    compare(values_and_gradients(INTERPRETED, case.mask(), inputs), by_definition(name), 4e-6)


def test_bfloat16(by_definition):  # noqa: F811
    name = "packed, with padding"
    inputs = [jnp.bfloat16(x) for x in CASES[name].inputs()]
    compare(values_and_gradients(INTERPRETED, CASES[name].mask(), inputs), by_definition(name), 0.03)


@pytest.mark.slow
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", ["causal", "full"])
@pytest.mark.parametrize("packed", [False, True])
def test_all_lengths(length, heads, kind, packed):
    documents = (length // 2, length // 4, 1) if packed and length > 4 else ()
    case = Case(length, length, heads=heads, kind=kind, documents=documents)
    with jax.enable_x64(True):
        expected = values_and_gradients(reference.attention, case.mask(), [jnp.float64(x) for x in case.inputs()])
    found = values_and_gradients(INTERPRETED, case.mask(), [jnp.float32(x) for x in case.inputs()])
    compare(found, expected, 4e-6)


@pytest.mark.parametrize("name", ["window", "prefix", "bias", "a cache", "tokens that left", "more keys than queries"])
def test_what_it_cannot_do_is_known(name):
    case = CASES[name]
    assert triton.cannot(case.mask(), Asked(case.queries, jnp.float32, 64, case.biased))


def test_a_document_changes_no_bit_of_another():
    case = Case(300, 300, documents=(100, 60, 140))
    inputs = [jnp.float32(x) for x in case.inputs()]
    others_S = (np.arange(300) >= 100) & (np.arange(300) < 160)
    mask = Mask("causal", None, 300, segments_BS=case.mask().segments_BS[:1].repeat(2, axis=0))
    found, changed = (
        values_and_gradients(INTERPRETED, mask, [jnp.where(others_S[:, None, None], factor * x, x) for x in inputs])
        for factor in (1.0, -3.0)
    )
    for array, other in zip(found, changed, strict=True):
        np.testing.assert_array_equal(array[:, ~others_S], other[:, ~others_S])
        assert np.any(array != other)


@pytest.mark.parametrize("kind", ["causal", "full"])
def test_flops_are_those_of_what_is_seen(kind):
    shapes = [jax.ShapeDtypeStruct((2, 300, heads, 64), jnp.bfloat16) for heads in (4, 2, 2)]
    programs = [step_of(backend, Mask(kind, None, 300)).trace(*shapes).jaxpr for backend in (dense, triton)]
    whole, in_the_kernel = (step_flops(program).at(0) for program in programs)
    assert in_the_kernel.model == pytest.approx(whole.model, rel=1e-6)
    assert in_the_kernel.hardware <= 2.5 * whole.hardware


def test_it_is_in_the_program_of_a_gpu():
    """Lowered on a CPU, for a described GPU."""
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA A100-SXM4-80GB", num_cores=None, platform="gpu")
    shapes = [jax.ShapeDtypeStruct((2, 300, heads, 96), jnp.bfloat16) for heads in (4, 2, 2)]
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        traced = step_of(triton, Mask("causal", None, 300)).trace(*shapes)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @__gpu$xla.gpu.triton") == 3  # forward, what the gradient takes from each, backward
