"""Where the processes of a SLURM job step meet, and which devices of its host each of them takes.

jax takes the port from the number of the job alone, so two steps of one allocation on one host would meet at the same
place, and each would end the other. Here the step counts too, and how often the job was queued anew. And jax gives
every process the one GPU of its number on the host, so that a lone process on a host would leave all others idle, and
one that sees only its own would find none.
"""

import hashlib
import os
import re
from typing import NamedTuple

JOB, STEPS, HOSTS = "SLURM_JOB_ID", ("SLURM_STEP_ID", "SLURM_STEPID"), "SLURM_STEP_NODELIST"
RESTARTS = "SLURM_RESTART_COUNT"
COUNT, INDEX = "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"
NODE, TASKS_PER_NODE, ON_NODE = "SLURM_NODEID", "SLURM_STEP_TASKS_PER_NODE", "SLURM_LOCALID"
VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
FIRST_HOST = re.compile(r"([^\s,\[\]]+)(?:\[(\d+))?")
"""`node001`, `node001,node007`, `node[001-015],host2`."""
FIRST_PORT, NUM_PORTS = 61440, 4096
"""The end of the ephemeral range, as jax has it."""


class Place(NamedTuple):
    coordinator: str
    """HOST:PORT of process 0."""
    num_processes: int
    process_id: int
    local_devices: list[int] | None = None
    """Which of the GPUs that it sees are this process's; None means all of them."""


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
    # A job that is queued anew may find what is left of its last start on the same host.
    start = os.environ.get(RESTARTS, "0")
    number = int.from_bytes(hashlib.sha256(f"{job}.{step}.{start}".encode()).digest()[:4], "big")
    coordinator = f"{host[1]}{host[2] or ''}:{FIRST_PORT + number % NUM_PORTS}"
    return Place(coordinator, int(count), int(index), _local_devices())


def _local_devices() -> list[int] | None:
    node, mine = (os.environ.get(name, "") for name in (NODE, ON_NODE))
    if not (mine.isdigit() and node.isdigit()):
        return None
    # `8(x2),4`: eight tasks on each of the first two nodes, four on the third.
    counts = re.findall(r"(\d+)(?:\(x(\d+)\))?", os.environ.get(TASKS_PER_NODE, ""))
    tasks = [int(count) for count, repeated in counts for _ in range(int(repeated or 1))]
    if int(node) >= len(tasks) or tasks[int(node)] == 1:
        return None
    listed = next((os.environ[name] for name in VISIBLE if os.environ.get(name)), None)
    visible = tasks[int(node)] if listed is None else listed.count(",") + 1
    if visible < tasks[int(node)]:
        return None  # its own ones only
    each = visible // tasks[int(node)]
    return list(range(int(mine) * each, (int(mine) + 1) * each))
