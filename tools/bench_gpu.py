"""What looplm does on one GPU, as tables for docs/benchmarks.md: kernels of the attention, training steps, the official
codes beside them, decoding. Less than eight minutes on an H100 or H200.

    python -m tools.bench_gpu [--ouro CHECKOUT] [--huginn CHECKOUT] [--budget-s 480] | tee table.md
    python -m tools.bench_gpu --dry        all of it on a CPU, with tiny sizes

What fails is a row that says so; the exit code is 1 then. Rows are written as they come, and none is begun when its
section's time is over. The official codes (LoopedLMs/ouro_rl, seal-rg/recurrent-pretraining) need torch with CUDA and
transformers 4.54.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer


def main(
    ouro: Annotated[Path | None, typer.Option(help="Checkout of the official code.")] = None,
    huginn: Annotated[Path | None, typer.Option(help="Checkout of the official code.")] = None,
    budget_s: Annotated[float, typer.Option(help="No row is begun after so many seconds.")] = 480.0,
    dry: Annotated[bool, typer.Option(help="Rehearse on a CPU, with tiny sizes.")] = False,
) -> None:
    """Measure, and print tables."""
    if dry:
        os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs memory too

    import jax

    from tools.gpu import decoding, kernels, steps
    from tools.gpu.table import write

    device = jax.devices()[0]
    print(f"jax {jax.__version__}, {device.device_kind}{', a rehearsal: no figure means anything' if dry else ''}")
    tables = [
        kernels.table(dry=dry),
        steps.table(dry=dry),
        steps.peers_table({"ouro": ouro, "huginn": huginn}, dry=dry),
        decoding.table(dry=dry),
    ]
    sys.exit(1 if write(tables, sys.stdout, budget_s=budget_s) else 0)


if __name__ == "__main__":
    typer.run(main)
