"""Measured numbers: how they are counted, and where they go."""
