"""What the tiny configs have in common: runs of minutes on a CPU, on the data that `looplm demo` makes."""

from typing import Any

TINY_RUN: dict[str, Any] = {
    "num_steps": 300,
    "checkpoint.every_steps": 100,
    "model.vocab_size": 2048,
    "data.train": "runs/demo/data/train",
    "data.validation": "runs/demo/data/validation",
    "data.sequence_length": 128,
    "data.batch_tokens": 2048,
}
"""Changes for `looplm.config.load.override`."""
