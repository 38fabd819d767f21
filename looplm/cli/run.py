"""Commands on a run: train it, score it, let it write, report on it."""

import json
from pathlib import Path
from typing import Annotated

import typer

from looplm.cli import garbage
from looplm.cli.options import (
    AllowKey,
    Compiled,
    Config,
    Coordinator,
    Ema,
    NumProcesses,
    Overrides,
    ProcessId,
    Step,
    Workdir,
    written_out,
)
from looplm.cli.output import console
from looplm.cli.processes import several
from looplm.errors import UserError


def train(
    config: Config,
    workdir: Annotated[Path, typer.Option(help="Run directory; a run that is there is resumed.")],
    set: Overrides = None,
    sdc_check: Annotated[
        int | None, typer.Option(help="Look for silent data corruption every so many steps (optim.guard.sdc_check).")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Steps to profile, FIRST:LAST, into WORKDIR/profile for XProf and TensorBoard.")
    ] = None,
    allow_key: AllowKey = None,
    elastic: Annotated[
        bool, typer.Option("--elastic", help="Several processes: when some are lost, go on with those that are left.")
    ] = False,
    compiled: Compiled = None,
    coordinator: Coordinator = None,
    num_processes: NumProcesses = None,
    process_id: ProcessId = None,
) -> None:
    """Train, or resume what is in the workdir. Exit code 75: saved after a signal, start again; 76: stopped itself."""
    from looplm.config.load import given, leaves, load_config

    options = [f"optim.guard.sdc_check={sdc_check}"] if sdc_check is not None else []
    options += [f"init_allow_keys={json.dumps(allow_key)}"] if allow_key else []
    overrides = written_out(set, allow_key)
    garbage.pause()
    run = load_config(config, [*overrides, *options])
    job = None
    if elastic:
        from looplm.checkpoint.folder import steps
        from looplm.distributed.elastic import place_in_job, train_with_those_left
        from looplm.distributed.join import place_in_group

        job = place_in_job(coordinator, num_processes, process_id)
        if place_in_group() is None:
            raise typer.Exit(
                train_with_those_left(job, workdir, lambda: max(steps(workdir / "checkpoints"), default=0))
            )
    with several(coordinator, num_processes, process_id):
        import jax

        from looplm.compile.kept import keep_compiled
        from looplm.compile.out_of_memory import explained
        from looplm.metrics.timing import process_started
        from looplm.train.fewer import as_member
        from looplm.train.machine import for_machine
        from looplm.train.trainer import Trainer

        keep_compiled(compiled, workdir)
        by_user = given(overrides)
        run = as_member(run, by_user, job.num_processes, workdir) if job else for_machine(run, jax.devices(), by_user)
        trainer = Trainer(run, workdir, console, process_started(), profile)
        for key, value in leaves(run).items():
            console.print(f"{key} = {value}")
        trainer.when_set_up = garbage.resume
        with explained(trainer):
            trainer.train()


def eval(
    workdir: Workdir,
    step: Step = None,
    depths: Annotated[str | None, typer.Option(help="Depths to score, e.g. 1,2,4,8.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Token dataset, or a task; the run's held-out data when left out.")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Score tasks of lm-evaluation-harness instead, e.g. arc_easy,piqa.")
    ] = None,
    task_path: Annotated[Path | None, typer.Option(help="With --tasks: folder of your own task files (YAML).")] = None,
    limit: Annotated[int | None, typer.Option(help="With --tasks: the first so many examples of each.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the result to this JSON file.")] = None,
    ema: Ema = False,
    exit: Annotated[
        list[str] | None,
        typer.Option(
            help="Exit rule: with a threshold (gate:0.9), or to sweep it (gate), or all; repeatable. Saved in eval/."
        ),
    ] = None,
    excess: Annotated[
        float | None, typer.Option(help="With --exit: nats that a threshold may cost with 95 % confidence.")
    ] = None,
    kv: Annotated[
        list[str] | None,
        typer.Option(
            help="KV policy to measure as it writes, also under every --exit with a threshold, or all; repeatable."
        ),
    ] = None,
    first_states: Annotated[
        int, typer.Option(help="First states to compare, of a model that draws them: whether the loops forget theirs.")
    ] = 0,
    restarts: Annotated[
        int,
        typer.Option(
            help="Tries of every example of a task, of a model that draws: what choosing among them is worth."
        ),
    ] = 0,
    memory: Annotated[
        list[int] | None,
        typer.Option(
            help="Tokens of memory to compare with none and with those of training, by context length; repeatable."
        ),
    ] = None,
    classes: Annotated[
        bool, typer.Option("--classes", help="Loops by class of token, of a model whose tokens leave.")
    ] = False,
    compiled: Compiled = None,
    coordinator: Coordinator = None,
    num_processes: NumProcesses = None,
    process_id: ProcessId = None,
) -> None:
    """Held-out loss, bits per byte and accuracy at every depth; exit rules, KV policies, first states, memories."""
    with several(coordinator, num_processes, process_id):
        from looplm.compile.kept import keep_compiled
        from looplm.eval.command import evaluate
        from looplm.eval.tables import print_sweep

        keep_compiled(compiled, workdir)
        if tasks is not None:
            from looplm.lm_eval.tasks import evaluate_tasks

            others = {"data": data, "exit": exit, "excess": excess, "kv": kv, "first-states": first_states or None}
            others |= {"restarts": restarts or None, "memory": str(memory) if memory else None}
            others |= {"classes": classes or None}
            if given := [name for name, value in others.items() if value is not None]:
                raise UserError(f"--{given[0]} is of held-out data, and --tasks bring their own; leave one of them out")
            evaluate_tasks(
                workdir, tasks, task_path=task_path, depths=depths, limit=limit, step=step, ema=ema, out=out,
                console=console,
            )  # fmt: skip
            return
        if task_path is not None or limit is not None:
            raise UserError("--task-path and --limit are of tasks; give --tasks NAME too")
        evaluate(
            workdir,
            step=step,
            depths=depths,
            data=data,
            out=out,
            ema=ema,
            exits=exit or (),
            excess=excess,
            kv=kv or (),
            first_states=first_states,
            restarts=restarts,
            memory=memory or (),
            classes=classes,
            console=console,
            shown=lambda result: print_sweep(result, console),
        )


def report(
    workdir: Workdir,
    out: Annotated[Path | None, typer.Option(help="The file; WORKDIR/report.html when left out.")] = None,
) -> None:
    """Write WORKDIR/report.html."""
    from looplm.report.build import write_report

    console.print(f"wrote {write_report(workdir, out)}")


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("runs/demo"),
    set: Overrides = None,
) -> None:
    """From nothing to a trained and measured looped model, offline: data, training, depth sweep, text, report."""
    from looplm.demo import run_demo

    run_demo(out, set or (), console)
