"""A pretrained model cut into a looped one, and healed while its mean depth grows (retrofit, arXiv 2511.07384).

    looplm convert retrofit HF_DIR runs/cut --prelude 0:4 --block 10:18 --coda 18:22
    looplm train configs/finetune/retrofit.py --workdir runs/healed --set model=from:runs/cut --set data.train=DATASET

The model is that of the folder; the settings here are of TinyLlama-1.1B, cut as above. On a CPU, on the data of
`looplm demo`: base is a plain model of eight layers, tiny heals what is cut out of it.

    looplm train configs/finetune/retrofit.py:base --workdir runs/base
    looplm convert retrofit runs/base runs/cut --prelude 0:2 --block 3:5 --coda 6:8
    looplm train configs/finetune/retrofit.py:tiny --workdir runs/healed --set model=from:runs/cut
"""

from looplm.config.load import override
from looplm.config.schema import (
    AdamW,
    ConcatInjection,
    Data,
    Growth,
    LogNormalPoissonDepth,
    Loop,
    Model,
    Muon,
    Optim,
    Run,
    Schedule,
)
from looplm.config.tiny import TINY_RUN

NUM_STEPS = 50_000


def config() -> Run:
    return Run(
        num_steps=NUM_STEPS,
        model=Model(
            vocab_size=32_000,
            dim=2048,
            num_heads=32,
            num_kv_heads=4,
            hidden_dim=5632,
            prelude_layers=4,
            block_layers=8,
            coda_layers=4,
            norm_eps=1e-5,
            injection=ConcatInjection(init="input"),
        ),
        loop=Loop(
            num_loops=16,
            depth=LogNormalPoissonDepth(),
            backprop_loops=8,
            growth=Growth(steps=NUM_STEPS // 4),
        ),
        optim=Optim(
            learning_rate=1e-3,
            optimizer=Muon(weight_decay=1e-4, adamw=AdamW(weight_decay=1e-4), adamw_rate=0.05),
            schedule=Schedule(warmup_steps=NUM_STEPS // 200, decay="wsd", wsd_fraction=0.6, final_fraction=0.0),
        ),
        data=Data(train="data/train", sequence_length=1024, batch_tokens=2**20),
    )


def config_base() -> Run:
    changes = {
        "model": Model(vocab_size=2048, dim=96, num_heads=4, hidden_dim=256, block_layers=8),
        "loop": Loop(num_loops=1),
        "optim": Optim(learning_rate=2e-3, schedule=Schedule(warmup_steps=30)),
    }
    return override(config(), TINY_RUN | changes)


def config_tiny() -> Run:
    cut = {"prelude_layers": 2, "block_layers": 2, "coda_layers": 2, "injection": ConcatInjection(init="input")}
    changes = {
        "model": config_base().model.model_copy(update=cut),
        "loop.num_loops": 4,
        "loop.backprop_loops": 4,
        "loop.growth": Growth(steps=75),
        "optim.schedule.warmup_steps": 10,
    }
    return override(config(), TINY_RUN | changes)
