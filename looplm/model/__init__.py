"""The looped language model. Start with `lm.py`, then `loop.py`.

Names: B batch, S sequence, D model, N query heads, K key/value heads, H head size, F feed-forward, V vocabulary,
L layers in the shared block, R loops, T key/value slots. Suffixes give the global (unsharded) dims: `x_BSD`.
"""
