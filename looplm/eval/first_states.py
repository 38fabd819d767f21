"""Whether the loops forget where they began: passes from several first states, compared two by two."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from looplm.config.schema import Model, NormalState
from looplm.data.loader import eval_batches
from looplm.errors import UserError
from looplm.eval.reading import head_of, sliced
from looplm.eval.score import context_of, placed
from looplm.eval.subject import Subject
from looplm.eval.trail import Recorder
from looplm.metrics.first_states import FirstStates
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import Params, compute_dtype
from looplm.model.lm import LoopLM
from looplm.ops.cross_entropy import IGNORED
from looplm.ops.cross_entropy.label import cross_entropy
from looplm.ops.precision import at_least_fp32

MOST_BATCHES = 8


class Sums(NamedTuple):
    """Over the scored tokens and pairs of passes; R loops, N passes."""

    distance_R: jax.Array
    divergence_R: jax.Array
    agreement_R: jax.Array
    nll_RN: jax.Array
    """Over tokens alone."""
    tokens: jax.Array


def check_first_states(model: Model, number: int) -> None:
    """Raise UserError unless there are several first states."""
    if not isinstance(model.state_init, NormalState):
        raise UserError(
            f"--first-states compares drawn first states, and this model begins with model.state_init="
            f"{model.state_init.kind}; leave it out"
        )
    if number < 2:
        raise UserError(f"--first-states={number} must be at least 2, which are compared")


def measure_first_states(subject: Subject, number: int) -> FirstStates:
    """Compare passes from `number` first states, over all loops of the run."""
    R = subject.run.loop.num_loops
    compare = jax.jit(lambda params, batch: _compare(subject, params, batch, R, number))
    sums = None
    most, documents = min(MOST_BATCHES, subject.num_batches), set[int]()
    for batch in eval_batches(subject.held_out.windows, batch_size=subject.batch_size, max_batches=most):
        documents |= set(np.unique(batch["documents"][batch["labels"] != IGNORED]).tolist())
        with jax.set_mesh(subject.mesh):
            new = jax.device_get(compare(subject.params, placed(batch, subject.mesh)))
        sums = new if sums is None else jax.tree.map(np.add, sums, new)
    assert sums is not None, "the depth sweep has seen labels"
    tokens, pairs = float(sums.tokens), number * (number - 1) / 2
    nll_RN = np.float64(sums.nll_RN) / tokens
    return FirstStates(
        step=subject.step,
        ema=subject.ema,
        data=subject.held_out.name,
        num_tokens=int(tokens),
        num_documents=len(documents),
        num_states=number,
        depths=list(range(1, R + 1)),
        state_distance=(sums.distance_R / tokens / pairs).tolist(),
        divergence=(sums.divergence_R / tokens / pairs).tolist(),
        agreement=(sums.agreement_R / tokens / pairs).tolist(),
        loss=nll_RN.mean(axis=1).tolist(),
        loss_spread=nll_RN.std(axis=1, ddof=1).tolist(),
    )


def _compare(subject: Subject, params: Params, batch: dict[str, jax.Array], num_loops: int, number: int) -> Sums:
    lm = subject.lm
    dtype, labels_BS = compute_dtype(lm.config), batch["labels"]
    model = lm.bind(lm.gather(params, dtype))
    halting = Recorder(model.halting, num_loops)
    passes = []
    for key in jax.random.split(jax.random.key(0), number):
        context = context_of(lm.config, batch, key)
        output = Forward(model, batch["tokens"], context, Depth(num_loops), dtype, halting=halting)("all")
        passes.append((output.halt.states_BSRD, jnp.moveaxis(output.read, 0, 2)))
    states_BSNRD, hidden_BSNRD = (jnp.stack(leaves, axis=2) for leaves in zip(*passes, strict=True))
    made = sliced(partial(_compared, model), model, states_BSNRD, hidden_BSNRD, labels_BS, heads=number)
    sums = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=(0, 1)), made)
    return jax.tree.map(lambda x: jax.sharding.reshard(x, PartitionSpec()), Sums(*sums))


def _compared(model: LoopLM, states_BCNRD: jax.Array, hidden_BCNRD: jax.Array, labels_BC: jax.Array) -> tuple:
    """Return the fields of `Sums` token by token, (B, C, ...)."""
    number, scored_BC, head = states_BCNRD.shape[2], labels_BC != IGNORED, head_of(model)
    pairs = [(i, j) for i in range(number) for j in range(i)]

    def loop(_: None, of_loop: tuple[jax.Array, ...]) -> tuple[None, tuple]:
        states_BCND, hidden_BCND = of_loop
        logits = [at_least_fp32(head(hidden_BCND[:, :, n])) for n in range(number)]
        log_p = [jax.nn.log_softmax(logits_BCV) for logits_BCV in logits]
        best = [jnp.argmax(logits_BCV, axis=-1) for logits_BCV in logits]
        state = [at_least_fp32(states_BCND[:, :, n]) for n in range(number)]
        distance = sum(_norm(state[i] - state[j]) / _norm(state[i]) for i, j in pairs)
        # Of both directions, since neither pass comes first.
        divergence = sum(
            jnp.sum((jnp.exp(log_p[i]) - jnp.exp(log_p[j])) * (log_p[i] - log_p[j]), axis=-1) / 2 for i, j in pairs
        )
        agreement = sum((best[i] == best[j]).astype(jnp.float32) for i, j in pairs)
        nll = jnp.stack([cross_entropy(one, labels_BC)[0] for one in logits], axis=-1)
        found = (distance, divergence, agreement, nll)
        return None, tuple(jnp.where(_over(scored_BC, x), x, 0) for x in found)

    of_loops = tuple(jnp.moveaxis(x, 3, 0) for x in (states_BCNRD, hidden_BCNRD))
    _, found = jax.lax.scan(loop, None, of_loops)
    return (*(jnp.moveaxis(x, 0, 2) for x in found), scored_BC.astype(jnp.float32))


def _norm(x_BCD: jax.Array) -> jax.Array:
    return jnp.linalg.norm(x_BCD, axis=-1)


def _over(scored_BC: jax.Array, x: Any) -> jax.Array:
    return scored_BC.reshape(*scored_BC.shape, *(1,) * (x.ndim - 2))
