"""Experts spread over devices give what one device gives: values and all gradients, however skewed the routing is."""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from looplm.config.schema import Balance, Mesh, Model, MoE
from looplm.model.context import Context
from looplm.model.experts import ROOM
from looplm.model.init import Init
from looplm.model.moe import MoE as Layer
from looplm.model.report import Reporting
from looplm.ops.attention import Mask
from looplm.ops.grouped_matmul import blocks
from looplm.sharding.collective import gather, lay_out, reduce_gradient, split_sequence
from looplm.sharding.mesh import build_mesh
from looplm.sharding.rules import parameter_spec, placement

B, S, D, E = 8, 8, 8, 8
BIASES = {
    "even": np.zeros(E),
    "all_to_the_same": np.array([0, 0, 0, 9, 8, 0, 0, 0]),
    "all_to_one_device": np.array([9, 8, 0, 0, 0, 0, 0, 0]),
    "one_has_none": np.array([0, 0, 0, 0, 0, -9, 0, 0]),
}
"""Of the choice."""
KINDS = {
    "dropless": (2, None), "limited": (2, 1.0), "one_choice": (1, None),
    "dropless_padded": (2, None), "limited_padded": (2, 1.0),
}  # fmt: skip
"""Experts per token, and the limit of their load."""
COUNTED_BS = np.arange(S) < np.array([8, 5, 0, 7, 1, 8, 4, 3])[:, None]
"""Of the padded kinds."""
SLOW = [
    ("dropless", {"expert": 2, "tensor": 2, "fsdp": 2}), ("limited", {"expert": 8}),
    ("limited", {"expert": 4, "fsdp": 2}), ("one_choice", {"expert": 2}),
    ("dropless", {"expert": 2}), ("dropless", {"expert": 4}), ("dropless", {"expert": 1}),
    ("one_choice", {"expert": 4}), ("dropless", {"expert": 2, "context": 2, "tensor": 2}),
    ("limited", {"expert": 2, "context": 2, "tensor": 2}),
]  # fmt: skip
FAST = [
    ("dropless", {"expert": 8}),
    ("limited_padded", {"expert": 2, "context": 2, "tensor": 2}), ("dropless_padded", {"expert": 4, "fsdp": 2}),
]  # fmt: skip
MESHES = [*FAST, *(pytest.param(*one, marks=pytest.mark.slow) for one in SLOW)]


class Result(NamedTuple):
    out: np.ndarray
    load: np.ndarray
    dropped: np.ndarray
    grads: dict


def layer(kind, **changes):
    experts_per_token, limit = KINDS[kind]
    moe = MoE(
        num_experts=E, experts_per_token=experts_per_token, expert_dim=4, shared_dim=4, capacity_factor=limit,
        balance=Balance(bias_rate=0.1), **changes,
    )  # fmt: skip
    model = Model(vocab_size=8, dim=D, num_heads=2, hidden_dim=8, block_layers=1, feed_forward=moe)
    return nnx.split(nnx.eval_shape(lambda: Layer(model, moe, Init.of(model), rngs=nnx.Rngs(0))))


def numbers(graph, state, bias):
    keys = iter(jax.random.split(jax.random.key(0), 99))
    params = jax.tree.map(lambda leaf: np.asarray(jax.random.normal(next(keys), leaf.shape)), nnx.to_pure_dict(state))
    params["router"]["balance_bias"] = np.float32(bias)[None]
    return params, np.asarray(jax.random.normal(next(keys), (2, B, S, D)))


def result(graph, state, params, x_BSD, weight_BSD, *, kind="dropless"):
    """Under the present mesh, if there is one: parameters are gathered outside, as in a training step."""
    variables = dict(nnx.to_flat_state(state))

    def loss(whole, x_BSD):
        values = {path: variable.replace(_at(whole, path)) for path, variable in variables.items()}
        context = Context(
            jnp.zeros((B, S), jnp.int32), Mask("causal", None, S), reporting=Reporting(routing=True),
            with_capacity=True,
            counted_BS=lay_out(jnp.asarray(COUNTED_BS), "batch", "sequence") if "padded" in kind else None,
        )  # fmt: skip
        out_BSD, routing = nnx.merge(graph, nnx.from_flat_state(values))(x_BSD, split_sequence(x_BSD), context)
        return jnp.sum(out_BSD * weight_BSD), (out_BSD, routing)

    axes = {path: variable.axes for path, variable in variables.items()}
    whole = jax.tree_util.tree_map_with_path(lambda path, leaf: gather(leaf, axes[_names(path)]), params)
    (_, (out, routing)), (grads, dx) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(whole, x_BSD)
    return Result(out, routing.load_BE, routing.dropped_B, jax.tree.map(reduce_gradient, grads, params) | {"x": dx})


def _names(path):
    return tuple(key.key for key in path)


def _at(tree, path):
    for name in path:
        tree = tree[name]
    return tree


@cache
def alone(kind):
    """A layer, and what one device gives for every kind of routing."""
    graph, state = layer(kind)
    compiled = jax.jit(lambda params, x, weight: result(graph, state, params, x, weight, kind=kind))
    expected = {name: compiled(params, *xs) for name, (params, xs) in cases(graph, state)}
    return graph, state, jax.device_get(expected)


