"""Attention whose keys go around: every device of `context` attends with its queries to the keys that it holds, hands
them to the next device, and puts the results together (arXiv 2310.01889). Nobody ever has the keys of all.

Softmaxes over parts of the keys are put together by their normalisers, exactly. The backward pass sends keys and values
around once more, and their gradients with them, which are home after a full turn. What is done with the keys of one
device is a `Part`: `blockwise_ring` in plain JAX, `splash_ring` on TPUs.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from looplm.ops.attention import residuals

AXIS = "context"
UNSEEN = -1e30
"""The normaliser of no keys: finite, so that the difference of two of them is a number."""

About = tuple[Any, Any, Any]
"""What is known of the queries, of the keys, which goes around with them, and of all devices: trees of integers."""
Result = tuple[jax.Array, jax.Array]
"""(out, normaliser). The normaliser is the logarithm of the sum of exponentials of scores, in the shape of the queries
without the head size. Where no key is seen it is at most UNSEEN, and out is finite."""


class Part(Protocol):
    """What a device does with its queries and the keys of one device. Queries, keys and values have any shape that ends
    in the head size. `turn` says whose keys they are: device i has those of device i - turn."""

    def sees(self, turn: jax.Array, about: About) -> jax.Array:
        """Say whether a query may see one of the keys; where none does, nothing is computed."""

    def forward(self, turn: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, about: About) -> Result:
        """Attend to these keys alone; results in float32 at least."""

    def backward(
        self, turn: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, about: About, result: Result, d_out: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return what these keys add to the gradient of q, and the gradients of k and v, in float32 at least.

        result: over the keys of all devices.
        """


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend(part: Part, num_devices: int, q: jax.Array, k: jax.Array, v: jax.Array, about: About) -> jax.Array:
    """Attend to the keys of all devices; to be called on each of them. part: hashable, it decides about the program."""
    return _forward(part, num_devices, q, k, v, about)[0]


def _forward(
    part: Part, num_devices: int, q: jax.Array, k: jax.Array, v: jax.Array, about: About
) -> tuple[jax.Array, tuple]:
    of_queries, of_keys, of_all = about

    def meet(turn: jax.Array, sums: Result, keys: tuple, homing: tuple[()]) -> tuple[Result, tuple[()]]:
        k, v, of_keys = keys
        here = of_queries, of_keys, of_all

        def add(sums: Result) -> Result:
            (out, normaliser), (more, of_more) = sums, part.forward(turn, q, k, v, here)
            total = jnp.logaddexp(normaliser, of_more)
            share, share_of_more = (jnp.exp(x - total)[..., None] for x in (normaliser, of_more))
            return out * share + more * share_of_more, total

        return jax.lax.cond(part.sees(turn, here), add, lambda sums: sums, sums), homing

    out, normaliser = jax.eval_shape(part.forward, jnp.int32(0), q, k, v, about)
    nothing = jnp.zeros(out.shape, out.dtype), jnp.full(normaliser.shape, UNSEEN, normaliser.dtype)
    (out, normaliser), _ = _around(meet, num_devices, nothing, (k, v, of_keys), ())
    out, normaliser = (checkpoint_name(x, residuals.NAME) for x in (out.astype(q.dtype), normaliser))
    return out, (q, k, v, about, out, normaliser)


def _backward(part: Part, num_devices: int, saved: tuple, d_out: jax.Array) -> tuple:
    q, k, v, (of_queries, of_keys, of_all), *result = saved

    def meet(turn: jax.Array, d_q: jax.Array, keys: tuple, homing: tuple) -> tuple[jax.Array, tuple]:
        k, v, of_keys = keys
        here = of_queries, of_keys, of_all

        def add(sums: tuple) -> tuple:
            return jax.tree.map(jnp.add, sums, part.backward(turn, q, k, v, here, tuple(result), d_out))

        d_q, *homing = jax.lax.cond(part.sees(turn, here), add, lambda sums: sums, (d_q, *homing))
        return d_q, tuple(homing)

    zeros = [jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)) for x in (q, k, v)]
    d_q, d_kv = _around(meet, num_devices, zeros[0], (k, v, of_keys), tuple(zeros[1:]))
    return *(total.astype(x.dtype) for total, x in zip((d_q, *d_kv), (q, k, v), strict=True)), None


attend.defvjp(_forward, _backward)


def _around(meet: Callable[..., Any], num_devices: int, sums: Any, keys: Any, homing: Any) -> tuple[Any, Any]:
    """Call sums, homing = meet(turn, sums, keys, homing) with the keys of every device. What is homing goes around with
    the keys, and at last to where they came from."""

    def pass_on(x: Any) -> Any:
        return jax.lax.ppermute(x, AXIS, [(i, (i + 1) % num_devices) for i in range(num_devices)])

    def turn(state: tuple, number: jax.Array) -> tuple[tuple, None]:
        sums, keys, homing = state
        coming = pass_on(keys)  # while this device works with those that it has
        sums, homing = meet(number, sums, keys, homing)
        return (sums, coming, pass_on(homing)), None

    (sums, keys, homing), _ = jax.lax.scan(turn, (sums, keys, homing), jnp.arange(num_devices - 1, dtype=jnp.int32))
    sums, homing = meet(jnp.int32(num_devices - 1), sums, keys, homing)
    return sums, pass_on(homing)
