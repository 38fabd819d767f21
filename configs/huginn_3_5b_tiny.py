"""huginn_3_5b in the small, for a CPU and the data of `looplm demo`: 8 loops on average, gradient through the last 4.

looplm train configs/huginn_3_5b_tiny.py --workdir runs/huginn_tiny
"""

import math
from pathlib import Path

from looplm.config.load import load_config, override
from looplm.config.schema import Run


def config() -> Run:
    changes = {
        "num_steps": 300,
        "model.vocab_size": 2048,
        "model.dim": 96,
        "model.num_heads": 4,
        "model.hidden_dim": 256,
        "model.prelude_layers": 1,
        "model.block_layers": 1,
        "model.coda_layers": 1,
        "model.embedding_scale": math.sqrt(96),
        "model.init.effective_depth": 10,
        "loop.num_loops": 8,
        "loop.backprop_loops": 4,
        "optim.learning_rate": 2e-3,
        "optim.schedule.warmup_steps": 30,
        "data.train": "runs/demo/data/train",
        "data.validation": "runs/demo/data/validation",
        "data.sequence_length": 128,
        "data.batch_tokens": 2048,
        "checkpoint.every_steps": 100,
        "recipes": (),
    }
    return override(load_config(Path(__file__).with_name("huginn_3_5b.py")), changes)
