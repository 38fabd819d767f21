"""Makes this process one of several: from explicit flags, or from what the cluster says in the environment."""

import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, NoReturn

from looplm.distributed.slurm import Place, place_of_step
from looplm.distributed.watch import ALL_AGAIN, THE_REST, Watch
from looplm.errors import RunEnded, UserError, show

HEARTBEAT_TIMEOUT_S = 40
"""After so long without a heartbeat the JAX runtime ends every process, the hung or unreachable one named in its log.
A process that dies is noticed at once, by `Watch`."""
JOIN_TIMEOUT_S = 300
EXPLANATION_S = 3.0
"""A collective fails a moment before the watch knows whose fault it was."""
GROUP = "LOOPLM_GROUP"
"""Holds the place of a process that trains for an elastic job, as JSON; see `elastic`."""

COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MEGASCALE_NUM_SLICES")
"""Variables in which a cluster says how many processes (or slices) there are."""
LISTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
"""Variables that list the hosts, separated by commas."""


@contextmanager
def joined(coordinator: str | None, num_processes: int | None, process_id: int | None) -> Iterator[int]:
    """Inside, `jax.devices()` are those of all processes, and a process that fails or dies ends the others.

    Must be entered before anything else asks jax for a device. Without flags and without a cluster nothing happens:
    no network, no delay. Gives the number of this process.

    Args:
        coordinator: HOST:PORT that process 0 will listen on; all three or none.
        num_processes: of the whole job.
        process_id: 0 .. num_processes - 1.

    Raises UserError for flags that do not fit together or a cluster that does not answer.
    """
    check_flags(coordinator, num_processes, process_id)
    group = place_in_group()
    if coordinator is None and group is None and sign_of_others() is None and not on_a_tpu_vm():
        yield 0
        return
    import jax

    _initialize(coordinator, num_processes, process_id)
    if jax.process_count() == 1:
        yield 0
        return
    watch: Watch | None = None
    try:
        watch = Watch(jax.process_index(), jax.process_count(), THE_REST if group else ALL_AGAIN)
        yield jax.process_index()
    except KeyboardInterrupt:
        if watch is not None:
            watch.fail("interrupted")
        raise
    except RunEnded:
        _finish(watch)  # all of them end so
        raise
    except UserError as error:
        if watch is not None:
            watch.fail(str(error))
        show(error)
        leave(2)
    except Exception as error:
        time.sleep(EXPLANATION_S)  # if another process was lost, the watch ends this one here
        if watch is not None:
            watch.fail(f"{type(error).__name__}: {error}")
        traceback.print_exc()
        leave(1)
    _finish(watch)


def place_in_group() -> Place | None:
    """Where this process belongs, when it trains for an elastic job."""
    return Place(**json.loads(os.environ[GROUP])) if GROUP in os.environ else None


def end_process(code: int, reason: str) -> NoReturn:
    """From any thread: tells the other processes why, and ends this one at once."""
    if (watch := Watch.current) is not None:
        watch.fail(reason)
    leave(code)


def _finish(watch: Watch | None) -> None:
    import jax

    assert watch is not None
    watch.finish()
    jax.distributed.shutdown()


def check_flags(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Raises UserError unless all three are given and fit, or none is."""
    flags = {"--coordinator": coordinator, "--num-processes": num_processes, "--process-id": process_id}
    missing = [name for name, value in flags.items() if value is None]
    if len(missing) == len(flags):
        return
    if missing:
        raise UserError(f"{', '.join(missing)} missing; give all of {', '.join(flags)}, or none of them")
    assert coordinator is not None
    assert num_processes is not None
    assert process_id is not None
    host, colon, port = coordinator.rpartition(":")
    if not (host and colon and port.isdigit()):
        raise UserError(f"--coordinator {coordinator} is not HOST:PORT, e.g. 10.0.0.1:9876 (a free port of process 0)")
    if not 0 <= process_id < num_processes:
        raise UserError(f"--process-id {process_id} is not below --num-processes {num_processes}; count from 0")


def sign_of_others() -> str | None:
    """The variable that speaks of several processes, if there is one. jax's own detection does the rest; asking it
    always would cost a lone process in a pod calls over the network."""
    counts = (name for name in COUNTS if (count := os.environ.get(name, "")).isdigit() and int(count) > 1)
    lists = (name for name in LISTS if "," in os.environ.get(name, ""))
    jobs = (name for name in ["JOB_COMPLETION_INDEX"] if {name, "KUBERNETES_SERVICE_HOST"} <= set(os.environ))
    return next(chain(counts, lists, jobs), None)


def wait_for_all(name: str) -> None:
    """A barrier; returns at once in a single process."""
    import jax

    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def on_a_tpu_vm() -> bool:
    """A Cloud TPU VM says the number of its hosts by its metadata server only. Importing jax there sets a variable."""
    if not any(os.path.exists(device) for device in ("/dev/accel0", "/dev/vfio/0")):
        return False
    import jax  # noqa: F401

    return "TPU_ML_PLATFORM" in os.environ


def _initialize(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    import jax

    # It would swallow SIGTERM; nothing here asks it.
    jax.config.update("jax_enable_preemption_service", False)
    more: dict[str, Any] = {}
    group = place_in_group()
    place = group or (place_of_step() if coordinator is None else None)
    if place is not None:
        coordinator, num_processes, process_id, devices = place
        more = {"local_device_ids": devices, "cluster_detection_method": "deactivate"}
    if coordinator is not None and process_id == 0:
        _check_free(coordinator)
    try:
        with _without_proxies():
            jax.distributed.initialize(
                coordinator,
                num_processes,
                process_id,
                heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
                initialization_timeout=JOIN_TIMEOUT_S,
                **more,
            )
    except ValueError as error:
        if (sign := sign_of_others()) is not None and coordinator is None:
            raise UserError(
                f"{sign}={os.environ[sign]} speaks of several processes, but jax cannot tell which this is ({error}); "
                "on Kubernetes pip install jax[k8s]; else give --coordinator, --num-processes, --process-id"
            ) from error
        if coordinator is not None:
            raise
        # A TPU VM that is alone.
    except RuntimeError as error:
        if group is not None:
            raise  # a member was lost on its way; the next group is without it
        reason = str(error).splitlines()[0]
        raise UserError(f"process {process_id} could not join at {coordinator or 'the cluster'}: {reason}") from error


def _check_free(coordinator: str) -> None:
    """Raises UserError when another process listens on the port already: its job would be joined, and ended by that."""
    port = int(coordinator.rpartition(":")[2])
    family, host = (socket.AF_INET6, "::") if socket.has_dualstack_ipv6() else (socket.AF_INET, "")
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what only waits for its end is free
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"port {port} of process 0 cannot be had ({error.strerror}): another job may listen there; give all "
                "processes --coordinator HOST:PORT with a free port, --num-processes and --process-id"
            ) from error


@contextmanager
def _without_proxies() -> Iterator[None]:
    """Processes of a job speak to each other directly; gRPC would ask the proxy of the environment, be it for
    localhost, and hang."""
    proxies = {name: os.environ.pop(name) for name in list(os.environ) if name.lower().endswith("_proxy")}
    try:
        yield
    finally:
        os.environ.update(proxies)


def leave(code: int) -> NoReturn:
    """Ends this process at once. Not sys.exit: jax would wait minutes for other processes, and threads that compile,
    read ahead or save would be waited for or torn down under themselves."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
