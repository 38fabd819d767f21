"""Does the loop do something? p-hop induction: one layer, looped or not, against distinct layers, and other depths.

    python tools/depth_on_p_hop.py                     prints tables, in minutes on a CPU
    python tools/depth_on_p_hop.py --hops 2 --steps 500 --seeds 1

All models get the same batches in the same order, through looplm's own training step, and differ in nothing but what
their name says. They are scored on the same sequences, of another seed. The task is `looplm.data.synthetic.p_hop`, the
comparison that of arXiv 2502.17416.
"""

import time
from typing import Annotated, Any

import jax
import numpy as np
import typer

from looplm.config.check import check
from looplm.config.load import override
from looplm.config.schema import AdamW, AddInjection, Data, Loop, Mesh, Model, NormalInit, Optim, Run, Schedule
from looplm.data.synthetic.p_hop import PHop
from looplm.eval.bootstrap import interval, resampled_means
from looplm.eval.score import Scorer
from looplm.model.functional import FunctionalLM
from looplm.sharding.mesh import build_mesh
from looplm.train.program import Program

ONCE, LOOPED, DISTINCT, POISSON = "1 layer, once", "1 layer, 6 loops", "6 layers, once", "1 layer, Poisson(6) loops"
MODELS: dict[str, dict[str, Any]] = {
    ONCE: {"loop.num_loops": 1},
    LOOPED: {},
    DISTINCT: {"model.block_layers": 6, "loop.num_loops": 1},
    POISSON: {"loop.depth": "poisson", "loop.backprop_loops": 10},
}
DEPTHS = (1, 3, 6, 12, 24)
DIFFERENCES = (((LOOPED, 6), (ONCE, 1)), ((LOOPED, 6), (DISTINCT, 1)), ((POISSON, 12), (POISSON, 6)))
"""Pairs of (model, depth) whose accuracies are compared."""
HELD_OUT_SEED = 2**31
"""Above any seed of a training."""


def run_of(task: PHop, *, dim: int, num_loops: int, num_steps: int, seed: int) -> Run:
    """The run that the models share: one layer, looped."""
    return Run(
        seed=seed,
        num_steps=num_steps,
        model=Model(
            vocab_size=task.alphabet, dim=dim, num_heads=4, hidden_dim=2 * dim, block_layers=1,
            injection=AddInjection(), init=NormalInit(std=0.05), dtype="float32",
        ),
        loop=Loop(num_loops=num_loops, remat="none", unroll=True),
        optim=Optim(
            learning_rate=3e-3,
            optimizer=AdamW(beta2=0.98, weight_decay=0.0),
            schedule=Schedule(warmup_steps=num_steps // 15),
        ),
        data=Data(train="none", sequence_length=task.length, batch_tokens=32 * task.length),
    )  # fmt: skip


def train_and_score(run: Run, task: PHop, held_out: dict[str, np.ndarray], depths: tuple[int, ...]) -> np.ndarray:
    """Trains to the last step. Returns the right answers in every held-out sequence at every depth, (G, depths)."""
    check(run)
    program = Program(run, build_mesh(Mesh(), jax.devices()[:1]))
    state, train_step = program.create_state(), program.compile()
    for step in range(run.num_steps):
        state, _ = train_step(state, task.batch(program.batch.batch_size, seed=run.seed, step=step), step)
    correct_RBS = Scorer(program.lm, program.mesh, max(depths))(state.params, held_out).correct_RBS
    return correct_RBS[np.array(depths) - 1].sum(axis=2).T


def difference(correct_GR: np.ndarray, answers_G: np.ndarray) -> str:
    """Accuracy of the first column less that of the second, in points, with its paired 95 % interval."""
    low, high = interval(100 * np.diff(resampled_means(correct_GR[:, ::-1], answers_G), axis=1)[:, 0])
    points = 100 * (correct_GR[:, 0] - correct_GR[:, 1]).sum() / answers_G.sum()
    return f"{points:+.2f} | {low:+.2f} to {high:+.2f}"


def main(
    hops: Annotated[int, typer.Option(help="p.")] = 4,
    length: Annotated[int, typer.Option(help="Letters a sequence.")] = 64,
    dim: Annotated[int, typer.Option(help="Width of the models, a multiple of 8.")] = 64,
    steps: Annotated[int, typer.Option(help="Training steps, of 32 sequences.")] = 1500,
    seeds: Annotated[int, typer.Option(help="Trainings of every model.")] = 2,
) -> None:
    """Prints the accuracy of every model at every depth, then the differences that matter."""
    task = PHop(hops, length)
    held_out = task.batch(512, seed=HELD_OUT_SEED, step=0)
    answers_G = (held_out["labels"] >= 0).sum(axis=1)
    same = (held_out["labels"] == held_out["tokens"]).sum() / answers_G.sum()
    print(f"jax {jax.__version__}, {task}, width {dim}, {steps} steps of {32 * length} tokens")
    print(f"{answers_G.sum()} answers in {len(answers_G)} held-out sequences; naming the letter itself: {same:.1%}\n")
    print(f"| model | parameters | seed |{''.join(f' depth {depth} |' for depth in DEPTHS)} seconds |")
    print("|---" * (4 + len(DEPTHS)) + "|")
    correct: dict[tuple[str, int, int], np.ndarray] = {}
    for seed in range(seeds):
        base = run_of(task, dim=dim, num_loops=6, num_steps=steps, seed=seed)
        for name, changes in MODELS.items():
            run = override(base, changes)
            # A model that never looped has one depth.
            depths = DEPTHS if run.loop.num_loops > 1 else (1,)
            started = time.perf_counter()
            correct_GR = train_and_score(run, task, held_out, depths)
            seconds = time.perf_counter() - started
            correct |= {(name, depth, seed): correct_G for depth, correct_G in zip(depths, correct_GR.T, strict=True)}
            accuracy = dict(zip(depths, correct_GR.sum(axis=0) / answers_G.sum(), strict=True))
            cells = [f"{accuracy[depth]:.1%}" if depth in accuracy else "" for depth in DEPTHS]
            row = [name, f"{FunctionalLM(run.model).num_params:,}", str(seed), *cells, f"{seconds:.0f}"]
            print(f"| {' | '.join(row)} |", flush=True)
    print("\n| difference | seed | points | 95 % interval |\n|---|---|---|---|")
    for (name, depth), (other, other_depth) in DIFFERENCES:
        for seed in range(seeds):
            pair_GR = np.stack([correct[name, depth, seed], correct[other, other_depth, seed]], axis=1)
            title = f"{name} at depth {depth} - {other} at depth {other_depth}"
            print(f"| {title} | {seed} | {difference(pair_GR, answers_G)} |")


if __name__ == "__main__":
    typer.run(main)
