"""The command `looplm compile`."""

import json
from collections.abc import Collection, Iterator

from looplm.compile.report import lines, report
from looplm.compile.topology import described_devices
from looplm.config.schema import Run
from looplm.sharding.mesh import build_mesh
from looplm.train.machine import for_machine
from looplm.train.program import Program


def compile_run(run: Run, topology: str, *, given: Collection[str] = (), as_json: bool = False) -> Iterator[str]:
    """Lines of the report, or one line of JSON. Raises UserError for an unknown topology, or one that does not fit.

    given: leaves of the run that its recipe for these devices leaves alone.
    """
    devices = described_devices(topology)
    run = for_machine(run, devices, given)
    result = report(Program(run, build_mesh(run.mesh, devices)), topology)
    yield from [json.dumps(result.as_json())] if as_json else lines(result)
