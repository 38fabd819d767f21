"""Saving and restoring training state with Orbax."""
