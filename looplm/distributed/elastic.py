"""A job that goes on with the processes that are left when some are lost, and takes in those that come back.

JAX cannot change the number of processes under a program that runs, and aborts those that cannot reach process 0. So
every host has a process that never asks for a device: it lets the same command train as a process of its own, and when
that has ended it meets the others (`meeting`) and starts it as a member of the next group. Who is lost does not come.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from looplm.distributed.join import GROUP, LISTS, check_flags, on_a_tpu_vm
from looplm.distributed.meeting import SIZES, Absent, Meeting, write
from looplm.distributed.slurm import Place, place_of_step
from looplm.errors import Preempted, UserError, note, warn
from looplm.launch.exit_codes import CRASHED, FINAL, INTERRUPTED

FOLDER = ".group"
"""In the run directory."""
POLL_S, LOOK_S = 0.1, 5.0
"""How often a host looks whether its process has ended, and whether others have come back."""
FRUITLESS = 3
"""After so many groups in a row that have saved nothing a person, or the launcher, has to look."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def place_in_job(coordinator: str | None, num_processes: int | None, process_id: int | None) -> Place:
    """Where this host belongs in the whole job, from flags or from SLURM. Raises UserError where nothing says it."""
    check_flags(coordinator, num_processes, process_id)
    if any("," in os.environ.get(name, "") for name in LISTS) or on_a_tpu_vm():
        raise UserError(
            "--elastic: the hosts of a TPU slice stand and fall together; leave it out, and let the launcher start "
            "all of them again"
        )
    if coordinator is not None and num_processes is not None and process_id is not None:
        return Place(coordinator, num_processes, process_id)
    if (place := place_of_step()) is None:
        raise UserError(
            "--elastic is for several processes, and nothing says which this is; start it with srun, or give "
            "--coordinator, --num-processes and --process-id"
        )
    return place


def train_with_those_left(place: Place, workdir: Path, newest: Callable[[], int]) -> int:
    """Let this command train in one group after the other until the run has ended. Returns the exit code.

    newest: the step of the newest checkpoint. After SIGTERM or SIGUSR1 this host leaves, with code 75 once all is
    saved; the others go on without it. Raises UserError when the run directory cannot be made.
    """
    try:
        (workdir / FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"workdir {workdir} cannot be made ({error.strerror}); give another --workdir") from error
    with _heard() as heard:
        meeting = Meeting(workdir / FOLDER, place, lambda: bool(heard))
        fruitless = 0
        while True:
            saved = newest()
            try:
                group = meeting.wait()
            except Absent as absent:
                warn(str(absent))
                return CRASHED
            if group is None:
                return INTERRUPTED if signal.SIGINT in heard else Preempted.code
            if isinstance(group, int):
                return group
            if group.process_id == 0 and group.num_processes < meeting.count:
                lost = sorted(set(range(meeting.count)) - set(meeting.group))
                note(f"{group.num_processes} of {meeting.count} processes go on; without {', '.join(map(str, lost))}")
            code = _train(group, meeting, heard)
            fruitless = 0 if newest() > saved else fruitless + 1
            if code in FINAL:
                meeting.end(code)
            if code in FINAL or (fruitless == FRUITLESS and code != Preempted.code):
                return code


def watch_over(run_sizes: Iterator[int], workdir: Path, index: int) -> None:
    """In a process that trains for an elastic job: end it when its host's other process is gone. Process 0 leaves word
    of the sizes that a group of this run can have."""
    threading.Thread(target=_end_with_parent, name="looplm-parent", daemon=True).start()
    if index == 0:
        write(workdir / FOLDER / SIZES, {"sizes": list(run_sizes)})


def _end_with_parent() -> None:
    """Nothing is ever written to standard input; it ends when the other side is gone."""
    while os.read(0, 1024):
        pass
    os._exit(CRASHED)


def _train(group: Place, meeting: Meeting, heard: list[int]) -> int:
    """One process in one group, to its end. Returns its exit code, 128 + N for signal N."""
    process = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        stdin=subprocess.PIPE,
        env=os.environ | {GROUP: json.dumps(group._asdict())},
        start_new_session=True,  # a terminal's Ctrl-C comes from here, once
    )
    passed_on, looked, has_asked = 0, time.monotonic(), False
    while (code := process.poll()) is None:
        for number in heard[passed_on:]:
            process.send_signal(number)
        passed_on = len(heard)
        if group.process_id == 0 and not has_asked and time.monotonic() - looked > LOOK_S:
            looked = time.monotonic()
            if back := meeting.newcomers():
                note(f"process {', '.join(map(str, back))} came back: the run is saved and goes on with all")
                process.send_signal(signal.SIGTERM)
                has_asked = True
        time.sleep(POLL_S)
    return code if code >= 0 else 128 - code


@contextmanager
def _heard() -> Iterator[list[int]]:
    """Inside, signals are gathered."""
    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(number)

    before = {number: signal.signal(number, hear) for number in SIGNALS}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
