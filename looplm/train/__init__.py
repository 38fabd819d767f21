"""Training: state, depth of a step, the step, the trainer. Read `step.py`, then `trainer.py`."""
