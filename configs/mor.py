"""Mixture of Recursions (arXiv 2507.10524): a first and a last layer of their own, ten shared layers looped three
times, and a router over depth.

    looplm train configs/mor.py:360m --workdir runs/mor --set data.train=DATASET
    looplm train configs/mor.py:tiny --workdir runs/mor_tiny      (on the data of `looplm demo`)

360m has 165,177,600 parameters, 117,991,680 of them outside of the embeddings (published: 118 M): SmolLM-360M with
expert choice of capacities 1, 2/3, 1/3. 360m_token has a router by token choice, 360m_two two loops of fifteen layers
(published: 167 M). tiny and tiny_token are for a CPU.
Departure: tokens that are not in a loop are computed and left out, so that the time of a loop is not saved. With expert
choice, `--set model.halting.gathers=true --set loop.unroll=true` computes the others alone, in a longer program.
"""

from looplm.config.load import override
from looplm.config.schema import (
    AdamW,
    Checkpoint,
    Data,
    ExpertChoice,
    Loop,
    Model,
    Optim,
    Run,
    Schedule,
    TokenChoice,
)
from looplm.config.tiny import TINY_RUN

BATCH_TOKENS = 1024 * 2048


def config_360m() -> Run:
    return Run(
        num_steps=20_000_000_000 // BATCH_TOKENS,
        model=Model(
            vocab_size=49152,
            dim=960,
            num_heads=15,
            num_kv_heads=5,
            hidden_dim=2560,
            prelude_layers=1,
            block_layers=10,
            coda_layers=1,
            norm_eps=1e-5,
            halting=ExpertChoice(capacities=(1.0, 2 / 3, 1 / 3), z_loss_weight=0.001),
            tie_embeddings=True,
        ),
        loop=Loop(num_loops=3),
        optim=Optim(
            learning_rate=3e-3,
            optimizer=AdamW(beta1=0.9, beta2=0.95, weight_decay=0.1),
            schedule=Schedule(warmup_steps=500, decay="wsd"),
        ),
        data=Data(train="data/train", sequence_length=2048, batch_tokens=BATCH_TOKENS),
        checkpoint=Checkpoint(every_steps=1000),
    )


def config_360m_two() -> Run:
    halting = ExpertChoice(capacities=(1.0, 0.5), z_loss_weight=0.001)
    return override(config_360m(), {"model.block_layers": 15, "loop.num_loops": 2, "model.halting": halting})


def config_360m_token() -> Run:
    return override(config_360m(), {"model.halting": TokenChoice(loops=3, z_loss_weight=1e-5)})


def config_tiny() -> Run:
    changes = {
        "model.dim": 128,
        "model.num_heads": 4,
        "model.num_kv_heads": 2,
        "model.hidden_dim": 352,
        "model.block_layers": 1,
        "optim.schedule.warmup_steps": 30,
    }
    return override(config_360m(), TINY_RUN | changes)


def config_tiny_token() -> Run:
    return override(config_tiny(), {"model.halting": TokenChoice(loops=3, z_loss_weight=1e-5)})
