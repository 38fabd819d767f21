"""URM (arXiv 2512.14693): one state, a short convolution in the feed-forward, and loops without gradient first.

    looplm train configs/urm.py:4x4 --workdir runs/urm          (Sudoku that is made on the way; minutes on a CPU)
    looplm eval runs/urm --ema --depths 12,24,48,96             (twelve loops are one segment)

`sudoku` is the published model of 13.7 M parameters; its data are a folder of records (docs/reasoners.md).
"""

from looplm.config.load import override
from looplm.config.puzzles import for_cpu, puzzle_run, records
from looplm.config.schema import ConvSwiGLU, Loop, Run, SingleCore


def config_sudoku() -> Run:
    run = puzzle_run(
        SingleCore(), Loop(num_loops=12, backprop_loops=6), block_layers=4, feed_forward=ConvSwiGLU(kernel=2)
    )
    return override(run, {"data": records("data/sudoku", 81, rows=128)})


def config_4x4() -> Run:
    return for_cpu(config_sudoku(), 4, num_steps=1500, **{"model.block_layers": 1})
