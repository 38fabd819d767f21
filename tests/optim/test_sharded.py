"""Optimizers on a mesh: state sharded like the parameters, and the update of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from optax.contrib import MuonDimensionNumbers

from looplm.config.schema import AdamW, Mesh, Muon, Optim, Schedule
from looplm.optim.build import build_optimizer
from looplm.optim.muon import make_whole, scale_by_muon, split_again
from looplm.sharding.mesh import build_mesh
from looplm.train.state import abstract_state


@pytest.fixture(scope="module")
def mesh():
    return build_mesh(Mesh(data=2, fsdp=2, tensor=2))


@pytest.mark.parametrize("kind", [AdamW(), Muon()], ids=lambda kind: kind.kind)
def test_the_update_is_that_of_one_device(kind, mesh, lm, params, gradients, train, by_path) -> None:
    config = Optim(learning_rate=0.01, optimizer=kind, schedule=Schedule(warmup_steps=1), ema_decay=0.9)
    optimizer = build_optimizer(config, lm, 10)
    abstract = abstract_state(lm, optimizer, mesh)

    def step(params, opt_state, gradient):
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract.params)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(params, shardings)
        state = (sharded, jax.jit(optimizer.init)(sharded))
        compiled = jax.jit(step)
        for gradient in gradients[:2]:
            state = compiled(*state, jax.device_put(gradient, shardings))

    for path, leaf in by_path((abstract.params, abstract.opt_state)).items():
        got = by_path(state)[path]
        assert got.sharding.is_equivalent_to(leaf.sharding, leaf.ndim), path
    moments = [leaf for path, leaf in by_path(abstract.opt_state).items() if path.endswith("down/kernel")]
    assert len(moments) == (3 if kind.kind == "adamw" else 2)  # moments and average
    assert all(leaf.sharding.spec == PartitionSpec(None, "tensor", "fsdp") for leaf in moments)

    expected = by_path(train(optimizer, 2)[-1])
    assert by_path(state).keys() == expected.keys()
    for path, leaf in by_path(state).items():
        np.testing.assert_allclose(leaf, expected[path], atol=1e-5, err_msg=path)


ATTENTION = MuonDimensionNumbers((-3,), (-2, -1))


def test_matrices_are_spread_whole_and_put_back(mesh) -> None:
    stack = jnp.arange(3 * 4 * 2 * 5.0).reshape(3, 4, 2, 5)
    with jax.set_mesh(mesh):
        stack = jax.sharding.reshard(stack, PartitionSpec(None, "fsdp", "tensor", None))
        whole = make_whole(stack, ATTENTION)
        assert whole.shape == (4, 4, 2, 5)
        assert {shard.data.shape for shard in whole.addressable_shards} == {(1, 4, 2, 5)}
        again = split_again(whole, stack, ATTENTION)
        assert again.sharding == stack.sharding
        np.testing.assert_array_equal(again, stack)


def test_a_single_matrix_is_whole_everywhere_and_put_back(mesh) -> None:
    dims = MuonDimensionNumbers((-2,), (-1,))
    with jax.set_mesh(mesh):
        matrix = jax.sharding.reshard(jnp.arange(24.0).reshape(4, 6), PartitionSpec("fsdp", "tensor"))
        whole = make_whole(matrix, dims)
        assert whole.is_fully_replicated
        again = split_again(whole, matrix, dims)
        assert again.sharding == matrix.sharding
        np.testing.assert_array_equal(again, matrix)


def test_no_device_gathers_a_stack(mesh) -> None:
    muon = scale_by_muon(0.9, 2, {"w": ATTENTION})
    spec = PartitionSpec(None, "fsdp", "tensor", None)
    weight = {"w": jax.ShapeDtypeStruct((3, 4, 2, 5), jnp.float32, sharding=NamedSharding(mesh, spec))}
    with jax.set_mesh(mesh):
        state = jax.eval_shape(muon.init, weight)
        program = jax.jit(muon.update).lower(weight, state).compile().as_text()
    assert "all-to-all" in program
    assert "all-gather" not in program
