"""ALBERT v2 (arXiv 1909.11942): one shared layer that sees both sides, narrow embeddings, hidden tokens to be found.

    looplm train configs/albert.py:base --workdir runs/albert --set data.train=DATASET
    looplm train configs/albert.py:tiny --workdir runs/albert_tiny      (on the data of `looplm demo`)

base has 11,221,680 parameters, large has 16,795,824, xlarge has 54,821,040 and xxlarge has 206,368,944, as
`AlbertForMaskedLM` of the library transformers; with `--set model.sequence_head={}` (untrained) 11,813,810, 17,847,474,
59,021,490 and 223,158,450, as `AlbertForPreTraining`. The mask is that of the authors' vocabulary, whose `[CLS]` and
`[SEP]` are never hidden; in tiny, for a CPU, it stands behind the vocabulary. Departures: AdamW where they have LAMB;
n-grams of tokens, not of words; stretches of text without segments A and B, so no order of sentences.
"""

from looplm.config.load import override
from looplm.config.schema import (
    GELU,
    AdamW,
    Data,
    DenseAttention,
    HeadTransform,
    LearnedPositions,
    Loop,
    Masking,
    Model,
    NormalInit,
    Optim,
    Run,
    Schedule,
)
from looplm.config.tiny import TINY_RUN


def _run(*, dim: int, heads: int, loops: int) -> Run:
    return Run(
        num_steps=125_000,
        model=Model(
            vocab_size=30_000,
            dim=dim,
            embedding_dim=128,
            embedding_norm=True,
            token_types=2,
            num_heads=heads,
            hidden_dim=4 * dim,
            block_layers=1,
            feed_forward=GELU(bias=True),
            attention=DenseAttention(bias=True),
            attention_mask="full",
            qk_bias=True,
            positions=LearnedPositions(length=512),
            norm="layer",
            norm_eps=1e-12,
            norm_placement="post",
            final_norm=False,
            head_transform=HeadTransform(),
            head_bias=True,
            tie_embeddings=True,
            init=NormalInit(std=0.02),
        ),
        loop=Loop(num_loops=loops),
        optim=Optim(
            learning_rate=2e-4,
            optimizer=AdamW(beta1=0.9, beta2=0.999, weight_decay=0.01),
            schedule=Schedule(warmup_steps=3125, decay="linear"),
        ),
        data=Data(
            train="data/train", sequence_length=512, batch_tokens=2**21, masking=Masking(mask_token=4, never=(2, 3))
        ),
    )


def config_base() -> Run:
    return _run(dim=768, heads=12, loops=12)


def config_large() -> Run:
    return _run(dim=1024, heads=16, loops=24)


def config_xlarge() -> Run:
    return _run(dim=2048, heads=16, loops=24)


def config_xxlarge() -> Run:
    return _run(dim=4096, heads=64, loops=12)


def config_tiny() -> Run:
    changes = {
        "model.vocab_size": 2064,
        "model.dim": 128,
        "model.embedding_dim": 64,
        "model.num_heads": 4,
        "model.hidden_dim": 512,
        "model.positions.length": 128,
        "loop.num_loops": 6,
        "optim.learning_rate": 1e-3,
        "optim.schedule.warmup_steps": 30,
        "data.masking": {"mask_token": 2048},
    }
    return override(config_base(), TINY_RUN | changes)
