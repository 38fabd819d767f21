"""Parcae (arXiv 2604.12946): prelude, shared block and coda of as many layers; 8 loops on average, drawn per sequence,
gradient through the last 4.

    looplm train configs/parcae.py:370m --workdir runs/parcae --set data.train=DATASET
    looplm train configs/parcae.py:tiny --workdir runs/parcae_tiny      (on the data of `looplm demo`)

140m has 144,323,136 parameters (75,497,472 of them in value embeddings), 370m has 388,003,328 (201,326,592), 770m has
776,655,680 (377,487,360), 1.3b has 1,338,591,744 (603,979,776); tiny is for a CPU: 4 loops on average. Departs from the
authors' optimizer: their Muon also normalises every neuron's update, and its decay of 0.2 is masked and vanishes over
the run. Their rate is 8e-3 for Muon, which gives an update entries of 1/sqrt(D), and for AdamW (6e-3 from 770m on);
here an update of rate 1 has entries of 0.2.
"""

import math

from looplm.config.load import override
from looplm.config.schema import (
    AdamW,
    Checkpoint,
    Data,
    DiagonalInjection,
    Loop,
    Model,
    Muon,
    NormalState,
    Optim,
    OrthogonalInit,
    PoissonDepth,
    ReadOut,
    Rope,
    Run,
    Schedule,
    SquaredReLU,
    ValueEmbedding,
)
from looplm.config.tiny import TINY_RUN

BATCH_TOKENS = 256 * 2048


def config_140m() -> Run:
    return parcae(dim=768, num_heads=6, layers=2, tokens=11_200_000_000)


def config_370m() -> Run:
    return parcae(dim=1024, num_heads=8, layers=4, tokens=29_600_000_000)


def config_770m() -> Run:
    return parcae(dim=1280, num_heads=10, layers=6, tokens=61_600_000_000, adamw_share=0.75)


def config_1_3b() -> Run:
    return parcae(dim=1536, num_heads=12, layers=8, tokens=104_000_000_000, adamw_share=0.75)


def config_tiny() -> Run:
    run = parcae(dim=64, num_heads=2, layers=2, tokens=11_200_000_000)
    return override(run, TINY_RUN | {"loop.num_loops": 4, "loop.backprop_loops": 2})


def parcae(dim: int, num_heads: int, layers: int, tokens: int, adamw_share: float = 1.0) -> Run:
    """adamw_share: AdamW's rate over Muon's, as the authors count them."""
    muon_unit = 0.2 * math.sqrt(dim)
    return Run(
        num_steps=tokens // BATCH_TOKENS,
        model=Model(
            vocab_size=32768,
            dim=dim,
            num_heads=num_heads,
            hidden_dim=4 * dim,
            prelude_layers=layers,
            block_layers=layers,
            coda_layers=layers,
            feed_forward=SquaredReLU(scale=0.5),
            qk_norm=True,
            qk_norm_scale=False,
            rope=Rope(theta=50_000.0, layout="interleaved"),
            value_embedding=ValueEmbedding(),
            norm_eps=1e-5,
            prelude_norm=True,
            injection=DiagonalInjection(),
            state_init=NormalState(std=math.sqrt(2 / (5 * dim))),
            read_out=ReadOut(),
            tie_embeddings=True,
            init=OrthogonalInit(),
        ),
        loop=Loop(num_loops=8, depth=PoissonDepth(), depth_per="sequence", backprop_loops=4),
        optim=Optim(
            learning_rate=8e-3 / muon_unit,
            optimizer=Muon(
                weight_decay=0.2,
                adamw=AdamW(beta1=0.8, beta2=0.95, eps=1e-10, weight_decay=0.0),
                adamw_rate=adamw_share * muon_unit,
            ),
            schedule=Schedule(decay="wsd", wsd_fraction=0.5, final_fraction=0.0),
        ),
        data=Data(train="data/train", sequence_length=2048, batch_tokens=BATCH_TOKENS),
        checkpoint=Checkpoint(every_steps=1024),
    )
