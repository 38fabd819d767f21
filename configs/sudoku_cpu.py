"""4x4 Sudoku, answered in place: one shared layer that sees the whole grid, looped 6 times. No data has to be made.

    looplm train configs/sudoku_cpu.py --workdir runs/sudoku
    looplm eval runs/sudoku --depths 1,2,3,4,5,6,8,12

Expect 72 % of the empty cells of other puzzles right at depth 6, and 32 % at depth 1 (docs/benchmarks.md).
"""

from looplm.config.schema import (
    AddInjection,
    Data,
    Log,
    Loop,
    Model,
    NormalInit,
    Optim,
    Run,
    Schedule,
    Sudoku,
)


def config() -> Run:
    return Run(
        num_steps=500,
        model=Model(
            vocab_size=5,
            dim=64,
            num_heads=4,
            hidden_dim=192,
            block_layers=1,
            injection=AddInjection(),
            attention_mask="full",
            init=NormalInit(std=0.05),
        ),
        loop=Loop(num_loops=6, remat="none", unroll=True),
        optim=Optim(learning_rate=3e-3, schedule=Schedule(warmup_steps=30)),
        data=Data(
            train=Sudoku(in_place=True),
            validation=Sudoku(in_place=True, seed=1, num_examples=500),
            sequence_length=16,
            batch_tokens=1024,
        ),
        log=Log(every_steps=100),
    )
