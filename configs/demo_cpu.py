"""A looped model that two CPU cores train in minutes: one shared layer, 4 loops, exit gate.

    looplm demo                                                    (makes the data, then trains this)
    looplm train configs/demo_cpu.py --workdir runs/demo/run       (goes on from there)

Expect a held-out loss near 3.50 nats at depth 4, about 0.1 below depth 1 (docs/benchmarks.md).
"""

from looplm.config.schema import (
    AddInjection,
    Checkpoint,
    Data,
    ExitGate,
    ExpectedCrossEntropy,
    Log,
    Loop,
    Model,
    NormalInit,
    Optim,
    Run,
    Schedule,
)


def config() -> Run:
    return Run(
        num_steps=800,
        model=Model(
            vocab_size=2048,
            dim=128,
            num_heads=4,
            num_kv_heads=2,
            hidden_dim=384,
            block_layers=1,
            injection=AddInjection(),
            exit_gate=ExitGate(),
            init=NormalInit(std=0.05),
        ),
        loop=Loop(num_loops=4, remat="none", unroll=True),
        objective=ExpectedCrossEntropy(entropy_weight=0.05),
        optim=Optim(learning_rate=8e-3, gate_rate=0.03, schedule=Schedule(warmup_steps=50)),
        data=Data(
            train="runs/demo/data/train",
            validation="runs/demo/data/validation",
            sequence_length=128,
            batch_tokens=2048,
        ),
        checkpoint=Checkpoint(every_steps=200),
        log=Log(every_steps=50),
    )
