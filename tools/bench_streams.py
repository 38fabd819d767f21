"""Seconds of a training step with residual streams around every branch, between loops, and with one stream, and their
FLOPs. One process, in turn, medians of pairs.

    python -m tools.bench_streams [--rounds 9] [--count 4] [--dim 1024]
"""

from typing import Annotated

import jax
import numpy as np
import typer

from looplm.config.schema import Data, FinalCrossEntropy, Loop, LoopStreams, Model, Optim, Run, SingleCore, Streams
from tools.bench_depth_routers import in_turn, step_of


def main(
    rounds: Annotated[int, typer.Option(help="Steps of each that count.")] = 9,
    count: Annotated[int, typer.Option(help="Streams.")] = 4,
    dim: int = 1024,
    layers: int = 1,
    loops: int = 3,
    length: int = 128,
    rows: int = 2,
    dtype: Annotated[str, typer.Option(help="Compute type.")] = "float32",
) -> None:
    """Print seconds and FLOPs of a step, and their ratios to those of one stream."""

    def run_of(core: SingleCore, streams: Streams | None) -> Run:
        return Run(
            num_steps=1,
            model=Model(vocab_size=512, dim=dim, num_heads=dim // 64, hidden_dim=4 * dim, block_layers=layers,
                        core=core, streams=streams, dtype=dtype),
            loop=Loop(num_loops=loops, remat="none"),
            objective=FinalCrossEntropy(),
            optim=Optim(learning_rate=1e-3),
            data=Data(train="", sequence_length=length, batch_tokens=rows * length),
        )  # fmt: skip

    between = SingleCore(streams=LoopStreams(count=count, loops=loops))
    runs = {
        "one stream": run_of(SingleCore(), None),
        "between loops": run_of(between, None),
        "around every branch": run_of(SingleCore(), Streams(count=count)),
    }
    built = {name: step_of(run) for name, run in runs.items()}
    seconds = in_turn({name: step for name, (step, _) in built.items()}, rounds)
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {count} streams, width {dim}, {rounds} rounds")
    plain, plain_flops = seconds["one stream"], built["one stream"][1]
    for name, (_, flops) in built.items():
        ratios = np.sort(seconds[name] / plain)
        print(
            f"{name}: {np.median(seconds[name]):.3f} s a step, {np.median(ratios):.3f} of one stream "
            f"({ratios[0]:.3f} to {ratios[-1]:.3f}), FLOPs {flops / plain_flops:.3f}"
        )


if __name__ == "__main__":
    typer.run(main)
