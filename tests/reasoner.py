"""Settings that make the tiny run one that keeps rows over steps: two states, a gate for a sequence, and a puzzle."""

from typing import Any

PUZZLE = {"kind": "sudoku", "size": 4, "in_place": True}
REASONER: dict[str, Any] = {
    "model.vocab_size": 5,
    "model.core": {"kind": "two_speed", "inner_loops": 2},
    "model.state_init": "vector",
    "model.injection": "add",
    "model.attention_mask": "full",
    "model.init": {"kind": "normal", "std": 0.15},
    "model.norm": "unit",
    "model.norm_placement": "post",
    "model.final_norm": False,
    "model.exit_gate": None,
    "model.sequence_gate": {"outputs": 2, "initial_bias": 0.0},
    "loop.num_loops": 2,
    "loop.backprop_loops": 1,
    "objective": "supervised",
    "optim.learning_rate": 1e-3,
    "optim.optimizer.eps": 1e-4,  # else Adam makes a step of rounding errors where the gradient is nearly zero
    "carry": {"kind": "segments", "max_segments": 4, "exploration": 0.5},
    "data.train": PUZZLE,
    "data.validation": PUZZLE | {"seed": 1, "num_examples": 16},
    "data.sequence_length": 16,
    "data.batch_tokens": 128,
}
