"""What a reasoner answers segment after segment, and when its gate says that it may halt."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from looplm.config.schema import DeepSupervision, Run, SupervisedRows
from looplm.data.loader import eval_batches
from looplm.eval.attempts import Asked, measure_attempts
from looplm.eval.reading import head_of, sliced
from looplm.eval.score import context_of, placed
from looplm.eval.subject import Subject
from looplm.metrics.answers import Answers, Grid
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import Params, compute_dtype
from looplm.ops.cross_entropy import IGNORED

FIRST, HARDEST = 2, 2
"""Puzzles that are kept for people: the first of the data, and of the first batch those that are wrong for longest."""
SHOWN = 6
"""Segments at most after which a puzzle is shown."""


class Segment(NamedTuple):
    """Of a batch, on all hosts."""

    best_BS: Any
    """The likeliest token of every cell, int32."""
    surplus_B: Any
    """By how much the gate is for halting: above 0 a row may halt."""
    gate_B: Any
    """The logit of its first output."""


class Seen(NamedTuple):
    """Of G examples over K segments."""

    exact_GK: np.ndarray
    halts_GK: np.ndarray


def segments_of(run: Run, depths: tuple[int, ...], *, asked: bool) -> int:
    """Return how many segments are measured: those of the deepest depth, or those of training where no depths were
    asked for; 0 of a model that is not trained to halt by rows."""
    if not isinstance(run.objective, SupervisedRows):
        return 0
    trained = run.carry.max_segments if isinstance(run.carry, DeepSupervision) and not asked else 1
    return max(trained, max(depths) // run.loop.num_loops)


def measure_answers(subject: Subject, num_segments: int) -> Answers:
    """Run every example for so many segments, each from the state that the one before left."""
    first = jax.jit(lambda params, batch: _segment(subject, params, batch, None, jax.random.key(0)))
    going_on = jax.jit(lambda params, batch, state, key: _segment(subject, params, batch, state, key))
    seen: list[Seen] = []
    asked: list[Asked] = []
    grids: list[Grid] = []
    num_tokens = 0
    for batch in eval_batches(subject.held_out.windows, batch_size=subject.batch_size, max_batches=subject.max_batches):
        with jax.set_mesh(subject.mesh):
            rows = placed(batch, subject.mesh)
            found, state = first(subject.params, rows)
            segments = [jax.device_get(found)]
            for number in range(1, num_segments):
                found, state = going_on(subject.params, rows, state, jax.random.key(number))
                segments.append(jax.device_get(found))
        best_KBS = np.stack([one.best_BS for one in segments])
        halts_BK = np.stack([one.surplus_B > 0 for one in segments], axis=1)
        scored_BS = batch["labels"] != IGNORED
        of_labels_B, is_there_B = scored_BS.any(axis=1), (batch["documents"] >= 0).any(axis=1)
        exact_BK = ((best_KBS == batch["labels"]) | ~scored_BS).all(axis=2).T
        seen.append(Seen(exact_BK[of_labels_B], halts_BK[of_labels_B]))
        grids = grids or example_grids(batch, best_KBS, exact_BK, of_labels_B)
        num_tokens += int(scored_BS.sum())
        if "ids" in batch:
            last = (batch["ids"], batch["tokens"], best_KBS[-1], segments[-1].gate_B)
            asked.append(Asked(*(values[is_there_B] for values in last)))
    of_all = Seen(*(np.concatenate(leaves) for leaves in zip(*seen, strict=True)))
    return Answers(
        step=subject.step,
        ema=subject.ema,
        data=subject.held_out.name,
        num_tokens=num_tokens,
        num_documents=len(of_all.exact_GK),
        segment_loops=subject.run.loop.num_loops,
        **halting(of_all),
        grids=grids,
        attempts=measure_attempts(subject.held_out.windows, asked),
    )


def _segment(
    subject: Subject, params: Params, batch: dict[str, jax.Array], state: Any, key: jax.Array
) -> tuple[Segment, Any]:
    """Return what is answered after a segment, and its state, which stays on the devices."""
    lm, loops = subject.lm, subject.run.loop.num_loops
    dtype, labels_BS = compute_dtype(lm.config), batch["labels"]
    model = lm.bind(lm.gather(params, dtype))
    head = head_of(model)

    def best(hidden_BSD: jax.Array) -> jax.Array:
        return sliced(lambda hidden_BCD, _: jnp.argmax(head(hidden_BCD), axis=-1), model, hidden_BSD, labels_BS)

    forward = Forward(model, batch["tokens"], context_of(lm.config, batch, key), Depth(loops), dtype, start=state)
    output = forward("last", best)
    gate, q_BQ = lm.config.sequence_gate, output.sequence_gate_BQ
    assert gate is not None, "config.check requires a sequence gate"
    assert q_BQ is not None, "config.check requires a sequence gate"
    surplus_B = q_BQ[:, 0] - q_BQ[:, 1] if gate.weighs_going_on else q_BQ[:, 0]
    read = Segment(output.read[0], surplus_B, q_BQ[:, 0])
    return jax.tree.map(lambda x: jax.sharding.reshard(x, PartitionSpec()), read), output.state


def halting(seen: Seen) -> dict[str, list[Any]]:
    """Count by segment who has halted by then, the answers they halted with, and what is solved."""
    has_halted_GK = np.logical_or.accumulate(seen.halts_GK, axis=1)
    first_GK = has_halted_GK & ~np.pad(has_halted_GK, ((0, 0), (1, 0)))[:, :-1]
    right_K = np.cumsum((first_GK & seen.exact_GK).sum(axis=0))
    return dict(
        halted=has_halted_GK.mean(axis=0).tolist(),
        right=[
            float(right / count) if count else None
            for right, count in zip(right_K, has_halted_GK.sum(axis=0), strict=True)
        ],
        solved=seen.exact_GK.mean(axis=0).tolist(),
    )


def example_grids(
    batch: dict[str, np.ndarray], best_KBS: np.ndarray, exact_BK: np.ndarray, of_labels_B: np.ndarray
) -> list[Grid]:
    """Keep the first puzzles of a batch and those that are wrong after most segments; none twice."""
    rows = np.flatnonzero(of_labels_B)
    hardest = sorted(rows[FIRST:], key=lambda row: (exact_BK[row].sum(), row))[:HARDEST]
    num_segments, cells = len(best_KBS), batch["tokens"].shape[1]
    width = round(cells**0.5)
    shown = shown_segments(num_segments)
    return [
        Grid(
            columns=width if width**2 == cells else cells,
            given=batch["tokens"][row].tolist(),
            wanted=batch["labels"][row].tolist(),
            segments=shown,
            guesses=[best_KBS[number - 1, row].tolist() for number in shown],
        )
        for row in (*rows[:FIRST], *hardest)
    ]


def shown_segments(count: int) -> list[int]:
    """Return 1, 2, 4, ..., as many as are shown, and the last."""
    doubled = [2**power for power in range(count.bit_length()) if 2**power < count]
    return [*doubled[: SHOWN - 1], count]
