"""`looplm checkpoint`: the checkpoints of a run."""

from typing import Annotated

import typer

from looplm.cli.options import Workdir
from looplm.cli.output import console

app = typer.Typer(no_args_is_help=True, help="List, verify and remove the checkpoints of a run.")


@app.command("ls")
def checkpoint_ls(workdir: Workdir) -> None:
    """One line for every checkpoint."""
    from looplm.checkpoint.command import list_checkpoints

    list_checkpoints(workdir, console)


@app.command("verify")
def checkpoint_verify(
    workdir: Workdir, step: Annotated[int | None, typer.Option(help="Checkpoint step; all when left out.")] = None
) -> None:
    """Compare every file and array with its digest; exit code 2 when something is damaged."""
    from looplm.checkpoint.command import verify_checkpoints

    verify_checkpoints(workdir, step, console)


@app.command("rm")
def checkpoint_rm(
    workdir: Workdir,
    steps: Annotated[list[int] | None, typer.Argument(help="Steps to remove.")] = None,
    damaged: Annotated[bool, typer.Option("--damaged", help="Also what a resume has set aside.")] = False,
) -> None:
    """Remove checkpoints, but never the last one that verifies."""
    from looplm.checkpoint.command import remove_checkpoints

    remove_checkpoints(workdir, steps or (), damaged, console)
