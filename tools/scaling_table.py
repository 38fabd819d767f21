"""Rows of the tables of docs/scaling.md: training steps that are compiled for TPU slices that are not there.

    python tools/scaling_table.py ouro:1.4b@v5p:4x4x4 ouro:1.4b@v6e:8x8,mesh.context=8,data.sequence_length=32768

Every argument is a config, a slice and settings; a row is printed when it is done, and takes minutes. Needs libtpu.
"""

from typing import Annotated

import typer

from looplm.compile.report import CompileReport, report
from looplm.compile.topology import described_devices
from looplm.config.load import load_config
from looplm.errors import UserError
from looplm.sharding.mesh import build_mesh
from looplm.train.machine import for_machine
from looplm.train.program import Program

GIB, GB = 2**30, 1e9
HEADER = (
    "| model, slice | mesh | gather, remat, micro-batches | state + temporaries = GiB, of | "
    "products / memory / links, s | bound by | MFU by this bound | sent once a step, GB | in loops, GB |"
)


def compiled(row: str) -> CompileReport:
    """Compile one row: CONFIG@SLICE[,KEY=VALUE...]."""
    config, _, rest = row.partition("@")
    topology, *settings = rest.split(",")
    devices = described_devices(topology)
    run = for_machine(load_config(config, settings), devices, [one.partition("=")[0] for one in settings])
    return report(Program(run, build_mesh(run.mesh, devices)), topology)


def cells(row: str, result: CompileReport) -> list[str]:
    """Return what stands in the columns of HEADER."""
    memory = result.memory
    of = f"{result.memory_available / GIB:.2f}" if result.memory_available else "?"
    first = [
        row.replace("@", ", ").replace(",", ", ").replace(",  ", ", "),
        ", ".join(f"{axis} {size}" for axis, size in result.mesh.items()),
        f"{result.gather}, {result.remat}, {result.accumulation_steps}",
        f"{memory.arguments / GIB:.2f} + {memory.temporaries / GIB:.2f} = {memory.total / GIB:.2f} of {of}",
    ]
    if result.time is None or result.mfu is None or result.collectives is None or not result.fits:
        return [*first, *["does not fit" if result.fits is False else "unknown"] * 5]
    time = result.time
    links = time.links_in_loops_s + time.links_once_s
    terms = {"products": time.compute_s, "memory": time.memory_s, "links": time.links_in_loops_s}
    sent = [[c["bytes"] for c in result.collectives if (c["loop_depth"] > 0) == inside] for inside in (False, True)]
    return [
        *first,
        f"{time.compute_s:.3g} / {time.memory_s:.3g} / {links:.2g}",
        max(terms, key=lambda name: terms[name]),
        f"{result.mfu:.0%}",
        *(f"{sum(each) / GB:.1f}" for each in sent),
    ]


def main(rows: Annotated[list[str], typer.Argument(help="CONFIG@SLICE[,KEY=VALUE...]")]) -> None:
    """Print one row of the table for each argument."""
    print(HEADER)
    print("|" + " --- |" * (HEADER.count("|") - 1), flush=True)
    for row in rows:
        try:
            line = " | ".join(cells(row, compiled(row)))
        except UserError as error:
            line = f"{row} | refused: {error}"
        print(f"| {line} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
