"""Does compiling grow with depth? Time and size of the compiled training step over loops and layers, in turn, medians.

    python tools/bench_compile.py

Every program is traced, lowered and compiled anew in one process; ratios are medians over rounds of neighbours.
"""

import statistics
import time
from typing import Annotated

import jax
import typer

from looplm.config.schema import AddInjection, Data, ExitGate, ExpectedCrossEntropy, Loop, Mesh, Model, Optim, Run
from looplm.sharding.mesh import build_mesh
from looplm.train.program import Program

PAIRS = {"loops": ((2, 4), (64, 4)), "layers": ((2, 4), (2, 24))}
"""What grows: (loops, layers) before and after."""


def compile_step(num_loops: int, num_layers: int) -> tuple[float, int]:
    """Returns (seconds to trace, lower and compile the training step, characters of the compiled program)."""
    run = Run(
        num_steps=100,
        model=Model(
            vocab_size=8192, dim=256, num_heads=4, hidden_dim=704, block_layers=num_layers, injection=AddInjection(),
            norm_placement="sandwich", exit_gate=ExitGate(),
        ),
        loop=Loop(num_loops=num_loops),
        objective=ExpectedCrossEntropy(),
        optim=Optim(learning_rate=1e-3),
        data=Data(train="none", sequence_length=256, batch_tokens=1024),
    )  # fmt: skip
    program = Program(run, build_mesh(Mesh(), jax.devices()[:1]))
    started = time.process_time()
    compiled = program.lower().compile()
    return time.process_time() - started, len(compiled.as_text())


def main(rounds: Annotated[int, typer.Option(help="Compilations of each program that count.")] = 5) -> None:
    """Prints a table."""
    compile_step(2, 4)  # what is loaded and cached on first use
    print(f"jax {jax.__version__}, {rounds} rounds, CPU seconds\n")
    print("| what grows | loops x layers | seconds | ratio | characters | ratio |\n|---|---|---|---|---|---|")
    for what, sizes in PAIRS.items():
        measured = [[compile_step(*size) for size in sizes] for _ in range(rounds)]
        seconds = [statistics.median(row[i][0] for row in measured) for i in (0, 1)]
        ratio = statistics.median(after[0] / before[0] for before, after in measured)
        characters = [measured[0][i][1] for i in (0, 1)]
        names = [" x ".join(map(str, size)) for size in sizes]
        print(
            f"| {what} | {names[0]} to {names[1]} | {seconds[0]:.2f} to {seconds[1]:.2f} | {ratio:.2f} | "
            f"{characters[0]} to {characters[1]} | {characters[1] / characters[0]:.3f} |"
        )


if __name__ == "__main__":
    typer.run(main)
