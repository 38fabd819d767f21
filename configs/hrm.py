"""HRM (arXiv 2506.21734): two blocks at two speeds, a gradient through the last step of each, and learned halting.

    looplm train configs/hrm.py:4x4 --workdir runs/hrm          (Sudoku that is made on the way; minutes on a CPU)
    looplm eval runs/hrm --depths 2,4,8,16,32                   (two loops are one segment)

`sudoku` is the published model of 27 M parameters; its data are a folder of records (docs/reasoners.md).
"""

from looplm.config.load import override
from looplm.config.puzzles import for_cpu, puzzle_run
from looplm.config.schema import Loop, Run, SequenceGate, TwoSpeedCore


def config_sudoku() -> Run:
    run = puzzle_run(
        TwoSpeedCore(inner_loops=2, inner_backprop=1, high_layers=4),
        Loop(num_loops=2, backprop_loops=1),
        block_layers=4,
        sequence_gate=SequenceGate(outputs=2),
    )
    return override(run, {"optim.ema_decay": None})


def config_4x4() -> Run:
    return for_cpu(config_sudoku(), 4, num_steps=1500, **{"model.block_layers": 2, "model.core.high_layers": 2})
