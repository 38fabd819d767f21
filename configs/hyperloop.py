"""Hyperloop Transformers (arXiv 2604.21254): a block between layers of its own is looped three times. Every loop reads
four residual streams and writes to them, with weights and a vector of its own.

    looplm train configs/hyperloop.py:136m --workdir runs/hyperloop --set data.train=DATASET
    looplm train configs/hyperloop.py:tiny --workdir runs/hyperloop_tiny      (on the data of `looplm demo`)

136m has 168,464,429 parameters, 580m has 645,218,349 and 990m has 1,056,292,909: without the embedding 135,696,429,
579,682,349 and 990,756,909. Published, without the embedding: 135.7 M, 579.7 M, and 990.5 M for the third size without
streams, which are 301,101 parameters of the last two sizes; `--set model.core.streams=null` leaves them out.
mhc_241m has 274,237,280 parameters, 241,469,280 without the embedding (published: 241 M). It is the twin of 136m that
is not looped: sixteen layers with doubly stochastic streams around every branch (arXiv 2512.24880).
tiny and mhc_tiny are for a CPU. There is no official code: where norms stand in a layer (before its branches) and the
first values of what reads and writes streams are ours.
"""

from looplm.config.load import override
from looplm.config.schema import (
    AdamW,
    Checkpoint,
    Data,
    Loop,
    LoopStreams,
    Model,
    Optim,
    Run,
    Schedule,
    SingleCore,
    Streams,
)
from looplm.config.tiny import TINY_RUN

BATCH_TOKENS = 256 * 2048
LOOPS = 3


def config_136m() -> Run:
    return hyperloop(dim=1024, ends=2, block=4, tokens=12_500_000_000, warmup_steps=1000)


def config_580m() -> Run:
    return hyperloop(dim=2048, ends=3, block=4, tokens=50_000_000_000, warmup_steps=2000)


def config_990m() -> Run:
    return hyperloop(dim=2048, ends=4, block=10, tokens=100_000_000_000, warmup_steps=2000)


def config_mhc_241m() -> Run:
    return override(config_136m(), MHC | {"model.block_layers": 16})


def config_tiny() -> Run:
    return override(hyperloop(dim=128, ends=1, block=1, tokens=BATCH_TOKENS, warmup_steps=30), TINY_RUN | TINY)


def config_mhc_tiny() -> Run:
    return override(config_tiny(), MHC | {"model.block_layers": 5})


MHC = {
    "model.prelude_layers": 0,
    "model.coda_layers": 0,
    "model.core": SingleCore(),
    "model.streams": Streams(),
    "loop.num_loops": 1,
}
TINY = {"model.num_heads": 4, "optim.learning_rate": 3e-3}


def hyperloop(*, dim: int, ends: int, block: int, tokens: int, warmup_steps: int) -> Run:
    """ends: layers before the block, and as many after it."""
    return Run(
        num_steps=tokens // BATCH_TOKENS,
        model=Model(
            vocab_size=32000,
            dim=dim,
            num_heads=16,
            hidden_dim=dim * 11 // 4,
            prelude_layers=ends,
            block_layers=block,
            coda_layers=ends,
            core=SingleCore(streams=LoopStreams(loops=LOOPS, eps=0.0)),
        ),
        loop=Loop(num_loops=LOOPS),
        optim=Optim(
            learning_rate=4e-4,
            optimizer=AdamW(beta1=0.9, beta2=0.95, weight_decay=0.1),
            schedule=Schedule(warmup_steps=warmup_steps, final_fraction=0.1),
        ),
        data=Data(train="data/train", sequence_length=2048, batch_tokens=BATCH_TOKENS),
        checkpoint=Checkpoint(every_steps=1000),
    )
