"""`looplm adapter`: what becomes of an adapter that was trained."""

from pathlib import Path
from typing import Annotated

import typer

from looplm.cli.options import Step
from looplm.cli.output import console

app = typer.Typer(no_args_is_help=True, help="Merge an adapter into its model; export it for PEFT.")

Run = Annotated[Path, typer.Argument(help="Run directory whose model has an adapter.")]


@app.command("merge")
def adapter_merge(
    run: Run, out: Annotated[Path, typer.Argument(help="Run directory to be made.")], step: Step = None
) -> None:
    """Make a run of the model with its adapter added to the weights."""
    from looplm.convert.adapter_run import merge_run

    merge_run(run, out, console, step=step)


@app.command("export")
def adapter_export(
    run: Run,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to be made.")],
    step: Step = None,
    base: Annotated[
        str | None, typer.Option(help="Where the folder says that its base model is; what the run began from.")
    ] = None,
) -> None:
    """Write the adapter alone as PyTorch's PEFT stores it: adapter_config.json, adapter_model.safetensors."""
    from looplm.convert.peft_folder import export_adapter

    export_adapter(run, folder, console, step=step, base=base)
