"""Commands for launchers: templates filled in, and whether a run that ended is started again."""

from pathlib import Path
from typing import Annotated

import typer

from looplm.cli.output import console
from looplm.launch.exit_codes import starts_again

app = typer.Typer(no_args_is_help=True, help="Fill templates for machines, and tell launchers when to start again.")


@app.command()
def gke(
    values: Annotated[Path, typer.Argument(help="A file of values, TOML; launch/gke has examples.")],
) -> None:
    """Print the JobSet of a run on TPU slices or GPU nodes of GKE, for `kubectl apply -f -`."""
    import yaml

    from looplm.launch.gke.manifest import jobset
    from looplm.launch.gke.values import read_values

    text = yaml.safe_dump(jobset(read_values(values)), sort_keys=False, width=1000)
    console.print(f"# By `looplm launch gke {values.name}`; change that file, not this one.\n{text}".rstrip())


@app.command()
def again(
    code: Annotated[int, typer.Argument(help="The exit code of `looplm train`.")],
    starts: Annotated[int, typer.Option(help="How often the run was started again until now.")] = 0,
) -> None:
    """Whether the same command would go on with a run that ended so: exit code 0 if it would, 1 if not."""
    is_useful = starts_again(code, starts)
    console.print(f"exit code {code} after {starts} restarts: {'started again' if is_useful else 'left as it is'}")
    raise typer.Exit(int(not is_useful))
