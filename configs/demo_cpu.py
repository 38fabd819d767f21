"""A looped model that two CPU cores train in minutes: 2 shared layers, 4 loops, exit gate.

    looplm demo                                                    (makes the data, then trains this)
    looplm train configs/demo_cpu.py --workdir runs/demo/run       (goes on from there)

Expect, on the source of Python's standard library: see docs/benchmarks.md.
"""

from looplm.config.schema import (
    Checkpoint,
    Data,
    Eval,
    ExitGate,
    ExpectedCrossEntropy,
    Loop,
    Model,
    Optim,
    Run,
    Schedule,
)


def config() -> Run:
    return Run(
        num_steps=300,
        model=Model(
            vocab_size=2048,
            dim=128,
            num_heads=4,
            num_kv_heads=2,
            hidden_dim=384,
            block_layers=2,
            norm_placement="sandwich",
            norm_at_loop_end=True,
            final_norm=False,
            exit_gate=ExitGate(),
            tie_embeddings=True,
        ),
        loop=Loop(num_loops=4, remat="none", unroll=True),
        objective=ExpectedCrossEntropy(),
        optim=Optim(learning_rate=3e-3, schedule=Schedule(warmup_steps=30)),
        data=Data(
            train="runs/demo/data/train",
            validation="runs/demo/data/validation",
            sequence_length=256,
            batch_tokens=4096,
        ),
        checkpoint=Checkpoint(every_steps=100),
        eval=Eval(depths=tuple(range(1, 9))),
    )
