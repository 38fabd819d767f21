"""What adapters leave out in training: entries of what they read, and whole loops (loop dropout, arXiv 2609.34218).

What is drawn depends on the step, the sequence, the position in the document, the loop, the layer and the projection,
and not on how a batch is split or laid out. It is made of counters by a mixing function, so that it is computed where
the activation lies, and again in the backward pass.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from looplm.config import schema
from looplm.model.context import Context
from looplm.ops.mixing import coins, mix


class Drop:
    """Of one projection, in one visit."""

    def __init__(self, config: schema.LoRA, context: Context, word: jax.Array, words_2: jax.Array):
        """Args:
        word: the projection's, in its layer and in the step.
        words_2: of all projections: they go without in the same loops.
        """
        self.config, self.here, self.word, self.words_2 = config, context, word, words_2

    def entries(self, x: jax.Array, letters: str) -> jax.Array:
        """Set entries of an activation to 0 and scale the others up. letters: of its dims, B and S among them."""
        rate = self.config.dropout
        if not rate:
            return x
        words_BS = mix(self._words_B(self.word)[:, None] + self.here.positions_BS.astype(jnp.uint32))
        kept = coins(words_BS, x, rate, dims=(letters.index("B"), letters.index("S")))
        return jnp.where(kept, x / (1 - rate), 0)

    def loops(self, low_BSr: jax.Array) -> jax.Array:
        """Set some sequences to 0 in this loop, and scale the others up."""
        rate = self.config.loop_dropout
        if not rate:
            return low_BSr
        kept_B = self._words_B(self.words_2[1]) >= jnp.uint32(round(rate * 2**32))
        scale_B = jnp.where(kept_B, 1 / (1 - rate), 0).astype(low_BSr.dtype)
        return low_BSr * jnp.expand_dims(scale_B, range(1, low_BSr.ndim))

    def _words_B(self, word: jax.Array) -> jax.Array:
        """Make a word for every sequence in this loop, uint32."""
        sequence_B, number = self.here.sequence_B, self.here.loop.number_B
        assert sequence_B is not None, "a step that drops has it"
        number_B = number[0] if number.size == 1 else number
        return mix(mix(sequence_B.astype(jnp.uint32) ^ word) + number_B.astype(jnp.uint32) + self.words_2[0])


def draw(module: nnx.Module, context: Context, layer: jax.Array | None = None) -> None:
    """Tell the adapters in a module that was just merged what to leave out: those of a layer, or, without one, those
    that belong to no layer. Nothing, unless the context has words."""
    if (words_2 := context.drop_words_2) is None:
        return
    adapters = [lora for _, lora in nnx.iter_graph(module) if hasattr(lora, "drop") and hasattr(lora, "is_stacked")]
    for index, lora in enumerate(adapters):
        if lora.is_stacked == (layer is not None):
            word = mix(words_2[0] + jnp.uint32(1 + index))
            if layer is not None:
                word = mix(word ^ words_2[1] + layer.astype(jnp.uint32))
            lora.drop = Drop(lora.config, context, word, words_2)
