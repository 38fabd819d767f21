"""looped_moe_1b in the small, for a CPU and the data of `looplm demo`.

looplm train configs/looped_moe_1b_tiny.py --workdir runs/looped_moe_tiny
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
        "model.num_kv_heads": 2,
        "model.hidden_dim": 256,
        "model.prelude_layers": 1,
        "model.block_layers": 1,
        "model.coda_layers": 1,
        "model.feed_forward.num_experts": 16,
        "model.feed_forward.experts_per_token": 4,
        "model.feed_forward.expert_dim": 64,
        "model.feed_forward.balance.bias_rate": 0.01,
        "loop.remat": "none",
        "optim.learning_rate": 4e-3,
        "optim.schedule.warmup_steps": 30,
        "data.train": "runs/demo/data/train",
        "data.validation": "runs/demo/data/validation",
        "data.sequence_length": 128,
        "data.batch_tokens": 2048,
        "checkpoint.every_steps": 100,
    }
    return override(load_config(Path(__file__).with_name("looped_moe_1b.py")), changes)
