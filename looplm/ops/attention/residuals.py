"""What a kernel keeps for its backward pass is saved where a layer is recomputed: the kernel does not run once more."""

from typing import Any

import jax

NAME = "attention_residuals"
"""Of what kernels keep that can name it: their output and the normaliser of the softmax."""
UNNAMED = "dot_product_attention_fwd_wrapper"
"""JAX's primitive for cuDNN's forward pass, whose outputs are the same two, and have no name."""

_named = jax.checkpoint_policies.save_only_these_names(NAME)


def kept(primitive: Any, *operands: Any, **parameters: Any) -> Any:
    """Say whether what an operation gives is kept: a policy of `jax.checkpoint`."""
    return primitive.name == UNNAMED or _named(primitive, *operands, **parameters)
