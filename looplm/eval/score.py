"""Scores every token at every depth in one forward pass."""

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
    pass is not what a run of fewer loops is: every depth has a pass of its own, and nothing is said of the gate.
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
        self.one_pass = lm.one_pass
        self._dtype = compute_dtype(lm.config)
        self._score = jax.jit(self._forward, static_argnames=("num_loops", "reads"))

    def __call__(self, params: Params, batch: dict[str, np.ndarray]) -> TokenScores:
        """Host arrays in, host arrays out; every host gives and gets all rows."""
        with jax.set_mesh(self.mesh):
            score = partial(self._score, params, placed(batch, self.mesh))
            if self.one_pass:
                return TokenScores(*jax.device_get(score()))
            runs = [jax.device_get(score(num_loops=depth, reads="last")) for depth in range(1, self.num_loops + 1)]
            read = ((run[0], run[1], run[4]) for run in runs)
            nll, correct, tempered = jax.tree.map(lambda *leaves: np.concatenate(leaves), *read)
            return TokenScores(nll, correct, None, runs[-1][3], tempered)

    def _forward(
        self, params: Params, batch: dict[str, jax.Array], num_loops: int | None = None, reads: Any = "all"
    ) -> tuple[Any, ...]:
        num_loops = num_loops or self.num_loops
        model = self.lm.bind(self.lm.gather(params, self._dtype))
        labels_BS = batch["labels"]
        context = context_of(self.lm.config, batch, jax.random.key(0))
        forward = Forward(
            model, batch["tokens"], context, Depth(num_loops), self._dtype, with_statistics=True, statistics_of_all=True
        )
        if self.signals:
            output = forward("all")
            reading = read_all(model, output.read, labels_BS, tempered=self.tempered)
        else:
            output = forward(reads, partial(read_one, model, labels_BS=labels_BS, tempered=self.tempered))
            reading = output.read
        assert output.statistics is not None, "with_statistics"
        loops_R = jax.vmap(scored_sums, in_axes=(0, None))(output.statistics, labels_BS != IGNORED)
        signals = self._signals(reading, output)
        result = (reading.nll, reading.correct, output.gate_logits_RBS, loops_R, reading.tempered, signals)
        return jax.tree.map(lambda x: jax.sharding.reshard(x, PartitionSpec()), result)

    def _signals(self, reading: LoopReading, output: Any) -> Signals | None:
        if not self.signals:
            return None
        change_RBS = output.statistics.residual_rel_BS
        return Signals(reading.best, reading.entropy, reading.confidence, reading.divergence, change_RBS)


@jax.jit
def gate_exits(gate_logits_RBS: jax.Array, threshold: float) -> tuple[jax.Array, jax.Array]:
    """Return how likely a token leaves after every loop, (R, B, S), and the loop (1..R) at which it does, (B, S); see
    `gates.exit_loop`."""
    exit_RBS = jnp.exp(log_exit_distribution(gate_logits_RBS))
    return exit_RBS, exit_loop(exit_RBS, threshold)
