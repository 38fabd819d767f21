"""SMELT (arXiv 2609.01343): layers 3 to 7 of 10 looped twice, residual steps of 1/2, experts in every layer.

    looplm train configs/smelt.py:100m --workdir runs/smelt --set data.train=DATASET
    looplm train configs/smelt.py:tiny --workdir runs/smelt_tiny      (on the data of `looplm demo`)

100m has 366,769,280 parameters, 91,518,080 of them active; tiny is for a CPU.
Which layers loop, how often, and the step are the paper's; widths, experts and the recipe are our own.
"""

from looplm.config.load import override
from looplm.config.schema import Balance, Checkpoint, Data, Loop, Model, MoE, Optim, Run, Schedule
from looplm.config.tiny import TINY_RUN

TOKENS = 10_000_000_000
BATCH_TOKENS = 2**19


def config_100m() -> Run:
    return Run(
        num_steps=TOKENS // BATCH_TOKENS,
        model=Model(
            vocab_size=32768,
            dim=640,
            num_heads=10,
            num_kv_heads=2,
            hidden_dim=1792,
            prelude_layers=3,
            block_layers=5,
            coda_layers=2,
            feed_forward=MoE(
                num_experts=64,
                experts_per_token=8,
                expert_dim=256,
                balance=Balance(auxiliary_weight=0.01, z_loss_weight=0.001),
            ),
            residual_step="inverse_loops",
        ),
        loop=Loop(num_loops=2),
        optim=Optim(learning_rate=1e-3, schedule=Schedule(warmup_steps=500)),
        data=Data(train="data/train", sequence_length=2048, batch_tokens=BATCH_TOKENS),
        checkpoint=Checkpoint(every_steps=1000),
    )


def config_tiny() -> Run:
    changes = {
        "model.dim": 128,
        "model.num_heads": 4,
        "model.num_kv_heads": 2,
        "model.hidden_dim": 256,
        "model.prelude_layers": 1,
        "model.block_layers": 2,
        "model.coda_layers": 1,
        "model.feed_forward.num_experts": 8,
        "model.feed_forward.experts_per_token": 2,
        "model.feed_forward.expert_dim": 64,
        "loop.remat": "none",
        "optim.learning_rate": 4e-3,
        "optim.schedule.warmup_steps": 30,
    }
    return override(config_100m(), TINY_RUN | changes)