def cases(graph, state):
    return [(name, numbers(graph, state, bias)) for name, bias in BIASES.items()]


def placed(mesh, state, params, xs):
    axes = {path: variable.axes for path, variable in dict(nnx.to_flat_state(state)).items()}

    def place(path, leaf):
        return jax.device_put(leaf, NamedSharding(mesh, parameter_spec(axes[_names(path)], leaf.shape, mesh)))

    tokens = [jax.device_put(x, placement(mesh, "batch", "sequence")) for x in xs]
    return jax.tree_util.tree_map_with_path(place, params), *tokens


def assert_equal(found, expected, name):
    for (path, ours), wanted in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        scale = max(1.0, np.abs(wanted).max())
        message = f"{name} {jax.tree_util.keystr(path)}"
        np.testing.assert_allclose(np.asarray(ours) / scale, wanted / scale, atol=1e-5, err_msg=message)


@pytest.mark.parametrize(("kind", "sizes"), MESHES)
def test_values_and_gradients_are_those_of_one_device(kind, sizes):
    graph, state, expected = alone(kind)
    count = int(np.prod(list(sizes.values())))
    mesh = build_mesh(Mesh(**{"fsdp": 1} | sizes), jax.devices()[:count])
    with jax.set_mesh(mesh):
        compiled = jax.jit(lambda params, x, weight: result(graph, state, params, x, weight, kind=kind))
        for name, (params, xs) in cases(graph, state):
            assert_equal(compiled(*placed(mesh, state, params, xs)), expected[name], name)


def test_groups_may_need_different_numbers_of_rounds():
    """In one the tokens are spread, in the other all want the experts of one device, which takes two rounds."""
    graph, state, _ = alone("dropless")
    params, (x_BSD, weight_BSD) = numbers(graph, state, np.zeros(E))
    params["router"]["kernel"] = 9 * np.eye(D, E, dtype=np.float32)
    own_BS = np.arange(B * S).reshape(B, S) % E
    spread_BSD, same_BSD = np.eye(D)[own_BS], np.broadcast_to(np.eye(D)[0], (B, S, D))
    nudge_BSD = np.eye(D)[(own_BS + 4) % E], np.broadcast_to(np.eye(D)[1], (B, S, D))
    is_first = (np.arange(B) < B // 2)[:, None, None]
    routed_BSD = np.where(is_first, spread_BSD + nudge_BSD[0] / 2, same_BSD + nudge_BSD[1] / 2)
    x_BSD = np.float32(routed_BSD + 0.01 * x_BSD)
    one = jax.jit(lambda params, x, weight: result(graph, state, params, x, weight))(params, x_BSD, weight_BSD)
    arriving = one.load.reshape(2, B // 2, 2, E // 2).sum(axis=(1, 3))  # (group, device)
    room = ROOM * B * S * 2 / 4
    assert [int(-(-most // room)) for most in arriving.max(axis=1)] == [1, 2]
    mesh = build_mesh(Mesh(fsdp=2, expert=2), jax.devices()[:4])
    with jax.set_mesh(mesh):
        compiled = jax.jit(lambda params, x, weight: result(graph, state, params, x, weight))
        assert_equal(compiled(*placed(mesh, state, params, (x_BSD, weight_BSD))), one, "two groups")


def test_the_backend_of_the_config_computes_all_products(monkeypatch):
    """Those of the gradient and of later rounds too."""
    for product in ("of_rows", "of_matrices"):
        monkeypatch.setattr(blocks, product, None)  # what `auto` would take
    graph, state = layer("dropless", backend="ragged")
    mesh = build_mesh(Mesh(fsdp=1, expert=2), jax.devices()[:2])
    with jax.set_mesh(mesh):
        arrays = placed(mesh, state, *numbers(graph, state, BIASES["even"]))
        text = str(jax.make_jaxpr(lambda params, *xs: result(graph, state, params, *xs))(*arrays))
    # Three of the first round and six of its gradient; as many of later rounds, and there the forward three once more.
    assert text.count("= ragged_dot_general[") == 3 * (1 + 2) + 3 * (1 + 1 + 2)


def test_the_routing_was_as_skewed_as_meant():
    """By the bias all tokens take the same experts: two, or the one."""
    for kind, load in (("dropless", [0, 0, 0, 1, 1, 0, 0, 0]), ("one_choice", [0, 0, 0, 1, 0, 0, 0, 0])):
        _, _, expected = alone(kind)
        np.testing.assert_array_equal(expected["all_to_the_same"].load.sum(axis=0), B * S * np.array(load))
        assert expected["one_has_none"].load.sum(axis=0)[5] == 0
        grads = expected["one_has_none"].grads["experts"]
        assert all(np.all(grads[name][5] == 0) and np.any(grads[name][4] != 0) for name in grads)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_dropped_is_counted(kind):
    """A sequence of n tokens has n k choices; with a factor of 1 an expert takes n k / E of them, rounded up."""
    _, _, expected = alone(kind)
    for name, found in expected.items():
        room = np.ceil(found.load.sum(axis=1, keepdims=True) / E)
        above = np.maximum(found.load - room, 0).sum(axis=1)
        np.testing.assert_array_equal(found.dropped, above if "limited" in kind else 0)
        assert np.any(above) or name != "all_to_the_same"
