"""MoEUT (arXiv 2405.16039): 2 shared layers of sigma-MoE experts and SwitchHead attention, looped 8 times.

    looplm train configs/moeut.py:44m --workdir runs/moeut --set data.train=DATASET
    looplm train configs/moeut.py:tiny --workdir runs/moeut_tiny      (on the data of `looplm demo`)

44m has 44,345,792 parameters, 10,937,536 of them active; tiny is for a CPU.
Departure: half of a head of 82 dims are 41, of which the official code cannot make pairs; 40 turn.
"""

from looplm.config.load import override
from looplm.config.schema import (
    AdamW,
    Balance,
    Checkpoint,
    Data,
    FanInInit,
    Loop,
    MixtureAttention,
    Model,
    MoE,
    Optim,
    Rope,
    Run,
    Schedule,
)
from looplm.config.tiny import TINY_RUN

BATCH_TOKENS = 64 * 1024


def config_44m() -> Run:
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
            attention=MixtureAttention(num_experts=8, experts_per_token=2, entropy_weight=0.001),
            rope=Rope(fraction=0.5),
            norm="layer",
            norm_eps=1e-5,
            norm_placement="peri",
            head_bias=True,
            init=FanInInit(effective_depth=8 * 2),
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


def config_tiny() -> Run:
    changes = {
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
    }
    return override(config_44m(), TINY_RUN | changes)
