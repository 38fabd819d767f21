"""The exit gate alone learns when another loop pays, on what it improves (arXiv 2510.25741, stage II).

    looplm train configs/finetune/gate.py --workdir runs/gate --set model=from:MODEL --set data.train=DATASET
    looplm generate runs/gate --prompt TEXT --exit gate:0.5

MODEL is a run or an official folder with an exit gate, whose model and number of loops are taken; the model here stands
in its place. Nothing else has a gradient or an optimizer state. On a CPU, after `looplm demo`:

    looplm train configs/finetune/gate.py:tiny --workdir runs/gate --set model=from:runs/demo/run
"""

from looplm.config.load import override
from looplm.config.schema import AdamW, Checkpoint, Data, ExitGate, GateImprovement, Loop, Model, Optim, Run, Schedule
from looplm.config.tiny import TINY_RUN


def config() -> Run:
    return Run(
        num_steps=1000,
        model=Model(
            vocab_size=49_152,
            dim=2048,
            num_heads=16,
            hidden_dim=5632,
            block_layers=24,
            exit_gate=ExitGate(),
        ),
        loop=Loop(num_loops=4),
        objective=GateImprovement(sharpness=50.0, threshold=0.005),
        optim=Optim(
            learning_rate=1e-3,
            optimizer=AdamW(weight_decay=0.0),
            schedule=Schedule(warmup_steps=30, decay="cosine"),
        ),
        data=Data(train="data/train", sequence_length=4096, batch_tokens=2**18),
        checkpoint=Checkpoint(every_steps=200),
    )


def config_tiny() -> Run:
    changes = {
        "num_steps": 200,
        "model.dim": 128,
        "model.num_heads": 4,
        "model.hidden_dim": 384,
        "model.block_layers": 1,
        "optim.schedule.warmup_steps": 10,
    }
    return override(config(), TINY_RUN | changes)
