"""LoopFormer (arXiv 2602.11451): loops are steps from time 0 to time 1, and know their time and size. Trained beside
shorter trajectories that are drawn, the model runs in any number of steps.

    looplm train configs/loopformer.py:3x8 --workdir runs/loopformer --set data.train=DATASET
    looplm train configs/loopformer.py:tiny --workdir runs/loopformer_tiny      (on the data of `looplm demo`)

3x8 has 278,169,600 parameters, as many as the authors' code: 3 layers, looped 8 times. tiny is for a CPU.
Scales and gates are 0 at first, as the authors' code means them to be; a rule for all matrices overwrites that
there (model.conditioning.starts_at_zero=false). What writes the residual stream starts narrower there, by 1 / sqrt(6).
"""

from looplm.config.load import override
from looplm.config.schema import (
    GELU,
    AdamW,
    Checkpoint,
    Data,
    LearnedPositions,
    Loop,
    Model,
    Optim,
    Run,
    Schedule,
    ShortcutCrossEntropy,
    TrajectoryConditioning,
)
from looplm.config.tiny import TINY_RUN

STEPS = 50_000
BATCH_TOKENS = 480 * 1024


def config_3x8() -> Run:
    return Run(
        num_steps=STEPS,
        model=Model(
            vocab_size=50304,
            dim=2048,
            num_heads=32,
            hidden_dim=5120,
            block_layers=3,
            feed_forward=GELU(exact=True),
            positions=LearnedPositions(length=1024),
            conditioning=TrajectoryConditioning(),
            tie_embeddings=True,
        ),
        loop=Loop(num_loops=8),
        objective=ShortcutCrossEntropy(),
        optim=Optim(
            learning_rate=6e-4,
            optimizer=AdamW(weight_decay=0.2),
            schedule=Schedule(warmup_steps=2000),
        ),
        data=Data(train="data/train", sequence_length=1024, batch_tokens=BATCH_TOKENS),
        checkpoint=Checkpoint(every_steps=1000),
    )


def config_tiny() -> Run:
    changes = {
        "model.dim": 128,
        "model.num_heads": 4,
        "model.hidden_dim": 512,
        "model.block_layers": 2,
        "model.positions.length": 128,
        "loop.num_loops": 4,
        "loop.remat": "none",
        "optim.learning_rate": 4e-3,
        "optim.schedule.warmup_steps": 30,
    }
    return override(config_3x8(), TINY_RUN | changes)
