"""Tokens per second of a training step: looplm against a peer, in one process, in turn, medians.

    python tools/bench_train.py                                            looplm's own unlooped twin
    python tools/bench_train.py --peer ouro --checkout CHECKOUT            official code: LoopedLMs/ouro_rl
    python tools/bench_train.py --peer huginn --checkout CHECKOUT          official code: seal-rg/recurrent-pretraining
    ... --compiled                                                         through torch.compile
    ... --burden 2                                                         beside processes that copy large arrays
    ... --side looplm, --side peer                                         one of both alone: the process's peak memory

A step is forward, backward and AdamW in float32 on the same random tokens. The twin has R x L layers with weights of
their own and runs once: the same FLOPs, but for what loops add. The official codes need torch and transformers 4.54.
"""

import importlib
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
import typer

from looplm.config.load import override
from looplm.config.schema import (
    AddInjection,
    ConcatInjection,
    Data,
    DepthScaledInit,
    ExitGate,
    ExpectedCrossEntropy,
    FinalCrossEntropy,
    Loop,
    Mesh,
    Model,
    NormalState,
    Optim,
    Rope,
    Run,
)
from looplm.sharding.mesh import build_mesh
from looplm.train.flops import step_flops
from looplm.train.program import Program

Step = Callable[[], float]
"""Runs one training step to its end; returns the loss."""

AXES: dict[str, dict] = {
    "twin": dict(injection=AddInjection()),
    "ouro": dict(norm_placement="sandwich", norm_at_loop_end=True, final_norm=False, exit_gate=ExitGate()),
    "huginn": dict(
        prelude_layers=2, coda_layers=2, qk_bias=True, rope=Rope(theta=50_000.0, layout="interleaved"),
        norm_placement="sandwich_sum", norm_before_coda=True, injection=ConcatInjection(), state_init=NormalState(),
        tie_embeddings=True, init=DepthScaledInit(effective_depth=20),
    ),
}  # fmt: skip


def run_of(peer: str, *, dim: int, layers: int, loops: int, length: int, batch: int, vocab: int, unroll: bool) -> Run:
    model = Model(
        vocab_size=vocab, dim=dim, num_heads=dim // 64, hidden_dim=dim * 11 // 4, block_layers=layers, dtype="float32",
        **AXES[peer],
    )  # fmt: skip
    return Run(
        num_steps=1000,
        model=model,
        loop=Loop(num_loops=loops, remat="none", unroll=unroll),
        objective=ExpectedCrossEntropy() if model.exit_gate else FinalCrossEntropy(),
        optim=Optim(learning_rate=1e-4),
        data=Data(train="none", sequence_length=length, batch_tokens=length * batch),
    )


def looplm_step(run: Run, tokens_BS: np.ndarray) -> Step:
    program = Program(run, build_mesh(Mesh(), jax.devices()[:1]))
    state, compiled = program.create_state(), program.compile()
    positions_BS = np.broadcast_to(np.arange(tokens_BS.shape[1], dtype=np.int32), tokens_BS.shape)
    rows = {
        "tokens": tokens_BS, "labels": np.roll(tokens_BS, -1, axis=1), "segments": np.ones_like(tokens_BS),
        "positions": positions_BS,
    }  # fmt: skip

    def step() -> float:
        nonlocal state
        state, output = compiled(state, rows, 0)
        return float(output.means["train/loss"])

    return step


def torch_step(
    peer: str, run: Run, tokens_BS: np.ndarray, checkout: Path, *, compiled: bool, threads: int, device: str = "cpu"
) -> Step:
    """The official modelling code with the same sizes, under torch's AdamW; on a GPU with bfloat16 products."""
    import torch

    torch.set_num_threads(threads)
    model, m = None, run.model
    if peer == "ouro":
        code = official(checkout / "ouro_rl" / "modeling", "modeling_ouro")
        config = code.OuroConfig(
            vocab_size=m.vocab_size,
            hidden_size=m.dim,
            intermediate_size=m.hidden_dim,
            num_hidden_layers=m.block_layers,
            num_attention_heads=m.num_heads,
            num_key_value_heads=m.num_heads,
            total_ut_steps=run.loop.num_loops,
            use_cache=False,
            tie_word_embeddings=False,
        )
        model, options = code.OuroForCausalLM(config), {"use_cache": False}
    else:
        code = official(checkout / "recpre", "raven_modeling_minimal")
        config = code.RavenConfig(
            vocab_size=m.vocab_size, n_embd=m.dim, n_heads=m.num_heads, intermediate_size=m.hidden_dim,
            n_layers_in_recurrent_block=m.block_layers, mean_recurrence=run.loop.num_loops,
            mean_backprop_depth=run.loop.num_loops, block_size=tokens_BS.shape[1], padding_multiple=1,
            activation_checkpoint_impl="none", torch_dtype="float32",
        )  # fmt: skip
        model = code.RavenForCausalLM(config)
        options = {"num_steps": torch.tensor([0, run.loop.num_loops]), "use_cache": False}
    model.float().to(device).train()
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1)
    tokens = torch.tensor(tokens_BS, dtype=torch.long, device=device)
    # Ouro's code shifts labels itself, Huginn's does not.
    labels = tokens if peer == "ouro" else torch.roll(tokens, -1, dims=1)

    def step() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            loss = forward(tokens, labels=labels, **options).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def official(folder: Path, module: str) -> ModuleType:
    """Imports one module of a checkout without running its package's __init__, which may need more packages."""
    package = ModuleType("official")
    package.__path__ = [str(folder)]
    sys.modules["official"] = package
    return importlib.import_module(f"official.{module}")


