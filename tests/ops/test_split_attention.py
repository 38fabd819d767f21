"""Attention over a sequence that is split over devices, against the definition in float64 on one."""

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.config.schema import Mesh
from looplm.ops.attention import Asked, attention, dense, prepare, reference, splash, splash_ring
from looplm.ops.attention.mask import Mask
from looplm.sharding.collective import lay_out
from looplm.sharding.mesh import build_mesh
from looplm.sharding.split import Split

S, B = 512, 2
DOCUMENTS = np.repeat([1, 2, 3, 4, 0], [200, 3, 150, 109, 50])
"""The second begins and ends in one chunk, the third lies in two; the last is padding."""


class Case(NamedTuple):
    """Whom a token sees, in the order of the sequence."""

    kind: Any = "causal"
    window: int | None = None
    packed: bool = True
    absent: bool = False

    def mask(self, split: Split | None) -> Mask:
        order = np.arange(S) if split is None else split.order(S)
        draw = np.random.default_rng(1)
        rows = {
            "segments_BS": np.stack([DOCUMENTS, DOCUMENTS[::-1]]) if self.packed else None,
            "prefix_BT": draw.random((B, S)) < 0.1 if self.kind == "prefix" else None,
            "present_BT": (draw.random((B, S)) < 0.7) if self.absent else None,
        }
        arrays = {name: None if x is None else jnp.asarray(x[:, order]) for name, x in rows.items()}
        return Mask(self.kind, self.window, S, split, **arrays)


CASES = {
    "causal": Case(packed=False),
    "packed": Case(),
    "window": Case(window=70),
    "both sides": Case(kind="full"),
    "prefix": Case(kind="prefix"),
    "tokens that left": Case(absent=True),
}
Function = Callable[..., jax.Array]


def inputs() -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.normal(size=(B, S, heads, 8)) for heads in (4, 2, 2)]


