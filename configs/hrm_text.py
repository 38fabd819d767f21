"""HRM-Text (arXiv 2605.20613): text with two blocks at two speeds, and gated attention.

    looplm train configs/hrm_text.py:1b --workdir runs/hrm_text --set data.train=DATASET
    looplm train configs/hrm_text.py:tiny --workdir runs/hrm_text_tiny      (on the data of `looplm demo`)

The tokens of a prompt see one another: what comes before the first label that is scored (docs/decisions.md), so the
data are examples with answers. At the end the gradient flows through both high steps and the low ones of the last loop;
it grows to that over the first fifth of the training.
"""

from looplm.config.load import override
from looplm.config.schema import (
    AdamATan2,
    Data,
    DenseAttention,
    FanInInit,
    Growth,
    InputState,
    Loop,
    Model,
    Optim,
    Run,
    Schedule,
    TwoSpeedCore,
)
from looplm.config.tiny import TINY_RUN


def config_1b() -> Run:
    return Run(
        num_steps=800_000,
        model=Model(
            vocab_size=65_536,
            dim=1536,
            num_heads=12,
            hidden_dim=4096,
            block_layers=16,
            attention=DenseAttention(output_gate=True),
            attention_mask="prefix",
            norm="unit",
            norm_at_loop_end=True,
            final_norm=False,
            embedding_scale=1536**0.5,
            core=TwoSpeedCore(inner_loops=3, inner_backprop=(0, 3), high_layers=16),
            state_init=InputState(),
            init=FanInInit(effective_depth=2),
        ),
        loop=Loop(num_loops=2, backprop_growth=Growth(steps=106_667), inner_growth=Growth(steps=160_000)),
        optim=Optim(
            learning_rate=2.2e-4,
            optimizer=AdamATan2(weight_decay=0.1),
            schedule=Schedule(warmup_steps=2000, decay="constant"),
            ema_decay=0.9999,
        ),
        data=Data(train="data/train", sequence_length=2048, batch_tokens=196_608),
    )


def config_tiny() -> Run:
    changes = {
        "model.dim": 128,
        "model.num_heads": 4,
        "model.hidden_dim": 352,
        "model.block_layers": 2,
        "loop.backprop_growth": None,
        "loop.inner_growth": None,
        "model.core.high_layers": 2,
        "model.embedding_scale": 128**0.5,
        "optim.learning_rate": 1e-3,
        "optim.schedule.warmup_steps": 30,
        "optim.ema_decay": None,
    }
    return override(config_1b(), TINY_RUN | changes)
