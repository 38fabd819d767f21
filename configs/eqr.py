"""EqR (arXiv 2605.21488): TRM whose states begin at random, move most of the way, and are shaken a little on it.

    looplm train configs/eqr.py:4x4 --workdir runs/eqr                       (Sudoku; minutes on a CPU)
    looplm eval runs/eqr --ema --depths 3,12,48 --restarts 8                 (three loops are one segment)

`sudoku` and `maze` are the published models; their data are folders of records (docs/reasoners.md).
"""

from looplm.config.load import override
from looplm.config.puzzles import for_cpu, puzzle_run, records
from looplm.config.schema import DenseAttention, Loop, NormalState, Run, SequenceMLP, TwoSpeedCore


def config_sudoku() -> Run:
    """4.9 M parameters, and nothing in front of the cells."""
    first = NormalState(std=1.0, cut=2.0, corrected=True)
    return puzzle_run(
        TwoSpeedCore(inner_loops=6, damping=0.95, noise=0.01, low_init=first),
        Loop(num_loops=3, backprop_loops=1),
        state_init=first,
        front=None,
        attention=SequenceMLP(length=81),
    )


def config_maze() -> Run:
    """30x30 with one way: a model of 0.26 M parameters."""
    changes = {
        "model.dim": 128,
        "model.hidden_dim": 512,
        "model.embedding_scale": 128**0.5,
        "model.block_layers": 1,
        "model.attention": DenseAttention(),
        "model.vocab_size": 6,
        "model.core.inner_loops": 4,
        "data": records("data/maze", 900),
    }
    return override(config_sudoku(), changes)


def config_4x4() -> Run:
    mixing = SequenceMLP(length=16, hidden_dim=128)
    return for_cpu(config_sudoku(), 4, num_steps=1500, **{"model.front": None, "model.attention": mixing})
