"""Training steps: dense and with experts, and against the official codes."""

import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from looplm.config.load import override
from looplm.config.schema import Balance, Data, Loop, Mesh, Model, MoE, Optim, Run
from looplm.hardware import GIB
from looplm.hardware import find as find_device
from looplm.sharding.mesh import build_mesh
from looplm.train.flops import step_flops
from looplm.train.memory import memory_of
from looplm.train.program import Program
from tools.bench_train import run_of, torch_step
from tools.gpu.table import Row, Table

Peer = Literal["ouro", "huginn"]
ROUNDS = 5


class Sizes(NamedTuple):
    """Of a model and its batch."""

    dim: int
    layers: int
    loops: int
    length: int
    batch: int
    vocab: int
    experts: int


REAL = Sizes(2048, 4, 4, 4096, 8, 32_768, experts=16)
DRY = Sizes(64, 1, 2, 128, 2, 256, experts=4)
OF_PEERS, OF_PEERS_DRY = Sizes(2048, 4, 4, 2048, 8, 32_768, experts=0), DRY


def table(*, dry: bool) -> Table:
    """Make the section of looplm's own steps."""
    sizes = DRY if dry else REAL
    return Table(
        "Training steps",
        f"Forward, backward and AdamW, layers recomputed but for their branches (`remat=names`); {sizes}, heads of "
        f"{64 if dry else 128}, packed documents, top-2 of the experts with half the width each; medians of {ROUNDS}. "
        "MFU counts model FLOPs, AFU also what is computed again or masked; memory is the program's.",
        ("model", "attention", "tokens/s", "ms a step", "MFU", "AFU", "memory, GiB", "compile, s", "loss"),
        partial(own_rows, sizes),
        share=0.3,
    )


def peers_table(checkouts: dict[Peer, Path | None], *, dry: bool) -> Table:
    """Make the section of the official codes."""
    sizes = OF_PEERS_DRY if dry else OF_PEERS
    return Table(
        "Training steps of the official codes",
        f"The same step by the official modelling code through `torch.compile`, bfloat16 products (autocast), and by "
        f"looplm, one after the other in one process; {sizes}, nothing recomputed; medians of {ROUNDS}.",
        ("code", "looplm, tokens/s", "official, tokens/s", "looplm is so many times as fast", "losses"),
        partial(peer_rows, sizes, checkouts),
        share=0.2,
    )


def own_rows(sizes: Sizes) -> Iterator[Row]:
    """Yield a dense step, one with experts, and the dense one by other backends of the attention."""
    dense = own_run(sizes)
    half = dense.model.hidden_dim // 2
    experts = MoE(num_experts=sizes.experts, experts_per_token=2, expert_dim=half, balance=Balance(bias_rate=1e-3))
    yield Row(("dense",), partial(measure_own, dense))
    yield Row(("experts",), partial(measure_own, override(dense, {"model.feed_forward": experts})))
    for backend in ("triton", "blockwise", "dense"):
        yield Row(("dense",), partial(measure_own, override(dense, {"model.attention_backend": backend})))


