"""Commands on a run: train it, score it, let it write, report on it."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from looplm.cli.options import (
    AllowKey,
    Compiled,
    Config,
    Coordinator,
    Ema,
    NumProcesses,
    Overrides,
    ProcessId,
    RunOrOfficial,
    Step,
    Workdir,
)
from looplm.cli.output import console, messages, write_result
from looplm.cli.processes import several
from looplm.errors import UserError


def train(
    config: Config,
    workdir: Annotated[Path, typer.Option(help="Run directory; a run that is there is resumed.")],
    set: Overrides = None,
    sdc_check: Annotated[
        int | None, typer.Option(help="Look for silent data corruption every so many steps (optim.guard.sdc_check).")
    ] = None,
    allow_key: AllowKey = None,
    compiled: Compiled = None,
    coordinator: Coordinator = None,
    num_processes: NumProcesses = None,
    process_id: ProcessId = None,
) -> None:
    """Train, or resume what is in the workdir. Exit code 75: saved after a signal, start again; 76: stopped itself."""
    from looplm.config.load import given, leaves, load_config

    options = [f"optim.guard.sdc_check={sdc_check}"] if sdc_check is not None else []
    options += [f"init_allow_keys={json.dumps(allow_key)}"] if allow_key else []
    run = load_config(config, [*(set or ()), *options])
    with several(coordinator, num_processes, process_id):
        import jax

        from looplm.compile.kept import keep_compiled
        from looplm.compile.out_of_memory import explained
        from looplm.metrics.timing import process_started
        from looplm.train.machine import for_machine
        from looplm.train.trainer import Trainer

        keep_compiled(compiled, workdir)
        run = for_machine(run, jax.devices(), given(set or ()))
        trainer = Trainer(run, workdir, console, process_started())
        for key, value in leaves(run).items():
            console.print(f"{key} = {value}")
        with explained(trainer):
            trainer.train()


def eval(
    workdir: Workdir,
    step: Step = None,
    depths: Annotated[str | None, typer.Option(help="Depths to score, e.g. 1,2,4,8.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Token dataset, or a task; the run's held-out data when left out.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the result to this JSON file.")] = None,
    ema: Ema = False,
    compiled: Compiled = None,
    coordinator: Coordinator = None,
    num_processes: NumProcesses = None,
    process_id: ProcessId = None,
) -> None:
    """Held-out loss, bits per byte and accuracy at every depth, in one pass."""
    with several(coordinator, num_processes, process_id):
        from looplm.compile.kept import keep_compiled
        from looplm.eval.command import evaluate, print_sweep

        keep_compiled(compiled, workdir)
        evaluate(
            workdir,
            step=step,
            depths=depths,
            data=data,
            out=out,
            ema=ema,
            console=console,
            shown=lambda result: print_sweep(result, console),
        )


def generate(
    workdir: RunOrOfficial,
    prompt: Annotated[str | None, typer.Option(help="Text to go on from; with --chat the user's message.")] = None,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            help="Answer as the training examples did: --prompt, standard input, or a conversation on a terminal.",
        ),
    ] = False,
    loops: Annotated[int | None, typer.Option(help="Loops for every token.")] = None,
    exit: Annotated[
        str | None, typer.Option(help="When a token leaves before the last loop, e.g. gate:0.9 or latent:0.03,min=2.")
    ] = None,
    show_exits: Annotated[
        bool, typer.Option("--show-exits", help="Print the loops that every token took on standard error.")
    ] = False,
    kv: Annotated[
        str | None,
        typer.Option(help="Keys of earlier tokens that a loop sees: ragged (the default), each, last or ring:K."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens to write at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    step: Step = None,
    ema: Ema = False,
    allow_key: AllowKey = None,
) -> None:
    """Write text: what follows a prompt, or the answers of a chat."""
    from looplm.cli.chat import answer_message, converse, read_message

    is_talk = chat and prompt is None and sys.stdin is not None and sys.stdin.isatty()
    if prompt is None and not chat:
        raise UserError("there is nothing to write about; give --prompt TEXT, or --chat")
    if prompt is None and not is_talk:
        prompt = read_message()
    import looplm
    from looplm.cli.exits import exit_lines
    from looplm.infer.prompt import require_template

    lm = looplm.load(workdir, step=step, ema=ema, allow_keys=allow_key or ())

    def write(**asked: Any) -> str:
        (text,) = lm.generate(
            num_loops=loops, exit=exit, kv=kv, max_tokens=max_tokens, temperature=temperature, seed=seed, **asked
        )
        if show_exits:
            assert lm.tokenizer is not None, "generate has asked for one"
            for line in exit_lines(text, lm.tokenizer, lm.loop.num_loops if loops is None else loops):
                messages.print(line)
        return text

    depth = f"{lm.loop.num_loops if loops is None else loops} loops"
    # Beside the text, not in it: standard output can be piped on.
    weights = f"step {lm.step}{', averaged weights' * ema}" if lm.run else "official weights"
    told = f"{weights}, {f'at most {depth}, exit {exit}' if exit else depth}"
    if chat:
        require_template(lm.chat)
        messages.print(told)

        def reply(said: list[dict[str, str]]) -> str:
            return write(messages=said)

        converse(reply) if prompt is None else answer_message(prompt, reply)
    elif prompt is not None:
        write_result(prompt + write(prompts=[prompt]))
        messages.print(told)


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
