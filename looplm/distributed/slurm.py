"""Where the processes of a SLURM job step meet.

jax takes the port from the number of the job alone, so two steps of one allocation on one host would meet at the same
place, and each would end the other. Here the step counts too.
"""

import hashlib
import os
import re
from typing import NamedTuple

JOB, STEPS, HOSTS = "SLURM_JOB_ID", ("SLURM_STEP_ID", "SLURM_STEPID"), "SLURM_STEP_NODELIST"
COUNT, INDEX = "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"
FIRST_HOST = re.compile(r"([^\s,\[\]]+)(?:\[(\d+))?")
"""`node001`, `node001,node007`, `node[001-015],host2`."""
FIRST_PORT, NUM_PORTS = 61440, 4096
"""The end of the ephemeral range, as jax has it."""


class Place(NamedTuple):
    coordinator: str
    """HOST:PORT of process 0."""
    num_processes: int
    process_id: int


def place_of_step() -> Place | None:
    """Where this job step meets, from the environment; None where that does not say all of it, or jax is told
    otherwise."""
    step = next((os.environ[name] for name in STEPS if name in os.environ), None)
    job, count, index = (os.environ.get(name, "") for name in (JOB, COUNT, INDEX))
    host = FIRST_HOST.match(os.environ.get(HOSTS, ""))
    if step is None or host is None or "JAX_COORDINATOR_ADDRESS" in os.environ:
        return None
    if not (job and count.isdigit() and index.isdigit() and int(index) < int(count)):
        return None
    number = int.from_bytes(hashlib.sha256(f"{job}.{step}".encode()).digest()[:4], "big")
    return Place(f"{host[1]}{host[2] or ''}:{FIRST_PORT + number % NUM_PORTS}", int(count), int(index))