def copy_arrays(num_bytes: int = 2**28) -> None:
    """Copies an array again and again, as a busy machine's memory would be used; never returns."""
    array = np.ones(num_bytes, np.uint8)
    while True:
        array.copy()


@contextmanager
def beside(processes: int) -> Iterator[None]:
    """Runs so many processes that copy arrays of 256 MB meanwhile."""
    context = multiprocessing.get_context("spawn")
    burden = [context.Process(target=copy_arrays, daemon=True) for _ in range(processes)]
    for process in burden:
        process.start()
    try:
        yield
    finally:
        for process in burden:
            process.kill()


class Timed(NamedTuple):
    """What every step took, in seconds, by name; and its last loss."""

    wall: dict[str, list[float]]
    cpu: dict[str, list[float]]
    losses: dict[str, float]


def timed(steps: dict[str, Step], rounds: int) -> Timed:
    """Runs the steps in turn."""
    found = Timed({name: [] for name in steps}, {name: [] for name in steps}, {})
    for step in steps.values():  # warm-up
        step()
    for _ in range(rounds):
        for name, step in steps.items():
            started, cpu_started = time.perf_counter(), time.process_time()
            found.losses[name] = step()
            found.wall[name].append(time.perf_counter() - started)
            found.cpu[name].append(time.process_time() - cpu_started)
    return found


def main(
    peer: Annotated[Literal["twin", "ouro", "huginn"], typer.Option(help="What looplm is compared with.")] = "twin",
    checkout: Annotated[Path | None, typer.Option(help="Checkout of the official code.")] = None,
    compiled: Annotated[bool, typer.Option(help="Run the official code through torch.compile.")] = False,
    rounds: Annotated[int, typer.Option(help="Steps of each that count.")] = 5,
    dim: int = 512,
    layers: int = 4,
    loops: int = 4,
    length: int = 512,
    batch: int = 4,
    vocab: int = 8192,
    threads: int = 2,
    unroll: Annotated[bool, typer.Option(help="Write loops and layers out.")] = True,
    burden: Annotated[int, typer.Option(help="Processes beside it that copy arrays of 256 MB.")] = 0,
    side: Annotated[Literal["both", "looplm", "peer"], typer.Option(help="Which to run.")] = "both",
) -> None:
    """Prints rates, and the ratio or the peak of memory."""
    sizes: dict[str, Any] = dict(
        dim=dim, layers=layers, loops=loops, length=length, batch=batch, vocab=vocab, unroll=unroll
    )
    run = run_of(peer, **sizes)
    tokens_BS = np.random.default_rng(0).integers(0, vocab, (batch, length), dtype=np.int32)
    if peer != "twin" and side != "looplm" and checkout is None:
        raise typer.BadParameter(f"--peer {peer} needs --checkout")
    steps: dict[str, Step] = {}
    if side != "peer":
        steps["looplm"] = looplm_step(run, tokens_BS)
    if side != "looplm" and checkout is not None:
        steps[peer] = torch_step(peer, run, tokens_BS, checkout, compiled=compiled, threads=threads)
    elif side != "looplm":
        other_run = override(run, {"loop.num_loops": 1, "model.block_layers": layers * loops})
        steps[peer] = looplm_step(other_run, tokens_BS)
    with beside(burden):
        found = timed(steps, rounds)
    program = Program(run, build_mesh(Mesh(), jax.devices()[:1]))
    flops = step_flops(program.trace().jaxpr).at(0).model / (batch * length)
    print(f"jax {jax.__version__}, {peer}{' compiled' if compiled else ''}, {rounds} rounds, burden {burden}, {sizes}")
    print(f"losses {', '.join(f'{name} {loss:.3f}' for name, loss in found.losses.items())}")
    for name, times in found.wall.items():
        rate = batch * length / statistics.median(times)
        cpu = statistics.median(found.cpu[name])
        print(f"{name} {rate:.0f} tokens/s ({rate * flops / 1e9:.0f} GFLOP/s), {cpu:.2f} CPU seconds a step")
    if side == "both":
        wall, cpu = (
            statistics.median(b / a for a, b in zip(each["looplm"], each[peer], strict=True))
            for each in (found.wall, found.cpu)
        )
        print(f"looplm is {wall:.2f} times as fast (median of pairs), {cpu:.2f} times by CPU seconds")
    else:
        print(f"peak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    typer.run(main)
