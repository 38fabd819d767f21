"""Parcae 770M (arXiv 2604.12946): as parcae_140m with stacks of 6 layers. AdamW's rate is 6e-3.

    looplm train configs/parcae_770m.py --workdir runs/parcae --set data.train=DATASET

776,655,680 parameters, 377,487,360 of them in value embeddings.
"""

import math
from pathlib import Path

from looplm.config.load import load_config, override
from looplm.config.schema import Run

DIM = 1280


def config() -> Run:
    changes = {
        "num_steps": 61_600_000_000 // (256 * 2048),
        "model.dim": DIM,
        "model.num_heads": 10,
        "model.hidden_dim": 4 * DIM,
        "model.prelude_layers": 6,
        "model.block_layers": 6,
        "model.coda_layers": 6,
        "model.state_init.std": math.sqrt(2 / (5 * DIM)),
        "optim.learning_rate": 8e-3 / (0.2 * math.sqrt(DIM)),
        "optim.optimizer.adamw_rate": 0.75 * 0.2 * math.sqrt(DIM),
    }
    return override(load_config(Path(__file__).with_name("parcae_140m.py")), changes)
