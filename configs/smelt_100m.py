"""SMELT (arXiv 2609.01343) near 100 M active parameters: layers 3 to 7 of 10 looped twice, residual steps of 1/2.

    looplm train configs/smelt_100m.py --workdir runs/smelt --set data.train=DATASET

366,769,280 parameters, 91,518,080 of them active.
Which layers loop, how often, and the step are the paper's; widths, experts and the recipe are our own.
"""

from looplm.config.schema import Balance, Checkpoint, Data, Loop, Model, MoE, Optim, Run, Schedule

TOKENS = 10_000_000_000
BATCH_TOKENS = 2**19


def config() -> Run:
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
