"""Universal Transformer (arXiv 1807.03819): one shared layer, sinusoids of loop and position at every loop, and
adaptive computation time per token.

    looplm train configs/universal_transformer.py:base --workdir runs/ut --set data.train=DATASET
    looplm train configs/universal_transformer.py:tiny --workdir runs/ut_tiny      (on the data of `looplm demo`)

base has 46,147,585 parameters, big has 117,460,993: sizes of tensor2tensor's `universal_transformer_base` and `_big`,
as a decoder alone with a vocabulary of 32768 that embedding and head share; tiny is for a CPU. An encoder is
`--set model.attention_mask=full` on records that are answered in place; convolutions are
`--set 'model.feed_forward={"kind": "conv_relu", "separable": true, "second_kernel": 31}'`.
Departures: no dropout; the optimizer's schedule is a linear one.
"""

from looplm.config.load import override
from looplm.config.schema import (
    ACTHalting,
    AdamW,
    Checkpoint,
    Cost,
    Data,
    Loop,
    Model,
    NoPositions,
    Optim,
    ReLU,
    Run,
    Schedule,
    SinusoidalConditioning,
)
from looplm.config.tiny import TINY_RUN


def config_base() -> Run:
    return Run(
        num_steps=100_000,
        model=Model(
            vocab_size=32768,
            dim=1024,
            num_heads=16,
            hidden_dim=4096,
            block_layers=1,
            feed_forward=ReLU(),
            norm="layer",
            norm_placement="post",
            final_norm=False,
            positions=NoPositions(),
            conditioning=SinusoidalConditioning(),
            halting=ACTHalting(threshold=0.99, rest_to_last=False, cost=Cost(weight=0.01)),
            tie_embeddings=True,
            embedding_scale=1024**0.5,
        ),
        loop=Loop(num_loops=12),
        optim=Optim(
            learning_rate=2e-4,
            optimizer=AdamW(beta1=0.9, beta2=0.997, weight_decay=0.0),
            schedule=Schedule(warmup_steps=8000, decay="linear"),
        ),
        data=Data(train="data/train", sequence_length=256, batch_tokens=64 * 1024),
        checkpoint=Checkpoint(every_steps=1000),
    )


def config_big() -> Run:
    return override(config_base(), {"model.dim": 2048, "model.hidden_dim": 8192, "model.embedding_scale": 2048**0.5})


def config_tiny() -> Run:
    changes = {
        "model.dim": 128,
        "model.num_heads": 4,
        "model.hidden_dim": 512,
        "model.embedding_scale": 128**0.5,
        "loop.num_loops": 6,
        "optim.learning_rate": 1e-3,
        "optim.schedule.warmup_steps": 30,
    }
    return override(config_base(), TINY_RUN | changes)
