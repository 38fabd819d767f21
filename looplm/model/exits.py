"""Exit rules: when a token leaves the loops early. A rule says after every loop which tokens want to leave; `Exits` is
the halting rule around one of them, or around several joined by "and" and "or".

In a pass over whole sequences all loops run and the rule selects what is read. Where text is written
(`infer/items.py`), a token that has left runs no more.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from looplm.model.context import Context
from looplm.model.gates import ExitGate
from looplm.model.halting import Never, State
from looplm.ops.precision import at_least_fp32

Memory = Any
"""What a rule remembers of earlier loops: a tree of arrays (B, S, ...)."""


class Rule(Protocol):
    """When a token wants to leave; a Flax module. h_BSD is what `Core.read` gives of a state, (B, S, D)."""

    def init(self, h_BSD: jax.Array) -> Memory:
        """Make the memory before the first loop; h_BSD is of the first state."""

    def judge(self, memory: Memory, h_BSD: jax.Array, context: Context) -> tuple[jax.Array, Memory]:
        """Say after a loop who wants to leave; h_BSD is of the new state. Returns ((B, S) bool, memory)."""


class Exited(NamedTuple):
    """Accumulators of `Exits`."""

    memory: Memory
    read_BSD: jax.Array
    """What is read of every token: after the loop at which it left, or after the latest one."""
    left_BS: jax.Array
    """True for tokens that have left."""
    exit_BS: jax.Array
    """Number of the loop that `read_BSD` is of, from 0; int32."""


class Exits(Never):
    """A token is read after the first loop at which the rule lets it leave, at the latest after the last."""

    def __init__(self, rule: Rule):
        self.rule = rule

    def init(self, h_BSD: jax.Array) -> Exited:
        number_BS = jnp.zeros_like(h_BSD[..., 0], jnp.int32)
        return Exited(self.rule.init(h_BSD), h_BSD, number_BS != 0, number_BS)

    def update(self, acc: Exited, old: State, new: State, h_BSD: jax.Array, context: Context) -> tuple[State, Exited]:
        wants_BS, memory = self.rule.judge(acc.memory, h_BSD, context)
        loop = context.loop
        is_last_B1 = (loop.number_B == loop.total_B - 1)[:, None]
        return new, Exited(
            memory,
            jnp.where(acc.left_BS[..., None], acc.read_BSD, h_BSD),
            acc.left_BS | wants_BS | is_last_B1,
            jnp.where(acc.left_BS, acc.exit_BS, loop.number_B[:, None]),
        )

    def finish(self, acc: Exited, h_BSD: jax.Array) -> jax.Array:
        return acc.read_BSD

    def left(self, acc: Exited) -> jax.Array:
        return acc.left_BS

    def exits(self, acc: Exited) -> jax.Array:
        return acc.exit_BS


class GateExit(nnx.Module):
    """A token leaves when its cumulative exit probability reaches the threshold (arXiv 2510.25741)."""

    def __init__(self, gate: ExitGate, threshold: float):
        self.gate, self.threshold = gate, threshold

    def init(self, h_BSD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return (log of the probability that a token is still in, cumulative exit probability), each (B, S)."""
        zeros_BS = jnp.zeros_like(h_BSD[..., 0], at_least_fp32(h_BSD).dtype)
        return zeros_BS, zeros_BS

    def judge(self, memory: tuple, h_BSD: jax.Array, context: Context) -> tuple[jax.Array, tuple]:
        log_stay_BS, exited_BS = memory
        logits_BS = self.gate(h_BSD)
        exited_BS = exited_BS + jnp.exp(jax.nn.log_sigmoid(logits_BS) + log_stay_BS)
        return exited_BS >= self.threshold, (log_stay_BS + jax.nn.log_sigmoid(-logits_BS), exited_BS)


class LatentDifference(nnx.Module):
    """A token leaves when |h_t - h_{t-1}| / |h_t| is below the tolerance (arXiv 2502.05171)."""

    def __init__(self, tolerance: float):
        self.tolerance = tolerance

    def init(self, h_BSD: jax.Array) -> jax.Array:
        return h_BSD

    def judge(self, before_BSD: jax.Array, h_BSD: jax.Array, context: Context) -> tuple[jax.Array, jax.Array]:
        new_BSD, old_BSD = at_least_fp32(h_BSD), at_least_fp32(before_BSD)
        change_BS = jnp.linalg.norm(new_BSD - old_BSD, axis=-1)
        return change_BS < self.tolerance * jnp.linalg.norm(new_BSD, axis=-1), h_BSD


