"""parcae_1_3b in the small, for a CPU and the data of `looplm demo`: stacks of 4 layers, 4 loops on average.

looplm train configs/parcae_1_3b_tiny.py --workdir runs/parcae_1_3b_tiny
"""

import math
from pathlib import Path

from looplm.config.load import load_config, override
from looplm.config.schema import Run

DIM = 64


def config() -> Run:
    changes = {
        "num_steps": 300,
        "model.vocab_size": 2048,
        "model.dim": DIM,
        "model.num_heads": 2,
        "model.hidden_dim": 4 * DIM,
        "model.prelude_layers": 4,
        "model.block_layers": 4,
        "model.coda_layers": 4,
        "model.state_init.std": math.sqrt(2 / (5 * DIM)),
        "loop.num_loops": 4,
        "loop.backprop_loops": 2,
        "optim.learning_rate": 8e-3 / (0.2 * math.sqrt(DIM)),
        "optim.optimizer.adamw_rate": 0.2 * math.sqrt(DIM),
        "data.train": "runs/demo/data/train",
        "data.validation": "runs/demo/data/validation",
        "data.sequence_length": 128,
        "data.batch_tokens": 2048,
        "checkpoint.every_steps": 100,
    }
    return override(load_config(Path(__file__).with_name("parcae_1_3b.py")), changes)
