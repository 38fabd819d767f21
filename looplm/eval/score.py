"""Scores every token at every depth in one forward pass."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from looplm.config.schema import Model
from looplm.data.window import IGNORED, PADDING
from looplm.eval.reading import LoopReading, read_all, read_one
from looplm.metrics.loop_stats import scored_sums
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM, Params, compute_dtype
from looplm.model.gates import exit_loop, log_exit_distribution
from looplm.model.lm import LoopLM
from looplm.model.remembered import Kept, remembered_of
from looplm.ops.attention import prefix_of, self_mask
from looplm.sharding.rules import activation_spec, placement


class Signals(NamedTuple):
    """What exit rules ask after every loop, on the host; see `LoopReading` and `LoopStatistics`."""

    best_RBS: Any
    entropy_RBS: Any
    confidence_RBS: Any
    divergence_RBS: Any
    change_RBS: Any


class TokenScores(NamedTuple):
    """Arrays on the host, whole."""

    nll_RBS: np.ndarray
    """-log p(label) after 1..R loops, nats, float32; 0 where the label is ignored."""
    correct_RBS: np.ndarray
    gate_logits_RBS: np.ndarray | None
    loops_R: dict[str, np.ndarray]
    """What every loop did to the state, by metric name (`metrics.loop_stats`), summed over the scored tokens."""
    tempered_RBSK: np.ndarray | None = None
    """Losses at other temperatures; see `LoopReading`."""
    signals: Signals | None = None
    loops_BS: np.ndarray | None = None
    """Loops of every token until the model's halting rule let it go; None: its rule lets none go."""
    kept: list[Kept] | None = None
    """What the model's memory keeps for the next windows of these rows, on the devices, pass by pass."""


class Rows(NamedTuple):
    """What a memory asks of the rows of a batch."""

    segments: jax.Array
    positions: jax.Array
    sequence: jax.Array


NAMES = ("tokens", "labels", "segments", "positions", "ids")
"""What a pass reads of a batch; `ids` where the data have them."""


