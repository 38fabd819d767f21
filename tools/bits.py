"""What the engine computes, bit by bit: stored before a refactoring, compared after every step of it.

    python tools/bits.py store FOLDER
    python tools/bits.py compare FOLDER [--only NAME]

Cases: every golden fixture of a whole system (states, gates, exits, router logits, loss, all gradients, with a detached
loop where there are two), two training steps on eight pretended devices (fixed, drawn and per-sequence depth; dense and
with experts), and greedy tokens. Of every training step also what its program costs: instructions, temporaries, FLOPs,
bytes between devices. Bits are those of one machine, one jax version and one number of cores: a store is no fixture.
"""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer

import looplm
from looplm.api import LoadedLM
from looplm.compile.collectives import collectives
from looplm.compile.hlo import Module
from looplm.config.load import override
from looplm.config.schema import (
    AddInjection,
    Balance,
    Data,
    ExitGate,
    ExpectedCrossEntropy,
    FinalCrossEntropy,
    Loop,
    Mesh,
    Model,
    MoE,
    Optim,
    Run,
    UniformDepth,
    ValueEmbedding,
)
from looplm.infer.exit_rule import parse_exit
from looplm.infer.generate import generate
from looplm.sharding.mesh import build_mesh
from looplm.train.metrics import readable
from looplm.train.program import Program

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
SYSTEMS = ("huginn_a", "mixtral_a", "moeut_a", "olmoe_a", "ouro_a", "parcae_a", "qwen3moe_a")
"""Fixtures of systems that looplm reads; the others are of modules."""
MAX_LOOPS = 4
Arrays = dict[str, np.ndarray]
Costs = dict[str, float]

app = typer.Typer(add_completion=False)


def fixture(folder: Path) -> Arrays:
    """Everything that a forward and a backward pass of an official model give."""
    lm, io = looplm.load(folder), np.load(folder / "io.npz")
    tokens_BS = np.atleast_2d(io["input_ids"]) % lm.model.vocab_size
    labels_BS = np.concatenate([tokens_BS[:, 1:], np.full_like(tokens_BS[:, :1], -100)], axis=1)
    loops = min(lm.loop.num_loops, MAX_LOOPS)
    start = {"initial_state": io["init_state"]} if "init_state" in io else {}
    objective = ExpectedCrossEntropy(entropy_weight=0.05) if lm.model.exit_gate else FinalCrossEntropy()

    def run(params: Any) -> tuple:
        bound = LoadedLM(lm.model, lm.loop, lm.objective, params)
        detached = min(loops - 1, 1)
        return bound(tokens_BS, num_loops=loops, **start), bound.loss_and_grads(
            tokens_BS, labels_BS, num_loops=loops, num_detached=detached, objective=objective, **start
        )

    return flat(jax.jit(run)(lm.params))


def greedy_tokens(folder: Path, exit_rule: str | None) -> Arrays:
    """Eight tokens after every prompt of an official model."""
    lm, io = looplm.load(folder), np.load(folder / "io.npz")
    options = dict(num_loops=MAX_LOOPS, max_tokens=8, temperature=0.0, seed=0, end_ids=[], num_ids=lm.model.vocab_size)
    rule = parse_exit(exit_rule, lm.model)
    rows = generate(lm.functional, lm.params, list(io["gen_prompt"]), exit=rule, kv="each", **options)
    return {str(i): row.tokens for i, row in enumerate(rows)}


def training_runs() -> dict[str, Run]:
    drawn = {"depth": UniformDepth(max_loops=4), "backprop_loops": 2}
    experts = MoE(
        num_experts=6,
        experts_per_token=2,
        expert_dim=8,
        loop_biases=2,
        balance=Balance(bias_rate=0.01, auxiliary_weight=0.01, z_loss_weight=0.001),
    )
    plain = Run(
        num_steps=10,
        model=Model(vocab_size=64, dim=16, num_heads=2, hidden_dim=32, block_layers=2, exit_gate=ExitGate()),
        loop=Loop(num_loops=3, remat="loop"),
        objective=ExpectedCrossEntropy(),
        optim=Optim(learning_rate=1e-2),
        data=Data(train="x", sequence_length=16, batch_tokens=256, accumulation_steps=2),
    )

    def variant(loop: dict[str, Any], **model: Any) -> Run:
        return plain.model_copy(
            update={"loop": plain.loop.model_copy(update=loop), "model": plain.model.model_copy(update=model)}
        )

    values = ValueEmbedding(gate_channels=8)
    return {
        "fixed": plain,
        "final": override(plain, {"objective": "final", "model.coda_layers": 1}),
        "drawn": variant(drawn, injection=AddInjection()),
        "experts": variant(drawn, feed_forward=experts, prelude_layers=1, coda_layers=1, injection=AddInjection()),
        "sequences": variant(
            {**drawn, "depth_per": "sequence"}, value_embedding=values, prelude_layers=2, block_layers=3
        ),
    }


