"""MoEUT 44M (arXiv 2405.16039) but for its attention: 2 shared layers of 155 sigma-MoE experts, looped 8 times.

    looplm train configs/moeut_44m.py --workdir runs/moeut --set data.train=DATASET

40,499,188 parameters, 10,334,196 of them active.
Departures: attention is dense and not a mixture of experts per head (SwitchHead: 4 M parameters more), it rotates whole
heads and not their first half, norms are RMSNorm, the head has no bias.
"""

from looplm.config.schema import AdamW, Balance, Checkpoint, Data, Loop, Model, MoE, Optim, Run, Schedule

BATCH_TOKENS = 64 * 1024


def config() -> Run:
    return Run(
        num_steps=100_000,
        model=Model(
            vocab_size=8000,
            dim=412,
            num_heads=4,
            head_dim=82,
            hidden_dim=12 * 128,
            block_layers=2,
            feed_forward=MoE(
                num_experts=155,
                experts_per_token=12,
                expert_dim=128,
                expert="relu",
                scores="sigmoid",
                renormalise=False,
                balance=Balance(entropy_weight=0.01),
            ),
            norm_placement="peri",
        ),
        loop=Loop(num_loops=8),
        optim=Optim(
            learning_rate=2.5e-4,
            optimizer=AdamW(beta2=0.999, weight_decay=0.01),
            schedule=Schedule(warmup_steps=4000),
            clip_norm=0.25,
        ),
        data=Data(train="data/train", sequence_length=1024, batch_tokens=BATCH_TOKENS),
        checkpoint=Checkpoint(every_steps=1000),
    )
