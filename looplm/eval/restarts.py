"""Several tries of every example, and which of them to believe (arXiv 2605.21488)."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from looplm.config.schema import DampedCore, Model, NoCarry, NormalState, OwnCore, Run, TwoSpeedCore
from looplm.data.loader import eval_batches
from looplm.errors import UserError
from looplm.eval.reading import head_of, sliced
from looplm.eval.score import context_of, placed
from looplm.eval.subject import Subject
from looplm.metrics.restarts import Restarts
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import Params, compute_dtype
from looplm.ops.cross_entropy import IGNORED


class Tries(NamedTuple):
    """N tries of G examples."""

    solved_GN: np.ndarray
    moved_GN: np.ndarray
    """How far the state moved in the last loops, as a share of its norm: the mean over loops and tokens."""
    answer_GN: np.ndarray
    """Equal for tries that give the same answer to an example; what the numbers are means nothing."""


def check_restarts(model: Model, number: int, *, is_task: bool) -> None:
    """Raise UserError unless several tries may differ, and something can be solved."""
    if number < 2:
        raise UserError(f"--restarts={number} must be at least 2, among which is chosen")
    if not is_task:
        raise UserError("--restarts counts the examples of a task that are solved, and the data are texts; give --data")
    inits = [model.state_init, *([model.core.low_init] if isinstance(model.core, TwoSpeedCore) else [])]
    drawn = any(isinstance(init, NormalState) for init in inits)
    noisy = isinstance(model.core, OwnCore) or (isinstance(model.core, DampedCore) and model.core.noise > 0)
    if not drawn and not noisy:
        raise UserError(
            f"--restarts tries examples from several first states, and this model begins with model.state_init="
            f"{model.state_init.kind} and its core adds no noise: all tries would be the same; leave it out"
        )


def settling_loops(run: Run, depth: int) -> int:
    """Over how many of the last loops of a try it is measured how far the state still moves: those of three segments,
    or a quarter of them where there are none."""
    return max(1, depth // 4) if isinstance(run.carry, NoCarry) else min(depth, 3 * run.loop.num_loops)


def measure_restarts(subject: Subject, number: int, depth: int, settling_loops: int) -> Restarts:
    """Try every example `number` times, over `depth` loops."""
    attempt = jax.jit(lambda params, batch, key: _attempt(subject, params, batch, key, depth, settling_loops))
    found, num_tokens = [], 0
    for batch in eval_batches(subject.held_out.windows, batch_size=subject.batch_size, max_batches=subject.max_batches):
        with jax.set_mesh(subject.mesh):
            rows = placed(batch, subject.mesh)
            tries = [
                jax.device_get(attempt(subject.params, rows, key))
                for key in jax.random.split(jax.random.key(0), number)
            ]
        num_tokens += int(np.sum(batch["labels"] != IGNORED))
        found.append(of_examples(batch, *(np.stack(leaf) for leaf in zip(*tries, strict=True))))
    tries_of_all = Tries(*(np.concatenate(leaves) for leaves in zip(*found, strict=True)))
    counts = sorted({*(2**k for k in range(number.bit_length())), number})
    return Restarts(
        step=subject.step,
        ema=subject.ema,
        data=subject.held_out.name,
        num_tokens=num_tokens,
        num_documents=len(tries_of_all.solved_GN),
        depth=depth,
        settling_loops=settling_loops,
        **chosen(tries_of_all, counts),
    )


def _attempt(
    subject: Subject, params: Params, batch: dict[str, jax.Array], key: jax.Array, depth: int, settling_loops: int
) -> tuple[jax.Array, jax.Array]:
    """Return (the likeliest token, how far the state moved in the last loops), of every token (B, S)."""
    lm = subject.lm
    dtype, labels_BS = compute_dtype(lm.config), batch["labels"]
    model = lm.bind(lm.gather(params, dtype))
    head = head_of(model)

    def best(hidden_BSD: jax.Array) -> jax.Array:
        return sliced(lambda hidden_BCD, _: jnp.argmax(head(hidden_BCD), axis=-1), model, hidden_BSD, labels_BS)

    output = Forward(
        model, batch["tokens"], context_of(lm.config, batch, key), Depth(depth), dtype,
        with_statistics=True, statistics_of_all=True,
    )("last", best)  # fmt: skip
    assert output.statistics is not None, "with_statistics"
    moved_BS = jnp.mean(output.statistics.residual_rel_BS[-settling_loops:], axis=0)
    return jax.tree.map(lambda x: jax.sharding.reshard(x, PartitionSpec()), (output.read[0], moved_BS))


def of_examples(batch: dict[str, np.ndarray], best_NBS: np.ndarray, moved_NBS: np.ndarray) -> Tries:
    """Put tokens together by the example that they are of; examples without a label are left out."""
    scored_BS = batch["labels"] != IGNORED
    numbers, index_M = np.unique(batch["documents"][scored_BS], return_inverse=True)
    best_NM, moved_NM = best_NBS[:, scored_BS], moved_NBS[:, scored_BS]
    wrong_NM = best_NM != batch["labels"][scored_BS]
    # An answer as one number: the sum of a random number for every token and place.
    mixed_NM = np.random.default_rng(0).integers(2**62, size=index_M.size) * (2 * best_NM.astype(np.int64) + 1)

    def summed(values_NM: np.ndarray) -> np.ndarray:
        sums_GN = np.zeros((numbers.size, len(values_NM)), values_NM.dtype)
        np.add.at(sums_GN, index_M, values_NM.T)
        return sums_GN

    return Tries(
        summed(wrong_NM.astype(np.int64)) == 0, summed(moved_NM.astype(np.float64)) / np.bincount(index_M)[:, None],
        summed(mixed_NM),
    )  # fmt: skip


def chosen(tries: Tries, counts: Sequence[int]) -> dict[str, Any]:
    """Count what is solved by each way to choose among the first so many tries."""
    solved_GN, moved_GN, answer_GN = tries
    examples = np.arange(len(solved_GN))
    settled, vote, any_of_them = [], [], []
    for count in counts:
        settled.append(float(solved_GN[examples, np.argmin(moved_GN[:, :count], axis=1)].mean()))
        vote.append(
            float(np.mean([solved_GN[g, _elected(answer_GN[g, :count], moved_GN[g, :count])] for g in examples]))
        )
        any_of_them.append(float(solved_GN[:, :count].any(axis=1).mean()))
    return dict(tries=list(counts), single=float(solved_GN.mean()), settled=settled, vote=vote, any_of_them=any_of_them)


def _elected(answer_N: np.ndarray, moved_N: np.ndarray) -> int:
    """Return the try whose answer most give; among equals the one that moved least."""
    votes = Counter(answer_N.tolist())
    return min(range(len(answer_N)), key=lambda n: (-votes[answer_N[n]], moved_N[n]))