class Divergence(nnx.Module):
    """A token leaves when KL(p_t || p_{t-1}) of its predictions is below the tolerance, in nats; never after the first
    loop (arXiv 2502.05171)."""

    def __init__(self, tolerance: float, vocab_size: int):
        self.tolerance, self.vocab_size = tolerance, vocab_size

    def init(self, h_BSD: jax.Array) -> jax.Array:
        return jnp.zeros((*h_BSD.shape[:2], self.vocab_size), at_least_fp32(h_BSD).dtype)

    def judge(self, before_BSV: jax.Array, h_BSD: jax.Array, context: Context) -> tuple[jax.Array, jax.Array]:
        log_p_BSV = log_prediction(h_BSD, context)
        kl_BS = jnp.sum(jnp.exp(log_p_BSV) * (log_p_BSV - before_BSV), axis=-1)
        return (kl_BS < self.tolerance) & (context.loop.number_B > 0)[:, None], log_p_BSV


class Entropy(nnx.Module):
    """A token leaves when the entropy of its prediction is below the bound, in nats."""

    def __init__(self, bound: float):
        self.bound = bound

    def init(self, h_BSD: jax.Array) -> tuple[()]:
        return ()

    def judge(self, memory: tuple[()], h_BSD: jax.Array, context: Context) -> tuple[jax.Array, tuple[()]]:
        log_p_BSV = log_prediction(h_BSD, context)
        return -jnp.sum(jnp.exp(log_p_BSV) * log_p_BSV, axis=-1) < self.bound, memory


class Confidence(nnx.Module):
    """A token leaves when its likeliest successor has at least this probability (arXiv 2207.07061)."""

    def __init__(self, probability: float):
        self.probability = probability

    def init(self, h_BSD: jax.Array) -> tuple[()]:
        return ()

    def judge(self, memory: tuple[()], h_BSD: jax.Array, context: Context) -> tuple[jax.Array, tuple[()]]:
        return jnp.exp(jnp.max(log_prediction(h_BSD, context), axis=-1)) >= self.probability, memory


class StableArgmax(nnx.Module):
    """A token leaves when its likeliest successor has been the same in `loops` loops in a row."""

    def __init__(self, loops: int):
        self.loops = loops

    def init(self, h_BSD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return (the likeliest successor, -1 before the first loop; for how many loops so far), (B, S) int32 each."""
        zeros_BS = jnp.zeros_like(h_BSD[..., 0], jnp.int32)
        return zeros_BS - 1, zeros_BS

    def judge(self, memory: tuple, h_BSD: jax.Array, context: Context) -> tuple[jax.Array, tuple]:
        before_BS, count_BS = memory
        best_BS = jnp.argmax(log_prediction(h_BSD, context), axis=-1).astype(jnp.int32)
        count_BS = jnp.where(best_BS == before_BS, count_BS + 1, 1)
        return count_BS >= self.loops, (best_BS, count_BS)


class Patient(nnx.Module):
    """A token leaves when the inner rule let it in `patience` loops in a row, and at least `least` loops have run."""

    def __init__(self, rule: Rule, patience: int, least: int):
        self.rule, self.patience, self.least = rule, patience, least

    def init(self, h_BSD: jax.Array) -> tuple[Memory, jax.Array]:
        return self.rule.init(h_BSD), jnp.zeros_like(h_BSD[..., 0], jnp.int32)

    def judge(self, memory: tuple, h_BSD: jax.Array, context: Context) -> tuple[jax.Array, tuple]:
        wants_BS, inner = self.rule.judge(memory[0], h_BSD, context)
        held_BS = jnp.where(wants_BS, memory[1] + 1, 0)
        enough_B1 = (context.loop.number_B + 1 >= self.least)[:, None]
        return (held_BS >= self.patience) & enough_B1, (inner, held_BS)


class Joined(nnx.Module):
    """A token leaves when both rules let it, or when one of them does."""

    def __init__(self, first: Rule, second: Rule, *, both: bool):
        self.first, self.second, self.both = first, second, both

    def init(self, h_BSD: jax.Array) -> tuple[Memory, Memory]:
        return self.first.init(h_BSD), self.second.init(h_BSD)

    def judge(self, memory: tuple, h_BSD: jax.Array, context: Context) -> tuple[jax.Array, tuple]:
        one_BS, first = self.first.judge(memory[0], h_BSD, context)
        other_BS, second = self.second.judge(memory[1], h_BSD, context)
        return (one_BS & other_BS) if self.both else (one_BS | other_BS), (first, second)


def log_prediction(h_BSD: jax.Array, context: Context) -> jax.Array:
    """Return the log-probabilities that the head would give now, (B, S, V), float32 at least."""
    assert context.predict is not None, "whoever runs the loops puts it into the context"
    return jax.nn.log_softmax(at_least_fp32(context.predict(h_BSD)))