def placed(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """Lay the rows of a batch out over the devices; every host gives all of them."""
    rows = placement(mesh, "batch")
    return {
        name: jax.make_array_from_process_local_data(rows, batch[name], batch[name].shape)
        for name in NAMES
        if batch.get(name) is not None
    }


def context_of(config: Model, batch: dict[str, jax.Array], key: jax.Array) -> Context:
    """Return what layers need of a pass over the rows of a batch. key: of first states and noise that are drawn."""
    return Context(
        batch["positions"],
        self_mask(config, batch["segments"], prefix_of(config, batch["labels"], batch["segments"])),
        key=key,
        sequence_B=jnp.arange(batch["tokens"].shape[0], out_sharding=activation_spec("batch")),
        counted_BS=batch["segments"] != PADDING,
        ids_B=batch.get("ids"),
    )


class Scorer:
    """Scores batches of the loader at depths 1..num_loops; one program per batch shape.

    Where a loop does something else if there are more of them after it (`model.residual_step = inverse_loops`), one
    pass is not what a run of fewer loops is: every depth has a pass of its own, and nothing is said of the gate. The
    same goes for a memory of the last loop, which is another one at every depth.
    """

    def __init__(
        self,
        lm: FunctionalLM,
        mesh: jax.sharding.Mesh,
        num_loops: int,
        *,
        tempered: bool = False,
        signals: bool = False,
    ):
        """tempered, signals: whether these are measured too; signals only in one pass."""
        self.lm, self.mesh, self.num_loops = lm, mesh, num_loops
        self.tempered, self.signals = tempered, signals
        memory = remembered_of(lm.config, num_loops)
        self.remembers = memory is not None
        """Whether a row is scored with what was before it, and should go on from batch to batch."""
        self.one_pass = lm.one_pass and (memory is None or memory.loops == num_loops)
        self._dtype = compute_dtype(lm.config)
        self._score = jax.jit(self._forward, static_argnames=("num_loops", "reads"))
        self._empty = jax.jit(self._nothing_kept, static_argnames="num_loops")

    def __call__(self, params: Params, batch: dict[str, np.ndarray], kept: Sequence[Kept] | None = None) -> TokenScores:
        """Host arrays in, host arrays out; every host gives and gets all rows.

        kept: what the scores of the windows before these hold, for a model with a memory; None: there are none.
        """
        with jax.set_mesh(self.mesh):
            rows, R = placed(batch, self.mesh), self.num_loops
            depths = [R] if self.one_pass else list(range(1, R + 1))
            if self.remembers and kept is None:
                kept = [self._empty(params, rows, num_loops=depth) for depth in depths]
            reads = "all" if self.one_pass else "last"
            before: Sequence[Kept | None] = kept or [None] * len(depths)
            ran = [self._run(params, rows, *own, reads) for own in zip(before, depths, strict=True)]
            runs, left = [run for run, _ in ran], [own for _, own in ran if own is not None]
            if self.one_pass:
                return TokenScores(*runs[0])._replace(kept=left or None)
            read = ((run[0], run[1], run[4]) for run in runs)
            nll, correct, tempered = jax.tree.map(lambda *leaves: np.concatenate(leaves), *read)
            return TokenScores(nll, correct, None, runs[-1][3], tempered, loops_BS=runs[-1][6], kept=left or None)

    def _run(
        self, params: Params, rows: dict[str, jax.Array], kept: Kept | None, num_loops: int, reads: str
    ) -> tuple[tuple[Any, ...], Kept | None]:
        result, kept = self._score(params, rows, kept, num_loops=num_loops, reads=reads)
        return jax.device_get(result), kept

    def _pass(self, params: Params, batch: dict[str, jax.Array], num_loops: int) -> Forward:
        model = self.lm.bind(self.lm.gather(params, self._dtype))
        context = context_of(self.lm.config, batch, jax.random.key(0))
        return Forward(
            model, batch["tokens"], context, Depth(num_loops), self._dtype, with_statistics=True, statistics_of_all=True
        )

    def _nothing_kept(self, params: Params, batch: dict[str, jax.Array], num_loops: int) -> Kept:
        memory = remembered_of(self.lm.config, num_loops)
        assert memory is not None, "see remembers"

        def state_after(params: Params, batch: dict[str, jax.Array]) -> Any:
            return self._pass(params, batch, num_loops)("last", lambda hidden_BSD: ()).state

        return memory.empty(_rows(batch), jax.eval_shape(state_after, params, batch))

    def _forward(
        self, params: Params, batch: dict[str, jax.Array], kept: Kept | None, *, num_loops: int, reads: Any
    ) -> tuple[tuple[Any, ...], Kept | None]:
        forward, labels_BS = self._pass(params, batch, num_loops), batch["labels"]
        model, memory = forward.model, remembered_of(self.lm.config, num_loops)
        if memory is not None and kept is not None:
            forward = memory.enter(kept, forward, jax.random.key(0))
        if self.signals:
            output = forward("all")
            reading = read_all(model, output.read, labels_BS, tempered=self.tempered)
        else:
            output = forward(reads, partial(read_one, model, labels_BS=labels_BS, tempered=self.tempered))
            reading = output.read
        assert output.statistics is not None, "with_statistics"
        loops_R = jax.vmap(scored_sums, in_axes=(0, None))(output.statistics, labels_BS != IGNORED)
        signals = self._signals(reading, output)
        scores = (reading.nll, reading.correct, output.gate_logits_RBS, loops_R, reading.tempered, signals)
        result = (*scores, _loops(model, output))
        if memory is not None and kept is not None:
            kept = memory.leave(kept, _rows(batch), output, jax.random.key(0))
        return jax.tree.map(lambda x: jax.sharding.reshard(x, PartitionSpec()), result), kept

    def _signals(self, reading: LoopReading, output: Any) -> Signals | None:
        if not self.signals:
            return None
        change_RBS = output.statistics.residual_rel_BS
        return Signals(reading.best, reading.entropy, reading.confidence, reading.divergence, change_RBS)


def _loops(model: LoopLM, output: Any) -> jax.Array | None:
    if model.halting.left(output.halt) is None:
        return None
    return model.of_tokens(model.halting.exits(output.halt)) + 1


def _rows(batch: dict[str, jax.Array]) -> Rows:
    number_B = jnp.arange(batch["tokens"].shape[0], out_sharding=activation_spec("batch"))
    return Rows(batch["segments"], batch["positions"], number_B)


@jax.jit
def gate_exits(gate_logits_RBS: jax.Array, threshold: float) -> tuple[jax.Array, jax.Array]:
    """Return how likely a token leaves after every loop, (R, B, S), and the loop (1..R) at which it does, (B, S); see
    `gates.exit_loop`."""
    exit_RBS = jnp.exp(log_exit_distribution(gate_logits_RBS))
    return exit_RBS, exit_loop(exit_RBS, threshold)
