"""Parcae 1.3B (arXiv 2604.12946): as parcae_140m with stacks of 8 layers. AdamW's rate is 6e-3.

    looplm train configs/parcae_1_3b.py --workdir runs/parcae --set data.train=DATASET

1,338,591,744 parameters, 603,979,776 of them in value embeddings.
"""

import math
from pathlib import Path

from looplm.config.load import load_config, override
from looplm.config.schema import Run

DIM = 1536


def config() -> Run:
    changes = {
        "num_steps": 104_000_000_000 // (256 * 2048),
        "model.dim": DIM,
        "model.num_heads": 12,
        "model.hidden_dim": 4 * DIM,
        "model.prelude_layers": 8,
        "model.block_layers": 8,
        "model.coda_layers": 8,
        "model.state_init.std": math.sqrt(2 / (5 * DIM)),
        "optim.learning_rate": 8e-3 / (0.2 * math.sqrt(DIM)),
        "optim.optimizer.adamw_rate": 0.75 * 0.2 * math.sqrt(DIM),
    }
    return override(load_config(Path(__file__).with_name("parcae_140m.py")), changes)
