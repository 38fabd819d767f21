"""The command `looplm compile`."""

import json
from collections.abc import Iterator

from looplm.compile.report import lines, report
from looplm.compile.topology import described_devices
from looplm.config.schema import Run
from looplm.sharding.mesh import build_mesh
from looplm.train.program import Program


def compile_run(run: Run, topology: str, *, as_json: bool = False) -> Iterator[str]:
    """Lines of the report, or one line of JSON. Raises UserError for an unknown topology, or one that does not fit."""
    result = report(Program(run, build_mesh(run.mesh, described_devices(topology))), topology)
    yield from [json.dumps(result.as_json())] if as_json else lines(result)
