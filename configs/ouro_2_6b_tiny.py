"""ouro_2_6b in the small, for a CPU and the data of `looplm demo`.

looplm train configs/ouro_2_6b_tiny.py --workdir runs/ouro_tiny_4
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
        "model.block_layers": 4,
        "optim.learning_rate": 2e-3,
        "optim.schedule.warmup_steps": 30,
        "data.train": "runs/demo/data/train",
        "data.validation": "runs/demo/data/validation",
        "data.sequence_length": 128,
        "data.batch_tokens": 2048,
        "checkpoint.every_steps": 100,
    }
    return override(load_config(Path(__file__).with_name("ouro_2_6b.py")), changes)