def training_steps(run: Run) -> tuple[Arrays, Costs]:
    """Parameters and metrics of two steps, and what the program costs."""
    mesh = build_mesh(Mesh(data=2, fsdp=4))
    program = Program(run, mesh)
    compiled = program.lower().compile()
    rng, shape = np.random.default_rng(0), (16, run.data.sequence_length)
    rows = {
        "tokens": rng.integers(0, run.model.vocab_size, shape),
        "labels": rng.integers(0, run.model.vocab_size, shape),
        "segments": np.sort(rng.integers(1, 3, shape), axis=1),
        "positions": np.broadcast_to(np.arange(shape[1]), shape),
    }
    rows = {name: value.astype(np.int32) for name, value in rows.items()}
    state, found = program.create_state(), dict[str, Any]()
    for step in range(2):
        drawn = program.depths.draw(step)
        state, output = compiled(state, program.batch.place(rows, drawn), program.batch.place_drawn(drawn))
        found[f"metrics{step}"] = readable(jax.device_get(output), drawn)
    sent = collectives(Module(compiled.as_text()), mesh.shape)
    costs = {
        "instructions": compiled.as_text().count(" = "),
        "temporaries": compiled.memory_analysis().temp_size_in_bytes,
        "flops": compiled.cost_analysis()["flops"],
        "gathered": sum(one.step_bytes for one in sent if one.kind == "all-gather"),
        "reduced": sum(one.step_bytes for one in sent if one.kind in ("all-reduce", "reduce-scatter")),
    }
    return flat(found | {"params": state.params}), costs


def flat(tree: Any) -> Arrays:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def cases() -> Iterator[tuple[str, Callable[[], tuple[Arrays, Costs]]]]:
    """(name, what computes (arrays, costs))."""
    for name in SYSTEMS:
        yield name, lambda name=name: (fixture(GOLDEN / name), {})
    for name, rule in (("ouro_a", None), ("ouro_a", "gate:0.5"), ("huginn_a", None)):
        yield f"greedy {name} {rule}", lambda name=name, rule=rule: (greedy_tokens(GOLDEN / name, rule), {})
    for name, run in training_runs().items():
        yield f"train {name}", lambda run=run: training_steps(run)


@app.command()
def store(folder: Path) -> None:
    """Stores what the engine computes now."""
    folder.mkdir(parents=True)
    for name, compute in cases():
        arrays, costs = compute()
        np.savez(folder / f"{name}.npz", **arrays)
        (folder / f"{name}.json").write_text(json.dumps(costs))
        typer.echo(f"{name}: {len(arrays)} arrays {costs or ''}")


@app.command()
def compare(folder: Path, only: Annotated[str, typer.Option(help="cases whose name holds this")] = "") -> None:
    """Compares with what was stored; exit code 1 where a bit differs."""
    differs = False
    for name, compute in cases():
        if only not in name:
            continue
        arrays, costs = compute()
        before, costs_before = np.load(folder / f"{name}.npz"), json.loads((folder / f"{name}.json").read_text())
        changed = [
            f"{key} ({np.max(np.abs(arrays[key].astype(float) - before[key].astype(float))):.2g})"
            for key in arrays.keys() & set(before.files)
            if arrays[key].tobytes() != before[key].tobytes()
        ]
        missing = sorted(set(before.files) ^ arrays.keys())
        differs |= bool(changed or missing)
        typer.echo(
            f"{name}: {len(arrays)} arrays, {'equal' if not changed else f'{len(changed)} differ: {changed[:6]}'}"
        )
        if missing:
            typer.echo(f"  only in one of both: {missing[:6]}")
        for cost, value in costs.items():
            typer.echo(f"  {cost}: {costs_before[cost]:.0f} -> {value:.0f} ({value / costs_before[cost]:.4f})")
    raise typer.Exit(int(differs))


if __name__ == "__main__":
    app()
