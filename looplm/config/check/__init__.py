"""Rules that involve several fields of a run. Each is a small function that yields what does not fit, and the remedy.

A setting that would change nothing is a fault too: whoever set it meant something else.

Rules that need the devices (does the mesh fit them?) are in `sharding.mesh`; rules that need the data (does the
vocabulary fit?) are where the data is opened.
"""

from looplm.config.check import (
    adapter,
    core,
    data,
    depth,
    ends,
    experts,
    halting,
    memory,
    model,
    own,
    places,
    streams,
    training,
    trajectory,
)
from looplm.config.check.depth import max_loops as max_loops
from looplm.config.check.depth import trained_loops as trained_loops
from looplm.config.schema import Run
from looplm.errors import UserError

FILES = (model, core, ends, halting, places, experts, data, depth, training, adapter, own, memory, streams, trajectory)
RULES = tuple(rule for file in FILES for rule in file.RULES)


def check(run: Run) -> Run:
    """Returns `run` unchanged, or raises one UserError that lists everything that does not fit."""
    faults = [fault for rule in RULES for fault in rule(run)]
    if faults:
        raise UserError("; ".join(faults))
    return run
