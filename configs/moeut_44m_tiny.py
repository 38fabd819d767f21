"""moeut_44m in the small, for a CPU and the data of `looplm demo`.

looplm train configs/moeut_44m_tiny.py --workdir runs/moeut_tiny
"""

from pathlib import Path

from looplm.config.load import load_config, override
from looplm.config.schema import Run


def config() -> Run:
    changes = {
        "num_steps": 300,
        "model.vocab_size": 2048,
        "model.dim": 128,
        "model.head_dim": 32,
        "model.hidden_dim": 128,
        "model.init.effective_depth": 3 * 2,
        "model.feed_forward.num_experts": 20,
        "model.feed_forward.experts_per_token": 4,
        "model.feed_forward.expert_dim": 32,
        "loop.num_loops": 3,
        "loop.remat": "none",
        "optim.learning_rate": 2e-3,
        "optim.schedule.warmup_steps": 30,
        "data.train": "runs/demo/data/train",
        "data.validation": "runs/demo/data/validation",
        "data.sequence_length": 128,
        "data.batch_tokens": 2048,
        "checkpoint.every_steps": 100,
    }
    return override(load_config(Path(__file__).with_name("moeut_44m.py")), changes)
