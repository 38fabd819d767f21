"""TRM (arXiv 2510.04871): one block of two layers, two states, an update after every segment, rows that stay for 16.

    looplm train configs/trm.py:4x4 --workdir runs/trm          (Sudoku that is made on the way; minutes on a CPU)
    looplm eval runs/trm --ema --depths 3,6,12,24,48            (three loops are one segment)

`sudoku` mixes places by a SwiGLU, `maze` and `arc` by attention, as published; their data are folders of records
(docs/reasoners.md). `4x4`, `6x6` and `9x9` are for a CPU and need no data.
"""

from looplm.config.load import override
from looplm.config.puzzles import for_cpu, puzzle_run, records
from looplm.config.schema import DenseAttention, Front, Ids, Loop, Run, SequenceMLP, TwoSpeedCore

IN_FRONT = 16


def config_sudoku() -> Run:
    """5.0 M parameters."""
    return puzzle_run(
        TwoSpeedCore(inner_loops=6),
        Loop(num_loops=3, backprop_loops=1),
        front=Front(learned=1, zeros=IN_FRONT - 1),
        attention=SequenceMLP(length=81 + IN_FRONT),
    )


def config_maze() -> Run:
    """30x30, by attention: 6.8 M parameters."""
    changes = {
        "model.attention": DenseAttention(),
        "model.vocab_size": 6,
        "model.core.inner_loops": 4,
        "data": records("data/maze", 900),
    }
    return override(config_sudoku(), changes)


def config_arc() -> Run:
    """With a row for the id of every puzzle and its augmentations: set model.front.ids.num_ids to that of the data."""
    changes = {
        "model.front": Front(ids=Ids(num_ids=1_000_000, dim=512), zeros=IN_FRONT - 1),
        "model.vocab_size": 12,
        "data": records("data/arc", 900),
        "optim.optimizer.weight_decay": 0.1,
        "optim.rates": {"ids": 100.0},
    }
    return override(config_maze(), changes)


def config_4x4() -> Run:
    return for_cpu(config_sudoku(), 4, num_steps=1500, **mixing(4))


def config_6x6() -> Run:
    return for_cpu(config_sudoku(), 6, num_steps=4000, **mixing(6))


def config_9x9() -> Run:
    return for_cpu(config_sudoku(), 9, num_steps=10_000, **mixing(9))


def mixing(size: int) -> dict[str, object]:
    """The cells, and two places in front."""
    return {"model.attention": SequenceMLP(length=size**2 + 2, hidden_dim=128)}
