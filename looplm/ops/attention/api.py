"""The attention that the model calls. One backend so far: XLA, through `jax.nn`."""

import jax


def attention(q_BSNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, mask_BST: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(H)) v with N / K query heads per key/value head; softmax in float32.

    Args:
        mask_BST: True where query s sees key t. A query that sees nothing gives finite numbers without meaning.

    Returns:
        (B, S, N, H).
    """
    return jax.nn.dot_product_attention(q_BSNH, k_BTKH, v_BTKH, mask=mask_BST[:, None])
