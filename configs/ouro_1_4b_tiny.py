"""ouro_1_4b in the small, for a CPU and the data of `looplm demo`.

looplm train configs/ouro_1_4b_tiny.py --workdir runs/ouro_tiny
"""

from pathlib import Path

from looplm.config.load import load_config, override
from looplm.config.schema import Run


def config() -> Run:
    changes = {
        "num_steps": 300,
        "model.vocab_size": 2048,
        "model.dim": 128,
        "model.num_heads": 4,
        "model.hidden_dim": 352,
        "model.block_layers": 2,
        "optim.learning_rate": 2e-3,
        "optim.schedule.warmup_steps": 30,
        "data.train": "runs/demo/data/train",
        "data.validation": "runs/demo/data/validation",
        "data.sequence_length": 128,
        "data.batch_tokens": 2048,
        "checkpoint.every_steps": 100,
        "recipes": (),
    }
    return override(load_config(Path(__file__).with_name("ouro_1_4b.py")), changes)
