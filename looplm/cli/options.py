"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG[:NAME]",
        help="A config file or the name of a shipped one, and which of its configs: configs/ouro.py:1.4b, ouro:tiny.",
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="key=value, e.g. loop.num_loops=8, or model=from:DIR.")
]
Coordinator = Annotated[
    str | None, typer.Option(help="HOST:PORT of process 0, when several processes are started by hand.")
]
NumProcesses = Annotated[int | None, typer.Option(help="Processes of the whole job.")]
ProcessId = Annotated[int | None, typer.Option(help="Number of this process, from 0.")]
Workdir = Annotated[Path, typer.Argument(help="Run directory of `looplm train`.")]
RunOrOfficial = Annotated[Path, typer.Argument(help="Run directory of `looplm train`, or an official model's folder.")]
Ema = Annotated[bool, typer.Option("--ema", help="Take the moving average of the weights.")]
Compiled = Annotated[
    Path | None, typer.Option(help="Folder of compiled programs; `compiled` beside the run when left out.")
]
AllowKey = Annotated[
    list[str] | None,
    typer.Option(help="Key of an official model's config.json that looplm does not know, to pass over; repeatable."),
]
Step = Annotated[int | None, typer.Option(help="Checkpoint step; the newest when left out.")]


def written_out(overrides: list[str] | None, allow_keys: list[str] | None = None) -> list[str]:
    """The overrides, with the model of a folder in the place of `model=from:DIR`."""
    if not any(text.replace(" ", "").startswith("model=from:") for text in overrides or ()):
        return overrides or []
    from looplm.convert.from_folder import expanded

    return expanded(overrides or (), allow_keys or ())
