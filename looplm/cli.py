"""The command line: parses, calls, and turns a user's mistake into one line and exit code 2. No logic of its own.

Heavy imports are inside the commands, so that `--help` and config errors come at once.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from looplm.errors import RunEnded, UserError, show
from looplm.masking import masked_output

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
data_app = typer.Typer(no_args_is_help=True, help="Train a tokenizer; turn text into a token dataset.")
app.add_typer(data_app, name="data")
checkpoint_app = typer.Typer(no_args_is_help=True, help="List, verify and remove the checkpoints of a run.")
app.add_typer(checkpoint_app, name="checkpoint")
console = Console(markup=False, highlight=False, soft_wrap=True)
messages = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)

UsageError: Any = typer.BadParameter.__base__
"""Of the click that this typer brings along or imports."""

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

Inputs = Annotated[list[Path], typer.Option("--input", help="Text files or folders; may be given several times.")]
Field = Annotated[str, typer.Option(help="Field of .jsonl and .parquet files that holds the text.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="key=value, e.g. loop.num_loops=8.")]
Coordinator = Annotated[
    str | None, typer.Option(help="HOST:PORT of process 0, when several processes are started by hand.")
]
NumProcesses = Annotated[int | None, typer.Option(help="Processes of the whole job.")]
ProcessId = Annotated[int | None, typer.Option(help="Number of this process, from 0.")]
Workdir = Annotated[Path, typer.Argument(help="Run directory of `looplm train`.")]
Ema = Annotated[bool, typer.Option("--ema", help="Take the moving average of the weights.")]
Compiled = Annotated[
    Path | None, typer.Option(help="Folder of compiled programs; `compiled` beside the run when left out.")
]
Step = Annotated[int | None, typer.Option(help="Checkpoint step; the newest when left out.")]


@data_app.command("tokenizer")
def data_tokenizer(
    input: Inputs,
    vocab_size: Annotated[int, typer.Option(help="Number of pieces.")],
    out: Annotated[Path, typer.Option(help="Folder for tokenizer.model.")],
    model_type: Annotated[str, typer.Option(help="bpe or unigram.")] = "bpe",
    symbol: Annotated[
        list[str] | None, typer.Option(help="A text that is always one piece; may be given several times.")
    ] = None,
    field: Field = "text",
    max_mb: Annotated[float | None, typer.Option(help="Read so much text at most; all when left out.")] = None,
) -> None:
    """Train a SentencePiece tokenizer with byte fallback."""
    from looplm.data.formats.document import Reading
    from looplm.data.formats.read import read_documents
    from looplm.data.source import reasons
    from looplm.data.tokenizer import train_tokenizer

    skipped: Counter[str] = Counter()
    documents = read_documents(input, skipped, Reading(field=field))
    path = train_tokenizer(
        (str(document.content) for document in documents),
        vocab_size,
        out,
        model_type=model_type,
        symbols=symbol or (),
        max_bytes=None if max_mb is None else int(max_mb * 1e6),
    )
    console.print(f"wrote {path}; skipped: {reasons(skipped)}")


@data_app.command("build")
def data_build(
    input: Inputs,
    out: Annotated[Path, typer.Option(help="Folder of the new dataset.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="tokenizer.model or tokenizer.json; may be left out for files of tokens.")
    ] = None,
    validation_fraction: Annotated[
        float, typer.Option(help="Share of documents held out; above 0 makes OUT/train and OUT/validation.")
    ] = 0.0,
    workers: Annotated[int | None, typer.Option(help="Processes; the number of cores when left out.")] = None,
    field: Field = "text",
    shuffle: Annotated[
        int | None, typer.Option(help="Seed of a random order of documents; that of the input when left out.")
    ] = None,
    dedup: Annotated[bool, typer.Option("--dedup", help="Leave out copies of earlier documents.")] = False,
    examples: Annotated[
        str | None, typer.Option(help="Supervised: pairs (prompt and answer) or chat (messages); loss on answers only.")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(help="Format with {prompt}{answer} or {role}{content}, or a file: that or Jinja."),
    ] = None,
    prompt_field: Annotated[str, typer.Option(help="With --examples pairs.")] = "prompt",
    answer_field: Annotated[str, typer.Option(help="With --examples pairs.")] = "answer",
    messages_field: Annotated[str, typer.Option(help="With --examples chat.")] = "messages",
    skip_damaged: Annotated[
        bool, typer.Option("--skip-damaged", help="Take what can be read of truncated or corrupt files.")
    ] = False,
    bos: Annotated[str | None, typer.Option(help="Name of the token that begins a document.")] = None,
    eos: Annotated[str | None, typer.Option(help="Name of the token that ends a document.")] = None,
    token_dtype: Annotated[
        str, typer.Option(help="uint16, uint32 or int32: of token files without a header.")
    ] = "uint16",
    separator_id: Annotated[int | None, typer.Option(help="Token between documents of token files.")] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Of token files without a tokenizer.")] = None,
) -> None:
    """Tokenise text into a token dataset; take over ready-made tokens. Killed, the same command goes on."""
    from looplm.data.build.bar import progress_bar
    from looplm.data.formats.document import make_reading
    from looplm.data.writer import build_dataset

    reading = make_reading(
        field=field,
        examples=examples,
        prompt_field=prompt_field,
        answer_field=answer_field,
        messages_field=messages_field,
        template=template,
        skip_damaged=skip_damaged,
        token_dtype=token_dtype,
        separator_id=separator_id,
    )
    with progress_bar(messages) as progress:
        report = build_dataset(
            input,
            tokenizer,
            out,
            reading=reading,
            bos=bos,
            eos=eos,
            vocab_size=vocab_size,
            validation_fraction=validation_fraction,
            shuffle_seed=shuffle,
            dedup=dedup,
            num_workers=workers,
            progress=progress,
        )
    console.print(f"{'found' if report.was_there else 'wrote'} {out}: {report}")
    for line in report.details():
        console.print(line)


@data_app.command("inspect")
def data_inspect(
    dataset: Annotated[str, typer.Argument(help="A dataset folder, or its address.")],
    samples: Annotated[int, typer.Option(help="Documents to show the beginning of.")] = 3,
    verify: Annotated[bool, typer.Option("--verify", help="Also read all files and compare their digests.")] = False,
) -> None:
    """Counts, a histogram of lengths and decoded samples of a dataset."""
    from looplm.data.inspect import describe

    for line in describe(dataset, samples, verify=verify):
        console.print(line)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A config file, e.g. configs/demo_cpu.py.")],
    workdir: Annotated[Path, typer.Option(help="Run directory; a run that is there is resumed.")],
    set: Overrides = None,
    sdc_check: Annotated[
        int | None, typer.Option(help="Look for silent data corruption every so many steps (optim.guard.sdc_check).")
    ] = None,
    compiled: Compiled = None,
    coordinator: Coordinator = None,
    num_processes: NumProcesses = None,
    process_id: ProcessId = None,
) -> None:
    """Train, or resume what is in the workdir. Exit code 75: saved after a signal, start again; 76: stopped itself."""
    from looplm.config.load import given, leaves, load_config

    checks = [f"optim.guard.sdc_check={sdc_check}"] if sdc_check is not None else []
    run = load_config(config, [*(set or ()), *checks])
    with _several(coordinator, num_processes, process_id):
        import jax

        from looplm.compilation import keep_compiled
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


@app.command()
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
    with _several(coordinator, num_processes, process_id):
        from looplm.compilation import keep_compiled
        from looplm.eval.command import evaluate, print_sweep

        keep_compiled(compiled, workdir)
        print_sweep(evaluate(workdir, step=step, depths=depths, data=data, out=out, ema=ema, console=console), console)


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
    ema: Ema = False,
) -> None:
    """Write text."""
    import looplm

    lm = looplm.load(workdir, step=step, ema=ema)
    texts = lm.generate([prompt], num_loops=loops, exit=exit, max_tokens=max_tokens, temperature=temperature, seed=seed)
    console.print(prompt + texts[0])
    depth = f"{lm.loop.num_loops if loops is None else loops} loops"
    # Beside the text, not in it: standard output can be piped on.
    weights = f"step {lm.step}{', averaged weights' * ema}"
    messages.print(f"{weights}, {f'at most {depth}, exit {exit}' if exit else depth}")


@checkpoint_app.command("ls")
def checkpoint_ls(workdir: Workdir) -> None:
    """One line for every checkpoint."""
    from looplm.checkpoint.command import list_checkpoints

    list_checkpoints(workdir, console)


@checkpoint_app.command("verify")
def checkpoint_verify(
    workdir: Workdir, step: Annotated[int | None, typer.Option(help="Checkpoint step; all when left out.")] = None
) -> None:
    """Compare every file and array with its digest; exit code 2 when something is damaged."""
    from looplm.checkpoint.command import verify_checkpoints

    verify_checkpoints(workdir, step, console)


@checkpoint_app.command("rm")
def checkpoint_rm(
    workdir: Workdir,
    steps: Annotated[list[int] | None, typer.Argument(help="Steps to remove.")] = None,
    damaged: Annotated[bool, typer.Option("--damaged", help="Also what a resume has set aside.")] = False,
) -> None:
    """Remove checkpoints, but never the last one that verifies."""
    from looplm.checkpoint.command import remove_checkpoints

    remove_checkpoints(workdir, steps or (), damaged, console)


@app.command(name="compile")
def compile_command(
    config: Annotated[Path, typer.Argument(help="A config file, e.g. configs/ouro_1_4b.py.")],
    topology: Annotated[str, typer.Option(help="A TPU slice, e.g. v5e:4x4 or tpu7x:4x4x4, or cpu:8.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
    set: Overrides = None,
) -> None:
    """Memory, FLOPs, collectives and least time of the real training step on machines that are not there."""
    from looplm.config.load import given, load_config

    run = load_config(config, set or ())
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before jax is imported: no device of this machine is taken
    from looplm.compile.command import compile_run

    for line in compile_run(run, topology, given=given(set or ()), as_json=json):
        console.print(line)


@app.command()
def report(workdir: Workdir) -> None:
    """Write WORKDIR/report.html."""
    from looplm.report.build import write_report

    console.print(f"wrote {write_report(workdir)}")


@app.command()
def doctor(
    folder: Annotated[Path, typer.Option(help="Where runs are kept: written to and read.")] = Path("."),
    mesh: Annotated[str | None, typer.Option(help="Mesh axes, e.g. data=2,fsdp=4.")] = None,
    coordinator: Coordinator = None,
    num_processes: NumProcesses = None,
    process_id: ProcessId = None,
) -> None:
    """Devices, mesh, timed collectives, storage and versions; exit code 2 when something is wrong."""
    with _several(coordinator, num_processes, process_id):
        from looplm.doctor.examine import examine, parse_mesh, print_health

        health = examine(parse_mesh(mesh), folder)
        print_health(health, console)
        if health.problems:
            raise UserError("; ".join(health.problems))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("runs/demo"),
    set: Overrides = None,
) -> None:
    """From nothing to a trained and measured looped model, offline: data, training, depth sweep, text, report."""
    from looplm.demo import run_demo

    run_demo(out, set or (), console)


@contextmanager
def _several(coordinator: str | None, num_processes: int | None, process_id: int | None) -> Iterator[None]:
    """Inside, this process is one of its job, and only the first one prints."""
    from looplm.distributed import joined

    with joined(coordinator, num_processes, process_id) as index:
        console.quiet = index != 0
        yield


def main() -> None:
    """Entry point: 0 done, 2 the user's mistake, 75 and 76 a run that ended on purpose, anything else a crash."""
    with masked_output():
        _main()


def _main() -> None:
    code = None
    try:
        code = app(prog_name="looplm", standalone_mode=False)
    except UserError as error:
        show(error)
        code = 2
    except RunEnded as error:
        if not console.quiet:
            show(error)
        code = error.code
    except UsageError as error:
        messages.print(_usage(error))
        code = 2
    if code == INTERRUPTED:
        messages.print("looplm: interrupted; what is saved is whole, and the same command goes on from it")
        sys.stdout.flush()
        # Not sys.exit: threads that compile, read ahead or save would be torn down under themselves.
        os._exit(INTERRUPTED)
    sys.exit(code)


def _usage(error: Any) -> str:
    """A mistake in the words of a command line, as one line; the help where no words were given."""
    message = error.format_message().strip()
    if "\n" in message:
        return message
    path = error.ctx.command_path if error.ctx else "looplm"
    return f"looplm: {message[:1].lower()}{message[1:].rstrip('.?')}; see `{path} --help`"
