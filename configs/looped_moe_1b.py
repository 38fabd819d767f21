"""A looped mixture of experts of about 1 B parameters: 8 shared layers of 64 experts, 8 a token, looped 4 times.

    looplm train configs/looped_moe_1b.py --workdir runs/looped_moe --set data.train=DATASET

978,901,504 parameters, 274,258,432 of them active.
The sizes are our own; the router is that of arXiv 2412.19437: sigmoid scores, renormalised, balanced by a bias.
"""

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

TOKENS = 40_000_000_000
BATCH_TOKENS = 2**21
RECIPES = (  # compiled for this slice: docs/scaling.md
    Recipe(
        devices="TPU v5|TPU v5p",
        num_devices=64,
        settings={"mesh.data": 8, "mesh.fsdp": 8, "data.accumulation_steps": 8},
    ),
)


def config() -> Run:
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
