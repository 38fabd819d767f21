"""Every setting of a run: what it may be, what it means, and whether settings fit together. Never imports jax."""
