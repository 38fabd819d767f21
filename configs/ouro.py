"""Ouro (arXiv 2510.25741): 24 or 48 shared layers, 4 loops, exit gate; stage 1b of its schedule.

    looplm train configs/ouro.py:1.4b --workdir runs/ouro --set data.train=DATASET
    looplm train configs/ouro.py:tiny --workdir runs/ouro_tiny      (on the data of `looplm demo`)

1.4b has 1,434,652,673 parameters, 2.6b has 2,667,974,657; tiny is for a CPU. The later stages change rope.theta,
sequence_length and the learning rate (spec: table 1).
"""

from looplm.config.load import override
from looplm.config.schema import (
    AdamW,
    Checkpoint,
    Data,
    ExitGate,
    ExpectedCrossEntropy,
    Loop,
    Model,
    Optim,
    Recipe,
    Rope,
    Run,
    Schedule,
)
from looplm.config.tiny import TINY_RUN

TOKENS = 3_000_000_000_000
BATCH_TOKENS = 8 * 2**20
RECIPES = (  # compiled for these slices: docs/scaling.md
    Recipe(
        devices="TPU v5 lite",
        num_devices=64,
        settings={
            "mesh.data": 4,
            "mesh.fsdp": 8,
            "mesh.tensor": 2,
            "data.accumulation_steps": 64,
            "loop.remat": "layer",
        },
    ),
    Recipe(
        devices="TPU v5|TPU v5p|TPU v6 lite",
        num_devices=64,
        settings={"mesh.data": 4, "mesh.fsdp": 16, "data.accumulation_steps": 32, "loop.remat": "layer"},
    ),
    Recipe(
        devices="TPU7x",
        num_devices=128,
        settings={"mesh.data": 8, "mesh.fsdp": 16, "data.accumulation_steps": 16, "loop.remat": "layer"},
    ),
)


def config_1_4b() -> Run:
    return Run(
        num_steps=TOKENS // BATCH_TOKENS,
        model=Model(
            vocab_size=49152,
            dim=2048,
            num_heads=16,
            hidden_dim=5632,
            block_layers=24,
            norm_placement="sandwich",
            norm_at_loop_end=True,
            final_norm=False,
            rope=Rope(theta=10_000.0),
            exit_gate=ExitGate(),
        ),
        loop=Loop(num_loops=4),
        objective=ExpectedCrossEntropy(entropy_weight=0.05),
        optim=Optim(
            learning_rate=3e-4,
            optimizer=AdamW(beta1=0.9, beta2=0.95, weight_decay=0.1),
            schedule=Schedule(warmup_steps=2000, decay="constant"),
        ),
        data=Data(train="data/train", sequence_length=4096, batch_tokens=BATCH_TOKENS),
        checkpoint=Checkpoint(every_steps=1000),
        recipes=RECIPES,
    )


def config_2_6b() -> Run:
    return override(config_1_4b(), {"model.block_layers": 48, "recipes": ()})


def config_tiny() -> Run:
    changes = {
        "model.dim": 128,
        "model.num_heads": 4,
        "model.hidden_dim": 352,
        "model.block_layers": 2,
        "optim.learning_rate": 2e-3,
        "optim.schedule.warmup_steps": 30,
        "recipes": (),
    }
    return override(config_1_4b(), TINY_RUN | changes)
