"""Which tokens are the prefix of their document: what comes before its answer, by what is scored."""

import jax
import jax.numpy as jnp

from looplm.config.schema import Model
from looplm.ops.cross_entropy import IGNORED


def prefix_of(config: Model, labels_BS: jax.Array, segments_BS: jax.Array) -> jax.Array | None:
    """Return which tokens are the prefix of their document, (B, S) bool; None for a model that looks at none.

    A prefix ends with the token whose label is the first that is scored: it predicts the first token of the answer, and
    may see all of the prompt (arXiv 2605.20613). Where all labels are scored, a prefix is one token, and the mask is
    the causal one.

    Args:
        labels_BS: what every token should predict, -100 where it is not scored, int32.
        segments_BS: the document of every token; its tokens stand together, in their order.
    """
    if config.attention_mask != "prefix":
        return None
    scored_BS = (labels_BS != IGNORED).astype(jnp.int32)
    before_BS = jnp.cumsum(scored_BS, axis=1) - scored_BS
    begins_BS = segments_BS != jnp.roll(segments_BS, 1, axis=1)
    # The count never falls, so the largest at a beginning so far is that of the document's own.
    at_begin_BS = jax.lax.cummax(jnp.where(begins_BS, before_BS, 0), axis=1)
    return before_BS == at_begin_BS
