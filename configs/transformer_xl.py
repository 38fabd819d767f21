"""Transformer-XL (arXiv 1901.02860): layers that see what entered them in the segment before; a block that runs once.

    looplm train configs/transformer_xl.py:enwik8.12l --workdir runs/txl --set data.train=DATASET    (bytes as tokens)
    looplm train configs/transformer_xl.py:tiny --workdir runs/txl_tiny      (on the data of `looplm demo`)

Sizes of the authors' scripts, of one softmax over the vocabulary: enwik8.12l has 41,055,436 parameters, enwik8.24l has
277,231,820, and wt103.base has 151,106,305: 1,233 fewer than the authors', of which those are the three clusters of an
adaptive softmax. That one is not built (nor wt103.large, whose embeddings have widths of their own), and nothing is
dropped (.1 and .15 in the scripts). tiny is for a CPU, and runs its block three times.
"""

from looplm.config.load import override
from looplm.config.schema import (
    AdamW,
    Checkpoint,
    Data,
    Loop,
    Model,
    NormalInit,
    Optim,
    RelativePositions,
    ReLU,
    Run,
    Schedule,
    SegmentMemory,
)
from looplm.config.tiny import TINY_RUN


def _run(model: Model, *, num_steps: int, warmup_steps: int, rows: int) -> Run:
    assert model.memory is not None
    length = model.memory.length
    return Run(
        num_steps=num_steps,
        model=model,
        loop=Loop(num_loops=1),
        optim=Optim(
            learning_rate=2.5e-4,
            optimizer=AdamW(beta2=0.999, weight_decay=0.0),
            schedule=Schedule(decay="cosine", warmup_steps=warmup_steps),
            clip_norm=0.25,
        ),
        data=Data(train="data/train", sequence_length=length, batch_tokens=rows * length, order="streams"),
        checkpoint=Checkpoint(every_steps=1000),
    )


def _model(*, vocab_size: int, layers: int, dim: int, heads: int, head_dim: int, hidden_dim: int, memory: int) -> Model:
    return Model(
        vocab_size=vocab_size,
        dim=dim,
        num_heads=heads,
        head_dim=head_dim,
        hidden_dim=hidden_dim,
        block_layers=layers,
        feed_forward=ReLU(),
        memory=SegmentMemory(length=memory),
        norm="layer",
        norm_eps=1e-5,
        norm_placement="post",
        final_norm=False,
        positions=RelativePositions(shared_vectors=True),
        tie_embeddings=True,
        head_bias=True,
        embedding_scale=dim**0.5,
        init=NormalInit(std=0.02),
    )


def config_enwik8_12l() -> Run:
    model = _model(vocab_size=204, layers=12, dim=512, heads=8, head_dim=64, hidden_dim=2048, memory=512)
    return _run(model, num_steps=400_000, warmup_steps=0, rows=22)


def config_enwik8_24l() -> Run:
    model = _model(vocab_size=204, layers=24, dim=1024, heads=8, head_dim=128, hidden_dim=3072, memory=768)
    return _run(model, num_steps=400_000, warmup_steps=4000, rows=64)


def config_wt103_base() -> Run:
    model = _model(vocab_size=267_735, layers=16, dim=410, heads=10, head_dim=41, hidden_dim=2100, memory=150)
    return _run(model, num_steps=200_000, warmup_steps=0, rows=60)


def config_tiny() -> Run:
    changes = {
        "model.dim": 128,
        "model.num_heads": 4,
        "model.head_dim": 32,
        "model.hidden_dim": 384,
        "model.block_layers": 1,
        "model.memory.length": 128,
        "model.embedding_scale": 128**0.5,
        "loop.num_loops": 3,
        "loop.remat": "none",
        "optim.learning_rate": 2e-3,
        "optim.schedule.warmup_steps": 30,
    }
    return override(config_enwik8_12l(), TINY_RUN | changes)
