"""Scores every token at every depth in one forward pass."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from looplm.data.window import IGNORED, PADDING
from looplm.metrics.loop_stats import scored_sums
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM, Params, compute_dtype
from looplm.model.gates import exit_loop, log_exit_distribution
from looplm.objective.base import scoring
from looplm.ops.attention import self_mask
from looplm.sharding.rules import activation_spec, placement


class TokenScores(NamedTuple):
    """Arrays on the host, whole."""

    nll_RBS: np.ndarray
    """-log p(label) after 1..R loops, nats, float32; 0 where the label is ignored."""
    correct_RBS: np.ndarray
    gate_logits_RBS: np.ndarray | None
    loops_R: dict[str, np.ndarray]
    """What every loop did to the state, by metric name (`metrics.loop_stats`), summed over the scored tokens."""


class Scorer:
    """Scores batches of the loader at depths 1..num_loops; one program per batch shape."""

    def __init__(self, lm: FunctionalLM, mesh: jax.sharding.Mesh, num_loops: int):
        self.lm, self.mesh, self.num_loops = lm, mesh, num_loops
        self._rows = placement(mesh, "batch")
        self._dtype = compute_dtype(lm.config)
        self._score = jax.jit(self._forward)

    def __call__(self, params: Params, batch: dict[str, np.ndarray]) -> TokenScores:
        """Host arrays in, host arrays out; every host gives and gets all rows."""
        with jax.set_mesh(self.mesh):
            placed = {
                name: jax.make_array_from_process_local_data(self._rows, batch[name], batch[name].shape)
                for name in ("tokens", "labels", "segments", "positions")
            }
            return TokenScores(*jax.device_get(self._score(params, placed)))

    def _forward(self, params: Params, batch: dict[str, jax.Array]) -> tuple[Any, ...]:
        model = self.lm.bind(self.lm.gather(params, self._dtype))
        context = Context(
            batch["positions"],
            self_mask(self.lm.config, batch["segments"]),
            key=jax.random.key(0),
            sequence_B=jnp.arange(batch["tokens"].shape[0], out_sharding=activation_spec("batch")),
            counted_BS=batch["segments"] != PADDING,
        )
        depth = Depth(self.num_loops)
        forward = Forward(
            model, batch["tokens"], context, depth, self._dtype, with_statistics=True, statistics_of_all=True
        )
        output = forward("all", scoring(model, batch["labels"]))
        assert output.statistics is not None, "with_statistics"
        loops_R = jax.vmap(scored_sums, in_axes=(0, None))(output.statistics, batch["labels"] != IGNORED)
        result = (output.read.nll_BS, output.read.correct_BS, output.gate_logits_RBS, loops_R)
        return jax.tree.map(lambda x: jax.sharding.reshard(x, PartitionSpec()), result)


def exit_loops(gate_logits_RBS: np.ndarray, threshold: float) -> np.ndarray:
    """The loop (1..R) at which every token leaves, (B, S); see `gates.exit_loop`."""
    return np.asarray(exit_loop(jnp.exp(log_exit_distribution(jnp.asarray(gate_logits_RBS))), threshold))
