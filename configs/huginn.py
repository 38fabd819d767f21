"""Huginn (arXiv 2502.05171): prelude 2, shared block 4, coda 2; 32 loops on average, gradient through the last 8.

    looplm train configs/huginn.py:3.5b --workdir runs/huginn --set data.train=DATASET
    looplm train configs/huginn.py:tiny --workdir runs/huginn_tiny      (on the data of `looplm demo`)

3.5b has 3,564,976,800 parameters. Departs from the authors' optimizer, an AdamW with clipped updates, in using plain
AdamW. tiny is for a CPU: 8 loops on average, gradient through the last 4.
"""

import math

from looplm.config.load import override
from looplm.config.schema import (
    AdamW,
    Checkpoint,
    ConcatInjection,
    Data,
    DepthScaledInit,
    LogNormalPoissonDepth,
    Loop,
    Model,
    NormalState,
    Optim,
    Recipe,
    Rope,
    Run,
    Schedule,
)
from looplm.config.tiny import TINY_RUN

BATCH_TOKENS = 4096 * 4096
ON_64 = {"mesh.data": 2, "mesh.fsdp": 32, "data.accumulation_steps": 64, "loop.remat": "layer"}
RECIPES = (  # compiled for these slices: docs/scaling.md
    Recipe(devices="TPU v5 lite|TPU v6 lite", num_devices=64, settings=ON_64 | {"sharding.gather": "per_layer"}),
    Recipe(devices="TPU v5|TPU v5p", num_devices=64, settings=ON_64),
    Recipe(devices="TPU7x", num_devices=128, settings=ON_64 | {"mesh.data": 4, "data.accumulation_steps": 32}),
)


def config_3_5b() -> Run:
    return Run(
        num_steps=47_000,
        model=Model(
            vocab_size=65536,
            dim=5280,
            num_heads=55,
            hidden_dim=17920,
            prelude_layers=2,
            block_layers=4,
            coda_layers=2,
            qk_bias=True,
            rope=Rope(theta=50_000.0, layout="interleaved"),
            norm_placement="sandwich_sum",
            norm_before_coda=True,
            injection=ConcatInjection(),
            state_init=NormalState(),
            tie_embeddings=True,
            embedding_scale=math.sqrt(5280),
            init=DepthScaledInit(effective_depth=132),
        ),
        loop=Loop(num_loops=32, depth=LogNormalPoissonDepth(), backprop_loops=8),
        optim=Optim(
            learning_rate=4e-5,
            optimizer=AdamW(beta1=0.9, beta2=0.95, weight_decay=4e-5),
            schedule=Schedule(warmup_steps=4096, decay="constant"),
        ),
        data=Data(train="data/train", sequence_length=4096, batch_tokens=BATCH_TOKENS),
        checkpoint=Checkpoint(every_steps=500),
        recipes=RECIPES,
    )


def config_tiny() -> Run:
    changes = {
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
        "recipes": (),
    }
    return override(config_3_5b(), TINY_RUN | changes)