def own_run(sizes: Sizes) -> Run:
    """Make the run of the dense step."""
    heads = max(1, sizes.dim // 128)
    return Run(
        num_steps=1000,
        model=Model(
            vocab_size=sizes.vocab, dim=sizes.dim, num_heads=heads, hidden_dim=sizes.dim * 11 // 4,
            block_layers=sizes.layers, dtype="bfloat16",
        ),
        loop=Loop(num_loops=sizes.loops, remat="names"),
        optim=Optim(learning_rate=1e-4),
        data=Data(train="none", sequence_length=sizes.length, batch_tokens=sizes.length * sizes.batch),
    )  # fmt: skip


def tokens_of(run: Run) -> np.ndarray:
    """Draw tokens, (B, S)."""
    shape = run.data.batch_tokens // run.data.sequence_length, run.data.sequence_length
    return np.random.default_rng(0).integers(0, run.model.vocab_size, shape, dtype=np.int32)


def measure_own(run: Run) -> Sequence[str]:
    """Return the cells of a run's step."""
    started = time.perf_counter()
    step, program, compiled, flops = step_of(run)
    compiled_s = time.perf_counter() - started
    loss = step()
    seconds = [timed(step) for _ in range(ROUNDS)]
    step_s = statistics.median(seconds)
    device = find_device(jax.devices()[0].device_kind)
    shares = [f"{x / step_s / device.peak_flops:.1%}" if device else "unknown device" for x in flops]
    memory = memory_of(compiled).total / GIB
    return [
        program.attention.partition(";")[0], f"{run.data.batch_tokens / step_s:,.0f}", f"{1e3 * step_s:.1f}", *shares,
        f"{memory:.1f}", f"{compiled_s:.0f}", f"{loss:.3f}",
    ]  # fmt: skip


def step_of(run: Run) -> tuple[Callable[[], float], Program, jax.stages.Compiled, tuple[float, float]]:
    """Compile a step. Returns (a call that does one step and gives the loss, its program, (model, hardware) FLOPs)."""
    program = Program(run, build_mesh(Mesh(), jax.devices()[:1]))
    traced = program.trace()
    flops, compiled = step_flops(traced.jaxpr).at(0), traced.lower().compile()
    tokens_BS = tokens_of(run)
    places_BS = np.broadcast_to(np.arange(tokens_BS.shape[1], dtype=np.int32), tokens_BS.shape)
    documents_BS = 1 + (places_BS > tokens_BS.shape[1] // 3).astype(np.int32)
    rows = {
        "tokens": tokens_BS, "labels": np.roll(tokens_BS, -1, axis=1), "segments": documents_BS, "positions": places_BS,
    }  # fmt: skip
    drawn = program.depths.draw(0)
    batch, depth = program.batch.place(rows, drawn), program.batch.place_drawn(drawn)
    held: list[Any] = [program.create_state()]

    def step() -> float:
        held[0], output = compiled(held[0], batch, depth)
        return float(output.means["train/loss"])

    return step, program, compiled, (flops.model, flops.hardware)


def timed(step: Callable[[], float]) -> float:
    """Return the seconds of one step."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def peer_rows(sizes: Sizes, checkouts: dict[Peer, Path | None]) -> Iterator[Row]:
    """Yield the official codes."""
    for peer, checkout in checkouts.items():
        yield Row((peer,), partial(measure_peer, peer, checkout, sizes))


def measure_peer(peer: Peer, checkout: Path | None, sizes: Sizes) -> Sequence[str]:
    """Return the cells of a peer, or why it is not run."""
    if checkout is None:
        return [f"not run: --{peer} CHECKOUT of the official code was not given"]
    if importlib.util.find_spec("torch") is None:
        return ["not run: torch is not installed"]
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and jax.default_backend() != "cpu":
        return ["not run: this torch sees no GPU"]
    run = run_of(
        peer, dim=sizes.dim, layers=sizes.layers, loops=sizes.loops, length=sizes.length, batch=sizes.batch,
        vocab=sizes.vocab, unroll=True,
    )  # fmt: skip
    if device == "cuda":
        run = override(run, {"model.dtype": "bfloat16"})
    ours = step_of(run)[0]
    theirs = torch_step(peer, run, tokens_of(run), checkout, compiled=True, threads=2, device=device)
    losses = [ours(), theirs()]
    theirs()  # torch.compile may compile once more
    pairs = [(timed(ours), timed(theirs)) for _ in range(ROUNDS)]
    rates = [run.data.batch_tokens / statistics.median(seconds) for seconds in zip(*pairs, strict=True)]
    ratio = statistics.median(b / a for a, b in pairs)
    del theirs
    if device == "cuda":
        torch.cuda.empty_cache()
    return [f"{rates[0]:,.0f}", f"{rates[1]:,.0f}", f"{ratio:.2f}", " / ".join(f"{loss:.3f}" for loss in losses)]
