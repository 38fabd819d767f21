"""From the config to an optax optimizer."""
