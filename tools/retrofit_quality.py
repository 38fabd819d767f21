"""A looped model cut out of a plain one and trained on, against one from scratch with twice the steps, on real text.

    python tools/retrofit_quality.py --data runs/demo

The text is that of `looplm demo`, the Python standard library, of which 5 % of the files are held out. A plain model of
eight layers is trained first, and cut into 2, 2 looped and 2. Every training is a run below --out and goes on where it
was, so a command that was stopped is given again.
"""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from looplm.config.load import override
from looplm.config.schema import (
    Checkpoint,
    ConcatInjection,
    Data,
    Eval,
    Log,
    Loop,
    Model,
    NormalInit,
    Optim,
    Run,
    Schedule,
)
from looplm.convert.retrofit.write import Wish, retrofit
from looplm.train.trainer import Trainer

console = Console(width=140)
LOOPS = 4
PLAIN = Model(
    vocab_size=2048, dim=96, num_heads=4, hidden_dim=256, block_layers=8, init=NormalInit(std=0.05), dtype="float32"
)
CUT = PLAIN.model_copy(
    update={"prelude_layers": 2, "block_layers": 2, "coda_layers": 2, "injection": ConcatInjection(init="input")}
)
RATES = {"scratch": (2e-3, 4e-3, 8e-3), "retrofit": (2e-3, 4e-3)}
"""Learning rates that are tried, with the seed 0."""


def run_of(data: Path, num_steps: int, learning_rate: float, model: Model, loops: int) -> Run:
    """A run on the text, with what all of them have in common."""
    return Run(
        num_steps=num_steps,
        model=model,
        loop=Loop(num_loops=loops, remat="none", unroll=True),
        optim=Optim(learning_rate=learning_rate, schedule=Schedule(warmup_steps=num_steps // 20)),
        data=Data(
            train=str(data / "data/train"),
            validation=str(data / "data/validation"),
            sequence_length=128,
            batch_tokens=1024,
        ),
        checkpoint=Checkpoint(every_steps=100, keep_last=1),
        eval=Eval(every_steps=50, depths=(loops,), max_batches=32),
        log=Log(every_steps=100, tensorboard=False),
    )


def trained(run: Run, workdir: Path) -> dict[int, float]:
    """Train to the last step, unless that was done. Returns held-out losses at the full depth by step, in nats."""
    name = f"eval/loss_depth_{run.loop.num_loops}"

    def losses() -> dict[int, float]:
        file = workdir / "metrics.jsonl"
        lines = map(json.loads, file.read_text().splitlines() if file.exists() else ())
        return {line["step"]: line[name] for line in lines if name in line}

    if run.num_steps not in losses():
        console.rule(str(workdir))
        Trainer(run, workdir, console).train()
    return losses()


def main(
    data: Annotated[Path, typer.Option(help="Folder of `looplm demo`, for its text.")],
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/quality"),
    seeds: Annotated[int, typer.Option(help="Trainings of both kinds.")] = 2,
    steps: Annotated[int, typer.Option(help="Of the plain model.")] = 3000,
    budget: Annotated[int, typer.Option(help="Steps from scratch; a retrofit has half of them.")] = 600,
) -> None:
    """Train both with the learning rate that is their best with the seed 0; else the first weights alone differ."""
    before = trained(run_of(data, steps, 4e-3, PLAIN, 1), out / "plain")
    cut = out / "cut"
    if not cut.exists():
        retrofit(out / "plain", cut, Wish("0:2", "3:5", "6:8", LOOPS, "concat", "given", None, None), console)
    found: dict[tuple[str, float, int], dict[int, float]] = {}

    def train(kind: str, rate: float, seed: int) -> float:
        changes = {"seed": seed} | ({"init_from": str(cut)} if kind == "retrofit" else {})
        run = run_of(data, budget if kind == "scratch" else budget // 2, rate, CUT, LOOPS)
        found[kind, rate, seed] = trained(override(run, changes), out / f"{kind}-{rate:g}-{seed}")
        return found[kind, rate, seed][run.num_steps]

    best = {kind: min(rates, key=lambda rate: train(kind, rate, 0)) for kind, rates in RATES.items()}
    for seed in range(1, seeds):
        for kind, rate in best.items():
            train(kind, rate, seed)
    print(f"plain model, {max(before)} steps: {before[max(before)]:.4f} nats")
    print("| model | rate | seed | steps | held-out loss | first below the last one from scratch, at step |")
    print("|---|---|---|---|---|---|")
    for (kind, rate, seed), curve in sorted(found.items(), reverse=True):
        goal = found["scratch", best["scratch"], seed][budget]
        reached = next((step for step, loss in curve.items() if loss <= goal), None)
        print(f"| {kind} | {rate:g} | {seed} | {max(curve)} | {curve[max(curve)]:.4f} | {reached or ''} |")


if __name__ == "__main__":
    typer.run(main)
