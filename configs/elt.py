"""Elastic Looped Transformers (arXiv 2604.09168) as language models: trained at once for every depth up to the last, by
self-distillation within the loops.

    looplm train configs/elt.py:l --workdir runs/elt --set data.train=DATASET
    looplm train configs/elt.py:tiny --workdir runs/elt_tiny      (on the data of `looplm demo`)

l has 8 layers looped 3 times (100.7 million parameters in them; published: 101 M), xl 7 layers looped 4 times (111.5
million; published: 111 M); tiny is for a CPU.
The layers are those of the paper's image models, objective and schedule of its weight too; that they read and write
text, and the recipe for it, is our own.
"""

from looplm.config.load import override
from looplm.config.schema import GELU, Checkpoint, Data, ElasticCrossEntropy, Loop, Model, Optim, Run, Schedule
from looplm.config.tiny import TINY_RUN

TOKENS = 10_000_000_000
BATCH_TOKENS = 2**19


def config_l() -> Run:
    return Run(
        num_steps=TOKENS // BATCH_TOKENS,
        model=Model(
            vocab_size=50304,
            dim=1024,
            num_heads=16,
            hidden_dim=4096,
            block_layers=8,
            feed_forward=GELU(),
            tie_embeddings=True,
        ),
        loop=Loop(num_loops=3),
        objective=ElasticCrossEntropy(),
        optim=Optim(learning_rate=6e-4, schedule=Schedule(warmup_steps=500)),
        data=Data(train="data/train", sequence_length=1024, batch_tokens=BATCH_TOKENS),
        checkpoint=Checkpoint(every_steps=1000),
    )


def config_xl() -> Run:
    return override(
        config_l(), {"model.dim": 1152, "model.hidden_dim": 4608, "model.block_layers": 7, "loop.num_loops": 4}
    )


def config_tiny() -> Run:
    changes = {
        "model.dim": 128,
        "model.num_heads": 4,
        "model.hidden_dim": 512,
        "model.block_layers": 2,
        "loop.num_loops": 4,
        "loop.remat": "none",
        "optim.learning_rate": 4e-3,
        "optim.schedule.warmup_steps": 30,
    }
    return override(config_l(), TINY_RUN | changes)
