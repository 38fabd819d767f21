"""Writing text with a looped model."""
