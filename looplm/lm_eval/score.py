"""How likely targets of every row are, after several numbers of loops in one pass."""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from looplm.lm_eval.batches import Batch
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM, Params, compute_dtype
from looplm.objective.base import scoring
from looplm.ops.attention import self_mask
from looplm.ops.cross_entropy import IGNORED, TokenScores
from looplm.sharding.rules import activation_spec, placement


class Likelihoods(NamedTuple):
    """Arrays on the host; T counts the depths, ascending."""

    nll_TBM: np.ndarray
    """-log p(label), nats, float32; 0 where there is no target."""
    correct_TBM: np.ndarray
    """Whether the label is the likeliest id where it stands, bool."""


class DepthScorer:
    """Scores batches at all depths; one program a shape, or one for each depth where one pass cannot read them all (see
    `FunctionalLM.one_pass`)."""

    def __init__(self, lm: FunctionalLM, params: Params, mesh: jax.sharding.Mesh, depths: Iterable[int]) -> None:
        """params: laid out over the mesh; see `FunctionalLM.abstract`. depths: T numbers of loops, in any order."""
        self.depths = tuple(sorted(set(depths)))
        self._lm, self._params, self._mesh, self._dtype = lm, params, mesh, compute_dtype(lm.config)
        self._passes = [self.depths] if lm.one_pass else [(depth,) for depth in self.depths]
        self._score = jax.jit(self._forward, static_argnames="depths")
        self.num_programs = 0
        """How many were compiled."""

    def __call__(self, batch: Batch) -> Likelihoods:
        """Score a batch whose rows the devices of the mesh divide among them."""
        positions_BS = np.broadcast_to(np.arange(batch.tokens_BS.shape[1], dtype=np.int32), batch.tokens_BS.shape)
        is_token_BS = positions_BS < batch.length_B[:, None]
        arrays = (batch.tokens_BS, positions_BS, is_token_BS, batch.place_BM, batch.label_BM)
        with jax.set_mesh(self._mesh):
            placed = [jax.device_put(array, placement(self._mesh, "batch")) for array in arrays]
            passes = [self._score(self._params, *placed, depths=depths) for depths in self._passes]
            return Likelihoods(*map(np.concatenate, zip(*jax.device_get(passes), strict=True)))

    def at(self, depths: Iterable[int]) -> "DepthScorer":
        """Return one for other depths."""
        return DepthScorer(self._lm, self._params, self._mesh, depths)

    def _forward(
        self,
        params: Params,
        tokens_BS: jax.Array,
        positions_BS: jax.Array,
        is_token_BS: jax.Array,
        place_BM: jax.Array,
        label_BM: jax.Array,
        *,
        depths: tuple[int, ...],
    ) -> tuple[jax.Array, jax.Array]:
        self.num_programs += 1  # once a shape and pass, while it is traced
        model = self._lm.bind(self._lm.gather(params, self._dtype))
        score = scoring(model, label_BM)
        context = Context(
            positions_BS,
            self_mask(self._lm.config, is_token_BS.astype(jnp.int32), _context(positions_BS, place_BM, label_BM)),
            key=jax.random.key(0),
            # A drawn first state is that of a sequence on its own: an answer does not depend on what it is asked with.
            sequence_B=jnp.zeros_like(positions_BS[:, 0]),
            counted_BS=is_token_BS,
        )

        def score_targets(hidden_BSD: jax.Array) -> TokenScores:
            rows_B1 = jnp.arange(len(place_BM), out_sharding=activation_spec("batch"))[:, None]
            return score(hidden_BSD.at[rows_B1, place_BM].get(out_sharding=activation_spec("batch")))

        forward = Forward(model, tokens_BS, context, Depth(max(depths)), self._dtype)
        scores = forward(jnp.array(depths) - 1 if self._lm.one_pass else "last", score_targets).read
        result = (scores.nll_BS, scores.correct_BS)
        return jax.tree.map(lambda x: jax.sharding.reshard(x, PartitionSpec()), result)


def _context(positions_BS: jax.Array, place_BM: jax.Array, label_BM: jax.Array) -> jax.Array:
    """Return which tokens are up to the first that has a target, (B, S) bool: a prefix, for models that look at one."""
    first_B = jnp.min(place_BM, axis=1, where=label_BM != IGNORED, initial=positions_BS.shape[1])
    return positions_BS <= first_B[:, None]