def values_and_gradients(function: Function, mask: Mask, arrays: list[np.ndarray], dtype: Any) -> list[np.ndarray]:
    """The output and the gradients, in the order of the sequence. The cotangent differs everywhere."""
    order = np.arange(S) if mask.split is None else mask.split.order(S)
    back = np.argsort(order)
    weight = np.cos(np.arange(B * S * 4 * 8)).reshape(B, S, 4, 8)

    @jax.jit
    def run(mask: Mask, weight: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        mask = jax.tree.map(lambda x: lay_out(x, "batch", "sequence"), mask)

        def attend(*arrays: jax.Array) -> jax.Array:
            q, k, v = (
                lay_out(x, "batch", "sequence", heads, "head_dim") for x, heads in zip(arrays, HEADS, strict=True)
            )
            return jnp.where(sees_BS11, function(q, k, v, prepare(mask, Asked(S, dtype, q.shape[-1]))), 0)

        sees_BS = jnp.broadcast_to(jnp.any(mask.dense(S), axis=-1), (B, S))
        sees_BS11 = lay_out(sees_BS, "batch", "sequence")[:, :, None, None]
        out, pull_back = jax.vjp(attend, *arrays)
        return out, *pull_back(lay_out(weight, "batch", "sequence", "heads", "head_dim"))

    found = run(mask, *(jnp.asarray(x[:, order], dtype) for x in (weight, *arrays)))
    return [np.float64(x)[:, back] for x in found]


HEADS = ("heads", "kv_heads", "kv_heads")


@pytest.fixture(scope="module")
def by_definition() -> Callable[[str], list[np.ndarray]]:
    known: dict[str, list[np.ndarray]] = {}

    def find(name: str) -> list[np.ndarray]:
        if name not in known:
            with jax.enable_x64(True):
                known[name] = values_and_gradients(reference.attention, CASES[name].mask(None), inputs(), jnp.float64)
        return known[name]

    return find


def on_mesh(function: Function, case: Case, split: Split, arrays: list[np.ndarray]) -> list[np.ndarray]:
    axes = {2: {"fsdp": 2, "tensor": 2}, 4: {"fsdp": 1, "data": 2}}[split.parts]
    with jax.set_mesh(build_mesh(Mesh(**axes, context=split.parts))):
        return values_and_gradients(function, case.mask(split), arrays, jnp.float32)


def in_the_kernel(*arrays: Any) -> jax.Array:
    """By the kernel for TPUs, interpreted."""
    q, k, v, mask = arrays
    k, v = (lay_out(x, "batch", "all_keys", "kv_heads", "head_dim") for x in (k, v))
    return splash.attention(q, k, v, mask, interpret=True)


def by_xla(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> jax.Array:
    """With all scores, as where a bias is added."""
    k, v = (lay_out(x, "batch", "all_keys", "kv_heads", "head_dim") for x in (k, v))
    return dense.attention(q, k, v, mask)


BY_DEFAULT = {
    (attention, "packed", 4, True),
    (attention, "prefix", 2, True),
    (attention, "window", 2, False),
    (in_the_kernel, "packed", 2, True),
    (by_xla, "packed", 2, True),
}
"""The others are slow tests."""
WAYS = [
    *product((attention, by_xla), CASES, (2, 4), (True, False)),
    *product([in_the_kernel], ("causal", "packed", "window"), (2, 4), (True, False)),
]


@pytest.mark.parametrize(
    ("function", "name", "parts", "zigzag"),
    [pytest.param(*way, marks=[] if way in BY_DEFAULT else pytest.mark.slow) for way in WAYS],
)
def test_keys_that_are_gathered_give_the_values_and_gradients_of_the_definition(
    function: Function, name: str, parts: int, zigzag: bool, by_definition: Callable[[str], list[np.ndarray]]
) -> None:
    found = on_mesh(function, CASES[name], Split(parts, zigzag, ring=False), inputs())
    for array, expected in zip(found, by_definition(name), strict=True):
        np.testing.assert_allclose(array, expected, atol=4e-6 * max(1, np.abs(expected).max()))


def around_in_the_kernel(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> jax.Array:
    """By the kernel for TPUs, interpreted."""
    return splash_ring.attention(q, k, v, mask, interpret=True)


AROUND_BY_DEFAULT = {
    (attention, "packed", 4, True),
    (attention, "prefix", 2, False),
    (around_in_the_kernel, "packed", 4, True),
    (around_in_the_kernel, "window", 2, False),
}
AROUND = [
    *product([attention], CASES, (2, 4), (True, False)),
    *product([around_in_the_kernel], ("causal", "packed", "window", "both sides"), (2, 4), (True, False)),
]


@pytest.mark.parametrize(
    ("function", "name", "parts", "zigzag"),
    [pytest.param(*way, marks=[] if way in AROUND_BY_DEFAULT else pytest.mark.slow) for way in AROUND],
)
def test_keys_that_go_around_give_the_values_and_gradients_of_the_definition(
    function: Function, name: str, parts: int, zigzag: bool, by_definition: Callable[[str], list[np.ndarray]]
) -> None:
    found = on_mesh(function, CASES[name], Split(parts, zigzag, ring=True), inputs())
    for array, expected in zip(found, by_definition(name), strict=True):
        np.testing.assert_allclose(array, expected, atol=4e-6 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize(
    ("function", "ring"),
    [(attention, False), (attention, True), pytest.param(around_in_the_kernel, True, marks=pytest.mark.slow)],
)
def test_a_document_changes_no_bit_of_another(function: Function, ring: bool) -> None:
    """One that lies on several devices."""
    changed_S, split = DOCUMENTS == 3, Split(4, zigzag=True, ring=ring)
    changed_B1S = np.stack([changed_S, changed_S[::-1]])[:, :, None, None]
    found, other = (
        on_mesh(function, CASES["packed"], split, [np.where(changed_B1S, factor * x, x) for x in inputs()])
        for factor in (1.0, -3.0)
    )
    for array, after in zip(found, other, strict=True):
        same = array == after
        assert np.all(same | changed_B1S)
        assert not np.all(same)


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_the_zigzag_order_gives_all_devices_the_same_work(parts: int) -> None:
    """Blocks that are computed of a causal mask. In order the last device has nearly twice the mean."""

    def blocks(zigzag: bool) -> np.ndarray:
        seen = Mask("causal", None, 4096, Split(parts, zigzag, ring=False)).blocks(4096, 128, 128)
        return seen.reshape(parts, -1).sum(axis=1)

    assert set(blocks(zigzag=True)) == {32 * 33 // 2 // parts}
    assert max(blocks(zigzag=False)) == pytest.approx((2 - 1 / parts) * 32 * 33 / 2 / parts, rel=0.03)
