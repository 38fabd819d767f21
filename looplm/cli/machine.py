"""Commands on machines: what a run would need on one, and whether this one is well."""

import os
from pathlib import Path
from typing import Annotated

import typer

from looplm.cli.options import Config, Coordinator, NumProcesses, Overrides, ProcessId, written_out
from looplm.cli.output import console
from looplm.cli.processes import several
from looplm.errors import UserError


def compile_command(
    config: Config,
    topology: Annotated[str, typer.Option(help="A TPU slice, e.g. v5e:4x4 or tpu7x:4x4x4, or cpu:8.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
    set: Overrides = None,
) -> None:
    """Memory, FLOPs, collectives and least time of the real training step on machines that are not there."""
    from looplm.config.load import given, load_config

    # Before jax is imported, which a config file with parts of its own does: no device of this machine is taken.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    overrides = written_out(set)
    run = load_config(config, overrides)
    from looplm.compile.command import compile_run

    for line in compile_run(run, topology, given=given(overrides), as_json=json):
        console.print(line)


def plan(
    config: Config,
    chips: Annotated[str, typer.Option(help="Number and kind, e.g. 32xH100, or a TPU slice by its shape, v5p:4x4x4.")],
    tokens: Annotated[
        str | None, typer.Option(help="Budget, e.g. 3e12 or 40B; the config's steps when left out.")
    ] = None,
    price: Annotated[float | None, typer.Option(help="Of a chip-hour, in your currency; there is no default.")] = None,
    mfu: Annotated[
        float | None, typer.Option(help="The share of the peak that you expect, e.g. 0.4; the bound when left out.")
    ] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Also compile the first recipe, for a TPU slice; takes minutes.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
    set: Overrides = None,
) -> None:
    """Recipes that fit chips that are not there, least time and cost of a training, cost of a loop, and advice."""
    from json import dumps

    from looplm.config.load import given, load_config

    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # as above
    overrides = written_out(set)
    run = load_config(config, overrides)
    from looplm.plan.command import Wish, make_plan
    from looplm.plan.report import print_plan

    found = make_plan(config, run, chips, Wish(tokens, price, mfu, compile), given(overrides))
    if json:
        console.print(dumps(found.as_json()))
    else:
        print_plan(found, console)


def doctor(
    folder: Annotated[Path, typer.Option(help="Where runs are kept: written to and read.")] = Path("."),
    mesh: Annotated[str | None, typer.Option(help="Mesh axes, e.g. data=2,fsdp=4.")] = None,
    coordinator: Coordinator = None,
    num_processes: NumProcesses = None,
    process_id: ProcessId = None,
) -> None:
    """Devices, mesh, timed collectives, storage and versions; exit code 2 when something is wrong."""
    with several(coordinator, num_processes, process_id):
        from looplm.doctor.examine import examine, parse_mesh, print_health

        health = examine(parse_mesh(mesh), folder)
        print_health(health, console)
        if health.problems:
            raise UserError("; ".join(health.problems))
