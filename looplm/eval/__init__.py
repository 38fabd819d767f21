"""Measuring a model: held-out loss at every depth, and what the exit gate makes of it."""
