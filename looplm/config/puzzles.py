"""What shipped reasoners have in common: models that fill a puzzle in where it stands, and the puzzles for a CPU."""

from typing import Any

from looplm.config.load import override
from looplm.config.schema import (
    AdamATan2,
    AddInjection,
    Core,
    Data,
    DeepSupervision,
    FanInInit,
    Front,
    Guard,
    Loop,
    Model,
    Optim,
    Records,
    Run,
    Schedule,
    SequenceGate,
    Sudoku,
    SupervisedRows,
    VectorState,
)

SMALL: dict[str, Any] = {
    "model.dim": 128,
    "model.num_heads": 4,
    "model.hidden_dim": 256,
    "model.embedding_scale": 128**0.5,
    "model.front": Front(learned=1, zeros=1),
    "optim.learning_rate": 1e-3,
    "optim.schedule.warmup_steps": 100,
    "optim.optimizer.weight_decay": 0.1,
    "optim.ema_decay": 0.99,
    "loop.unroll": True,
    "loop.remat": "none",
}
"""A model for a CPU, which learns small puzzles in minutes."""
ROWS = 64


def records(folder: str, cells: int, rows: int = 768) -> Data:
    """What `looplm data grids` makes, or the authors' programs."""
    train, test = (Records(folder=folder, part=part) for part in ("train", "test"))
    return Data(train=train, validation=test, sequence_length=cells, batch_tokens=rows * cells)


def puzzle_run(core: Core, loop: Loop, **model: Any) -> Run:
    """The published run on 9x9 Sudoku: blocks without a scale in their norms, an update after every segment, and rows
    that stay for up to 16 of them. Batches of 768 rows; its data are a folder of records (docs/reasoners.md)."""
    return Run(
        num_steps=65_000,
        model=Model(
            **dict(
                vocab_size=11,
                dim=512,
                num_heads=8,
                hidden_dim=1536,
                block_layers=2,
                front=Front(learned=1),
                attention_mask="full",
                norm="unit",
                norm_eps=1e-5,
                norm_placement="post",
                final_norm=False,
                core=core,
                state_init=VectorState(),
                injection=AddInjection(),
                sequence_gate=SequenceGate(),
                embedding_scale=512**0.5,
                init=FanInInit(effective_depth=2),
            )
            | model
        ),
        loop=loop,
        objective=SupervisedRows(),
        carry=DeepSupervision(max_segments=16, exploration=0.1),
        optim=Optim(
            learning_rate=1e-4,
            optimizer=AdamATan2(weight_decay=1.0),
            schedule=Schedule(warmup_steps=2000, decay="constant"),
            clip_norm=None,
            ema_decay=0.999,
            guard=Guard(spike_deviations=None),  # a batch of rows that are left over is harder than one of solved rows
        ),
        data=records("data/sudoku", 81),
    )


def for_cpu(run: Run, size: int, num_steps: int, **changes: Any) -> Run:
    """A small model on Sudoku of a size that is made on the way; the held-out part has other puzzles."""
    task, cells = Sudoku(size=size, in_place=True), size**2
    data: dict[str, Any] = {
        "data.train": task,
        "data.validation": task.model_copy(update={"seed": 1, "num_examples": 1000}),
        "data.sequence_length": cells,
        "data.batch_tokens": ROWS * cells,
        "model.vocab_size": size + 1,
        "num_steps": num_steps,
    }
    return override(run, SMALL | data | changes)
