"""Array functions with a reference implementation: norm, rotary positions, attention, cross-entropy."""
