"""The command line: parses, calls, and turns a user's mistake into one line and exit code 2. No logic of its own.

Heavy imports are inside the commands, so that `--help` and config errors come at once.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from looplm.errors import UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
data_app = typer.Typer(no_args_is_help=True, help="Train a tokenizer; turn text into a token dataset.")
app.add_typer(data_app, name="data")
console = Console(markup=False, highlight=False, soft_wrap=True)

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

Inputs = Annotated[list[Path], typer.Option("--input", help="Text files or folders; may be given several times.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="key=value, e.g. loop.num_loops=8.")]
Workdir = Annotated[Path, typer.Argument(help="Run directory of `looplm train`.")]
Step = Annotated[int | None, typer.Option(help="Checkpoint step; the newest when left out.")]


@data_app.command("tokenizer")
def data_tokenizer(
    input: Inputs,
    vocab_size: Annotated[int, typer.Option(help="Number of pieces.")],
    out: Annotated[Path, typer.Option(help="Folder for tokenizer.model.")],
) -> None:
    """Train a SentencePiece tokenizer with byte fallback."""
    from looplm.data.source import read_documents
    from looplm.data.tokenizer import train_tokenizer

    path = train_tokenizer((document.text for document in read_documents(input)), vocab_size, out)
    console.print(f"wrote {path}")


@data_app.command("build")
def data_build(
    input: Inputs,
    tokenizer: Annotated[Path, typer.Option(help="tokenizer.model.")],
    out: Annotated[Path, typer.Option(help="Folder of the new dataset.")],
    validation_fraction: Annotated[
        float, typer.Option(help="Share of documents held out; above 0 makes OUT/train and OUT/validation.")
    ] = 0.0,
    workers: Annotated[int | None, typer.Option(help="Processes; the number of cores when left out.")] = None,
) -> None:
    """Tokenise text into a memory-mapped dataset."""
    from looplm.data.writer import build_dataset

    report = build_dataset(input, tokenizer, out, validation_fraction=validation_fraction, num_workers=workers)
    console.print(f"wrote {out}: {report}")


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A config file, e.g. configs/demo_cpu.py.")],
    workdir: Annotated[Path, typer.Option(help="Run directory; a run that is there is resumed.")],
    set: Overrides = None,
) -> None:
    """Train, or resume what is in the workdir."""
    from looplm.config.load import leaves, load_config

    run = load_config(config, set or ())
    from looplm.train.trainer import Trainer

    trainer = Trainer(run, workdir, console)
    for key, value in leaves(run).items():
        console.print(f"{key} = {value}")
    trainer.train()


@app.command()
def eval(
    workdir: Workdir,
    step: Step = None,
    depths: Annotated[str | None, typer.Option(help="Depths to score, e.g. 1,2,4,8.")] = None,
    data: Annotated[Path | None, typer.Option(help="Token dataset; the run's held-out data when left out.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the result to this JSON file.")] = None,
) -> None:
    """Held-out loss, bits per byte and accuracy at every depth, in one pass."""
    from looplm.eval.command import evaluate, print_sweep

    print_sweep(evaluate(workdir, step=step, depths=depths, data=data, out=out), console)


@app.command()
def generate(
    workdir: Workdir,
    prompt: Annotated[str, typer.Option(help="Text to go on from.")],
    loops: Annotated[int | None, typer.Option(help="Loops for every token.")] = None,
    exit: Annotated[str | None, typer.Option(help="Exit rule, e.g. gate:0.9.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens to write at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    step: Step = None,
) -> None:
    """Write text."""
    import looplm

    lm = looplm.load(workdir, step=step)
    texts = lm.generate([prompt], num_loops=loops, exit=exit, max_tokens=max_tokens, temperature=temperature, seed=seed)
    console.print(prompt + texts[0])


@app.command(name="compile")
def compile_command(
    config: Annotated[Path, typer.Argument(help="A config file, e.g. configs/ouro_1_4b.py.")],
    topology: Annotated[str, typer.Option(help="A TPU slice, e.g. v5e:4x4 or tpu7x:4x4x4, or cpu:8.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
    set: Overrides = None,
) -> None:
    """Memory, FLOPs, collectives and least time of the real training step on machines that are not there."""
    from looplm.config.load import load_config

    run = load_config(config, set or ())
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before jax is imported: no device of this machine is taken
    from looplm.compile.command import compile_run

    for line in compile_run(run, topology, as_json=json):
        console.print(line)


@app.command()
def report(workdir: Workdir) -> None:
    """Write WORKDIR/report.html."""
    from looplm.report.build import write_report

    console.print(f"wrote {write_report(workdir)}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("runs/demo"),
    set: Overrides = None,
) -> None:
    """From nothing to a trained and measured looped model, offline: data, training, depth sweep, text, report."""
    from looplm.demo import run_demo

    run_demo(out, set or (), console)


def main() -> None:
    """Entry point: 0 done, 2 the user's mistake, anything else a crash."""
    try:
        app()
    except UserError as error:
        Console(stderr=True).print(f"looplm: {error}", soft_wrap=True, highlight=False, markup=False)
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            print("looplm: interrupted; what is saved is whole, and `looplm train` goes on from it", file=sys.stderr)
            sys.stdout.flush()
            # Not sys.exit: threads that compile, read ahead or save would be torn down under themselves.
            os._exit(INTERRUPTED)
        raise
