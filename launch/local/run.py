"""Starts one looplm command as several processes on this machine, each with its own pretended devices.

    python launch/local/run.py --processes 2 --devices 4 -- looplm train CONFIG[:NAME] --workdir DIR

Output is shown as it comes, every line with the number of its process. When one process fails the others are ended
too, and its exit code is the runner's. With --devices 0 nothing is pretended: for a machine whose processes see
accelerators of their own.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

GRACE_S = 10.0
"""From the first failure to the end of all: a process that sees another lost says so and ends by itself."""


def start(command: Sequence[str], processes: int, devices: int) -> list[subprocess.Popen[bytes]]:
    environment = dict(os.environ)
    if devices:
        flags = f"{environment.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()}
    job = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", str(processes)]
    return [
        subprocess.Popen(
            [*command, *job, "--process-id", str(index)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        for index in range(processes)
    ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def show(index: int, process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        sys.stdout.buffer.write(b"[%d] %s" % (index, line))
        sys.stdout.buffer.flush()


def wait(running: Sequence[subprocess.Popen[bytes]]) -> int:
    """Returns 0, or the code of the first process that failed, once all have ended."""
    while all(process.poll() in (None, 0) for process in running):
        if all(process.poll() == 0 for process in running):
            return 0
        time.sleep(0.1)
    code = next(process.returncode for process in running if process.returncode)
    end(running, time.monotonic() + GRACE_S)
    return code if code > 0 else 128 - code  # a signal, as shells say it


def send(running: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    """Passes a signal on: training saves and ends by itself."""
    for process in running:
        process.send_signal(number)


def end(running: Sequence[subprocess.Popen[bytes]], deadline: float) -> None:
    """Lets processes end by themselves until the deadline, and kills what is left."""
    while any(process.poll() is None for process in running) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in running:
        process.kill()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, required=True, help="how many to start")
    parser.add_argument("--devices", type=int, default=1, help="pretended devices of each; 0 takes the real ones")
    parser.add_argument("command", nargs="+", help="a looplm command after --")
    arguments = parser.parse_args()
    running = start(arguments.command, arguments.processes, arguments.devices)
    # Ctrl-C reaches every process of the terminal; each of them ends by itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _: send(running, number))
    readers = [threading.Thread(target=show, args=pair) for pair in enumerate(running)]
    for reader in readers:
        reader.start()
    code = wait(running)
    for reader in readers:
        reader.join()
    return code


if __name__ == "__main__":
    sys.exit(main())
