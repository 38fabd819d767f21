"""A looped model that learns from the predictions of a larger one, online, beside the labels (arXiv 2410.20672).

    looplm convert retrofit HF_DIR runs/cut --prelude 0:4 --block 4:18 --coda 18:22 --select average --loops 2
    looplm train configs/finetune/distill.py --workdir runs/taught --set teacher=HF_DIR --set model=from:runs/cut \
        --set data.train=DATASET

The model is that of the folder. On a CPU, with runs/base and runs/cut as configs/finetune/retrofit.py makes them:

    looplm train configs/finetune/distill.py:tiny --workdir runs/taught --set model=from:runs/cut
    looplm train configs/finetune/distill.py:own --workdir runs/own --set model=from:runs/cut

`own` has no teacher: earlier loops learn from the last one, so that a text may be left early.
"""

from looplm.config.load import override
from looplm.config.schema import (
    ConcatInjection,
    Data,
    Distillation,
    Loop,
    Model,
    Optim,
    Run,
    Schedule,
    SelfDistillation,
)
from looplm.config.tiny import TINY_RUN


def config() -> Run:
    return Run(
        num_steps=7_500,
        teacher="runs/base",
        model=Model(
            vocab_size=32_000,
            dim=2048,
            num_heads=32,
            num_kv_heads=4,
            hidden_dim=5632,
            prelude_layers=4,
            block_layers=7,
            coda_layers=4,
            norm_eps=1e-5,
            injection=ConcatInjection(init="input"),
        ),
        loop=Loop(num_loops=2),
        objective=Distillation(weight=0.5, temperature=2.0),
        optim=Optim(learning_rate=2e-4, schedule=Schedule(warmup_steps=200)),
        data=Data(train="data/train", sequence_length=2048, batch_tokens=2**21),
    )


def config_tiny() -> Run:
    model = Model(
        vocab_size=2048,
        dim=96,
        num_heads=4,
        hidden_dim=256,
        prelude_layers=2,
        block_layers=2,
        coda_layers=2,
        injection=ConcatInjection(init="input"),
    )
    changes = {
        "model": model,
        "loop.num_loops": 4,
        "optim.learning_rate": 1e-3,
        "optim.schedule.warmup_steps": 10,
    }
    return override(config(), TINY_RUN | changes)


def config_own() -> Run:
    return override(config_tiny(), {"teacher": None, "objective": SelfDistillation()})
