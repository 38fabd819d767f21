"""Parcae 140M (arXiv 2604.12946): prelude, shared block and coda of 2 layers; 8 loops on average, drawn per sequence,
gradient through the last 4.

    looplm train configs/parcae_140m.py --workdir runs/parcae --set data.train=DATASET

144,323,136 parameters, 75,497,472 of them in value embeddings. Departs from the authors' optimizer: their Muon also
normalises every neuron's update, and its decay of 0.2 is masked and vanishes over the run. Their rate is 8e-3 for Muon,
which gives an update entries of 1/sqrt(D), and for AdamW; here an update of rate 1 has entries of 0.2.
"""

import math

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

TOKENS = 11_200_000_000
BATCH_TOKENS = 256 * 2048
DIM = 768


def config() -> Run:
    return Run(
        num_steps=TOKENS // BATCH_TOKENS,
        model=Model(
            vocab_size=32768,
            dim=DIM,
            num_heads=6,
            hidden_dim=4 * DIM,
            prelude_layers=2,
            block_layers=2,
            coda_layers=2,
            feed_forward=SquaredReLU(scale=0.5),
            qk_norm=True,
            qk_norm_scale=False,
            rope=Rope(theta=50_000.0, layout="interleaved"),
            value_embedding=ValueEmbedding(),
            norm_eps=1e-5,
            prelude_norm=True,
            injection=DiagonalInjection(),
            state_init=NormalState(std=math.sqrt(2 / (5 * DIM))),
            read_out=ReadOut(),
            tie_embeddings=True,
            init=OrthogonalInit(),
        ),
        loop=Loop(num_loops=8, depth=PoissonDepth(), depth_per="sequence", backprop_loops=4),
        optim=Optim(
            learning_rate=8e-3 / (0.2 * math.sqrt(DIM)),
            optimizer=Muon(
                weight_decay=0.2,
                adamw=AdamW(beta1=0.8, beta2=0.95, eps=1e-10, weight_decay=0.0),
                adamw_rate=0.2 * math.sqrt(DIM),
            ),
            schedule=Schedule(decay="wsd", wsd_fraction=0.5, final_fraction=0.0),
        ),
        data=Data(train="data/train", sequence_length=2048, batch_tokens=BATCH_TOKENS),
        checkpoint=Checkpoint(every_steps=1024),
    )
