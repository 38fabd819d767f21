"""Layers that are taken apart are those of the stack, in its memory."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.model.apart import Apart


@pytest.mark.parametrize(("shape", "dtype"), [((3, 32, 16), jnp.float32), ((2, 64, 8), jnp.bfloat16)])
def test_layers_share_the_memory_of_the_stack(shape, dtype):
    stacked = jax.block_until_ready(jax.random.normal(jax.random.key(0), shape, dtype))
    expected, start, size = np.array(stacked), stacked.unsafe_buffer_pointer(), stacked.nbytes // shape[0]
    apart = Apart.of(stacked)
    assert [layer.unsafe_buffer_pointer() - start for layer in apart.layers] == [i * size for i in range(shape[0])]
    del stacked
    gc.collect(0)  # the youngest objects, of which it is one: there are very many others
    np.testing.assert_array_equal(np.stack(apart.layers), expected)
    assert apart.shape == shape


def test_layers_of_any_size_are_those_of_the_stack():
    stacked = jax.random.normal(jax.random.key(0), (3, 7))
    np.testing.assert_array_equal(np.stack(Apart.of(stacked).layers), stacked)


def test_a_stack_over_several_devices_is_taken_apart() -> None:
    mesh = jax.make_mesh((2,), ("fsdp",), devices=jax.devices()[:2])
    stacked = jax.device_put(jnp.arange(24.0).reshape(3, 8), jax.NamedSharding(mesh, jax.P(None, "fsdp")))
    apart = Apart.of(stacked)
    np.testing.assert_array_equal(np.stack(apart.layers), stacked)
    assert all(layer.devices() == stacked.devices() for layer in apart.layers)
