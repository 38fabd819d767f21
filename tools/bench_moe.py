"""Tokens per second of a training step with experts against a dense one of equal active FLOPs; backends of the grouped
matrix product against an einsum over all experts. One process, in turn, medians.

    python tools/bench_moe.py [--rounds 5]
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from looplm.config.load import override
from looplm.config.schema import Balance, Data, FeedForward, Loop, Model, MoE, Optim, Run, SwiGLU
from looplm.ops.grouped_matmul import BACKENDS, grouped_matmul
from looplm.sharding.mesh import build_mesh
from looplm.train.flops import step_flops
from looplm.train.program import Program

STEPS = {
    "8 experts, top-2": (8, 2),
    "64 experts, top-8": (64, 8),
}
PRODUCTS = ((4096, 256, 512, 8, 2), (2048, 256, 128, 64, 8))
"""(tokens, D, F, E, k)"""


def run_of(feed_forward: FeedForward, hidden_dim: int) -> Run:
    return Run(
        num_steps=1,
        model=Model(
            vocab_size=2048, dim=256, num_heads=8, hidden_dim=hidden_dim, block_layers=2, feed_forward=feed_forward
        ),
        loop=Loop(num_loops=3, remat="none", unroll=True),
        optim=Optim(learning_rate=1e-3),
        data=Data(train="", sequence_length=256, batch_tokens=2048),
    )  # fmt: skip


def step_of(run: Run) -> tuple[Callable[[], None], float]:
    """Returns (a call that does one step, FLOPs a token)."""
    program = Program(run, build_mesh(run.mesh, jax.devices()[:1]))
    step = program.compile()
    state = [program.create_state()]
    tokens = np.random.default_rng(0).integers(0, run.model.vocab_size, (8, 256), dtype=np.int32)
    batch = {
        "tokens": tokens,
        "labels": np.roll(tokens, -1, axis=1),
        "segments": np.zeros_like(tokens),
        "positions": np.broadcast_to(np.arange(256, dtype=np.int32), tokens.shape),
    }

    def once() -> None:
        state[0], metrics = step(state[0], batch, 0)
        jax.block_until_ready(metrics)

    return once, step_flops(program.trace().jaxpr).at(0).model / run.data.batch_tokens


def measure(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of every call, in turn; the first of each is not counted."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return {name: np.array(times) for name, times in seconds.items()}


def bench_steps(console: Console, rounds: int) -> None:
    table = Table("model", "FLOPs a token", "tokens/s", "of dense (median of pairs)")
    width = 1024
    runs = {"dense": run_of(SwiGLU(), width)}
    for name, (experts, chosen) in STEPS.items():
        moe = MoE(
            num_experts=experts, experts_per_token=chosen, expert_dim=width // chosen,
            balance=Balance(bias_rate=0.001),
        )  # fmt: skip
        runs[name] = run_of(moe, width)
    first = next(iter(STEPS.values()))
    limited = {"model.feed_forward.capacity_factor": 1.25}
    runs[f"{first[0]} experts, top-{first[1]}, capacity 1.25"] = override(runs[next(iter(STEPS))], limited)
    built = {name: step_of(run) for name, run in runs.items()}
    seconds = measure({name: call for name, (call, _) in built.items()}, rounds)
    for name, (_, flops) in built.items():
        ratio = np.median(seconds["dense"] / seconds[name])
        table.add_row(name, f"{flops:,.0f}", f"{2048 / np.median(seconds[name]):,.0f}", f"{ratio:.2f}")
    console.print(table)


def bench_products(console: Console, rounds: int) -> None:
    """Forward and backward of one product, M = tokens * k rows in groups drawn at random."""
    # tokamax is XLA's product where there is no TPU.
    backends = [name for name in BACKENDS if name != "tokamax" or jax.default_backend() == "tpu"]
    table = Table("tokens, D, F, E, k", *backends, "einsum over all experts", "one dense product of these FLOPs")
    for tokens, D, F, E, k in PRODUCTS:
        keys = jax.random.split(jax.random.key(0), 3)
        x_MD, w_EDF = jax.random.normal(keys[0], (tokens * k, D)), jax.random.normal(keys[1], (E, D, F))
        sizes_E = jnp.bincount(jax.random.randint(keys[2], (tokens * k,), 0, E), length=E)
        products: dict[str, Callable] = {
            name: partial(grouped_matmul, sizes_E=sizes_E, backend=name)  # type: ignore[arg-type]
            for name in backends
        }
        products["all"] = lambda x, w, n=tokens: jnp.einsum("nD,EDF->EnF", x[:n], w)
        products["one"] = lambda x, w: x @ w[0]
        calls: dict[str, Callable[[], object]] = {}
        for name, product in products.items():
            both = jax.jit(jax.grad(lambda x, w, p=product: jnp.sum(jnp.sin(p(x, w))), argnums=(0, 1)))
            calls[name] = partial(lambda f, x, w: jax.block_until_ready(f(x, w)), both, x_MD, w_EDF)
        seconds = measure(calls, rounds)
        table.add_row(
            f"{tokens}, {D}, {F}, {E}, {k}", *(f"{1000 * np.median(seconds[name]):.1f} ms" for name in products)
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    console = Console(width=140)
    console.print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {rounds} rounds")
    bench_steps(console, rounds)
    bench_products(console, rounds)


if __name__ == "__main__":
    main()
