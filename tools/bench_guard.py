"""What the guard costs: the demo's training step with it and with updates that are always made, in turns.

    python tools/bench_guard.py --rounds 60

Prints medians, the median of the ratios of neighbours, and the temporary memory of both compiled steps.
"""

import argparse
import time
from collections.abc import Callable
from itertools import islice
from statistics import median
from typing import Any

import jax
import numpy as np
import optax

from looplm.config.load import load_config, override
from looplm.config.schema import Guard
from looplm.data.loader import train_loader
from looplm.data.mixture import open_mixture
from looplm.optim import build, guard
from looplm.sharding.mesh import build_mesh
from looplm.train.program import Program


def unguarded(optimizer: optax.GradientTransformation, config: Guard) -> optax.GradientTransformationExtraArgs:
    """The same state, but nothing is judged."""

    def update(gradient: Any, state: Any, params: Any, *, loss: Any, grad_norm: Any) -> tuple[Any, Any]:
        updates, inner = optimizer.update(gradient, state.optimizer, params)
        return updates, guard.Guarded(state.guard, inner)

    return optax.GradientTransformationExtraArgs(guard.guarded(optimizer, config).init, update)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--data", default="runs/demo/data/train", help="a token dataset (`looplm demo` makes this one)")
    arguments = parser.parse_args()
    run = override(load_config("demo_cpu"), {"data.train": arguments.data, "mesh.fsdp": 1})
    mesh = build_mesh(run.mesh, jax.devices()[:1])
    batches = list(islice(train_loader(open_mixture(run.data, seed=0), start_step=0, prefetch=0), 8))
    steps: dict[str, Callable] = {}
    states: dict[str, Any] = {}
    for name, wrapper in (("guarded", guard.guarded), ("unguarded", unguarded)):
        build.guarded = wrapper
        program = Program(run, mesh)
        memory = program.lower().compile().memory_analysis()
        print(f"{name}: {memory.temp_size_in_bytes:,} bytes of temporaries")
        states[name], steps[name] = program.create_state(), program.compile()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(arguments.rounds + 3):
        for name in sorted(steps, reverse=bool(index % 2)):
            started = time.perf_counter()
            states[name], metrics = steps[name](states[name], batches[index % len(batches)], index)
            jax.block_until_ready((states[name], metrics))
            seconds[name].append(time.perf_counter() - started)
    guarded, plain = (np.array(seconds[name][3:]) for name in ("guarded", "unguarded"))
    for name, taken in (("guarded", guarded), ("unguarded", plain)):
        print(f"{name}: median {1e3 * median(taken):.2f} ms, least {1e3 * taken.min():.2f} ms")
    print(f"ratio of neighbours: median {median(guarded / plain):.4f}")


if __name__ == "__main__":
    main()
