"""Seconds of a training step of TRM, one segment of deep supervision: looplm against the authors' code, in one process.

    python -m tools.bench_reasoner CHECKOUT                 SamsungSAILMontreal/TinyRecursiveModels
    python -m tools.bench_reasoner CHECKOUT --memory 16     also the peak of memory over so many segments

Float32 on the CPU, the same random rows, in turn, medians. A step is the segment with its carry, the loss, backward and
AdamW: the authors' AdamATan2 is a CUDA extension. Their sparse table of ids is left out on both sides. Needs torch.
"""

import resource
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer

from looplm.config.load import load_config, override
from looplm.config.schema import AdamW, DenseAttention, Mesh, Run, SequenceGate, Sudoku
from looplm.sharding.mesh import build_mesh
from looplm.train.program import Program
from tools.bench_train import Step, timed

CELLS, VOCAB = 81, 11
Rows = Mapping[str, np.ndarray]


def run_of(dim: int, rows: int) -> Run:
    """TRM by attention, with nothing in front of the cells."""
    changes: dict[str, Any] = {
        "model.dim": dim,
        "model.num_heads": dim // 64,
        "model.hidden_dim": -(-round(4 * dim * 2 / 3) // 256) * 256,
        "model.embedding_scale": dim**0.5,
        "model.front": None,
        "model.attention": DenseAttention(),
        "model.sequence_gate": SequenceGate(outputs=2, compares=False),
        "model.dtype": "float32",
        "loop.unroll": True,
        "loop.remat": "none",
        "optim.optimizer": AdamW(),
        "optim.ema_decay": None,
        "data.train": Sudoku(size=9, in_place=True),
        "data.validation": None,
        "data.batch_tokens": rows * CELLS,
    }
    return override(load_config("trm:sudoku"), changes)


def looplm_step(run: Run, rows: Rows) -> Step:
    """One optimizer step after the other, each on the same rows."""
    program = Program(run, build_mesh(Mesh(), jax.devices()[:1]))
    compiled, state, index = program.compile(), program.create_state(), 0

    def step() -> float:
        nonlocal state, index
        state, output = compiled(state, rows, index)
        index += 1
        return float(output.means["train/objective"])

    return step


def authors_step(run: Run, rows: Rows, checkout: Path, threads: int) -> Step:
    """The same with the authors' model and loss."""
    import torch

    torch.set_num_threads(threads)
    sys.path.insert(0, str(checkout))
    from models.losses import ACTLossHead
    from models.recursive_reasoning.trm import TinyRecursiveReasoningModel_ACTV1

    batch_size = len(rows["tokens"])
    inner = TinyRecursiveReasoningModel_ACTV1(
        dict(
            batch_size=batch_size, seq_len=CELLS, puzzle_emb_ndim=0, puzzle_emb_len=0, num_puzzle_identifiers=1,
            vocab_size=VOCAB, H_cycles=run.loop.num_loops, L_cycles=6, H_layers=0, L_layers=run.model.block_layers,
            hidden_size=run.model.dim, expansion=4, num_heads=run.model.num_heads, pos_encodings="rope",
            halt_max_steps=16, halt_exploration_prob=0.1, forward_dtype="float32",
        )
    )  # fmt: skip
    model = ACTLossHead(inner, "stablemax_cross_entropy").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.optim.learning_rate)
    batch = {
        "inputs": torch.tensor(rows["tokens"]),
        "labels": torch.tensor(rows["labels"]),
        "puzzle_identifiers": torch.zeros(batch_size, dtype=torch.int32),
    }
    carry = model.initial_carry(batch)

    def step() -> float:
        nonlocal carry
        carry, loss, *_ = model(return_keys=[], carry=carry, batch=batch)
        (loss / batch_size).backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach()) / batch_size

    return step


def main(
    checkout: Annotated[Path, typer.Argument(help="Checkout of the authors' code.")],
    rounds: Annotated[int, typer.Option(help="Steps of each that count.")] = 5,
    dim: int = 256,
    rows: int = 32,
    threads: int = 2,
    memory: Annotated[int, typer.Option(help="Segments over which looplm's memory is looked at; 0: not.")] = 0,
) -> None:
    """Prints seconds a step and their ratio."""
    run, draw = run_of(dim, rows), np.random.default_rng(0)
    tokens, labels = (draw.integers(1, VOCAB, (rows, CELLS), dtype=np.int32) for _ in range(2))
    positions = np.broadcast_to(np.arange(CELLS, dtype=np.int32), tokens.shape)
    given = {"tokens": tokens, "labels": labels, "segments": np.ones_like(tokens), "positions": positions}
    steps = {"looplm": looplm_step(run, given)}
    for segment in range(1, memory + 1):
        steps["looplm"]()
        if segment in (1, memory):
            print(
                f"peak after {segment} segments: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.3f} GiB"
            )
    steps["authors"] = authors_step(run, given, checkout, threads)
    found = timed(steps, rounds)
    print(f"jax {jax.__version__}, dim {dim}, {rows} rows of {CELLS} cells, {rounds} rounds, losses {found.losses}")
    for name, times in found.wall.items():
        print(f"{name}: {statistics.median(times):.3f} s, {statistics.median(found.cpu[name]):.3f} CPU s a step")
    wall, cpu = (
        statistics.median(b / a for a, b in zip(each["looplm"], each["authors"], strict=True))
        for each in (found.wall, found.cpu)
    )
    print(f"looplm is {wall:.2f} times as fast (median of pairs), {cpu:.2f} times by CPU seconds")


if __name__ == "__main__":
    typer.run(main)
