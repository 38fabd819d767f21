"""A looped mixture of experts: shared layers of 64 experts, 8 a token, looped 4 times, among dense ones.

    looplm train configs/looped_moe.py:1b --workdir runs/looped_moe --set data.train=DATASET
    looplm train configs/looped_moe.py:tiny --workdir runs/looped_moe_tiny      (on the data of `looplm demo`)

1b has 978,901,504 parameters, 274,258,432 of them active; tiny is for a CPU.
The sizes are our own; the router is that of arXiv 2412.19437: sigmoid scores, renormalised, balanced by a bias.
"""

from looplm.config.load import override
from looplm.config.schema import (
    AddInjection,
    Balance,
    Checkpoint,
    Data,
    Loop,
    Model,
    MoE,
    Optim,
    Recipe,
    Run,
    Schedule,
    SwiGLU,
)
from looplm.config.tiny import TINY_RUN

TOKENS = 40_000_000_000
BATCH_TOKENS = 2**21
RECIPES = (  # compiled for this slice: docs/scaling.md
    Recipe(
        devices="TPU v5|TPU v5p",
        num_devices=64,
        settings={"mesh.data": 8, "mesh.fsdp": 8, "data.accumulation_steps": 8, "loop.remat": "layer"},
    ),
)


def config_1b() -> Run:
    return Run(
        num_steps=TOKENS // BATCH_TOKENS,
        model=Model(
            vocab_size=49152,
            dim=1024,
            num_heads=16,
            num_kv_heads=8,
            hidden_dim=2816,
            prelude_layers=2,
            block_layers=8,
            coda_layers=2,
            feed_forward=MoE(
                num_experts=64,
                experts_per_token=8,
                expert_dim=512,
                scores="sigmoid",
                loop_biases=4,
                balance=Balance(bias_rate=0.001, z_loss_weight=0.001),
            ),
            prelude_feed_forward=SwiGLU(),
            coda_feed_forward=SwiGLU(),
            qk_norm=True,
            norm_placement="sandwich",
            injection=AddInjection(),
        ),
        loop=Loop(num_loops=4),
        optim=Optim(learning_rate=6e-4, schedule=Schedule(warmup_steps=1000)),
        data=Data(train="data/train", sequence_length=4096, batch_tokens=BATCH_TOKENS),
        checkpoint=Checkpoint(every_steps=1000),
        recipes=RECIPES,
    )


def config_tiny() -> Run:
    changes = {
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
    }
    return override(config_1b(), TINY_RUN | changes)
