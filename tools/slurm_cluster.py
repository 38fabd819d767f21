"""A SLURM of one's own on this machine: a controller and nodes of the real programs, in a folder, gone at the end.

    apt-get install slurm-wlm munge

Needs no root, touches no file outside of its folder, and ends the processes that it started by their numbers. The nodes
share this machine's cores; what they say of themselves (CPUs) is what the configuration says.
"""

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel")
CREDENTIAL_S = 10
"""How long a job step's credential lasts; a job that is requeued waits so long."""
SLURMD_TIMEOUT_S = 20
"""A node that does not answer for so long is down."""
KILL_WAIT_S = 60
"""From SIGTERM to SIGKILL: a tiny run saves within it on a machine that is busy with other things."""
WAIT_S = 120
NODES = ("127.0.0.1", "127.0.0.2")
"""Names that lead to this machine without a line in /etc/hosts: the processes of a job meet at the name of a node."""
EXTRA_PATH = ("/usr/sbin", "/sbin")

CONFIG = """\
ClusterName=drill
FirstJobId={first_job}
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={controller_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire={credential_s}
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
KillWait={kill_wait_s}
SlurmdParameters=config_overrides
SlurmdTimeout={slurmd_timeout_s}
SlurmctldTimeout=30
InactiveLimit=0
MinJobAge=600
ReturnToService=2
JobRequeue=1
UnkillableStepTimeout=120
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class SlurmCluster:
    """Runs inside `with`.

    Args:
        folder: an empty one with a short path (sockets lie in it).
        nodes: their names.
        cpus: of each node, as it says.
    """

    def __init__(self, folder: Path, nodes: Sequence[str] = NODES, cpus: int = 4):
        self.folder, self.nodes, self.cpus = folder, tuple(nodes), cpus
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        path = os.pathsep.join([os.environ["PATH"], *EXTRA_PATH])
        self.environment = {**os.environ, "PATH": path, "SLURM_CONF": str(folder / "slurm.conf")}

    def __enter__(self) -> Self:
        try:
            self._set_up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.nodes:
            self.lose_node(name)
        for name in reversed(list(self.daemons)):
            self._end(name)

    # --- nodes -------------------------------------------------------------------------------------------------------

    def start_node(self, name: str) -> None:
        self._start(f"slurmd {name}", "slurmd", "-D", "-N", name)

    def lose_node(self, name: str) -> None:
        """As if its power were cut: its daemon and everything that it runs are killed."""
        if f"slurmd {name}" not in self.daemons:
            return
        victims = self.processes_of(name)
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        daemon = self.daemons.pop(f"slurmd {name}")
        daemon.kill()
        daemon.wait()

    def processes_of(self, name: str) -> list[int]:
        """What a node runs, by the variable that SLURM gives to all of it, and the processes that started these."""
        parents = {pid: parent for pid in _pids() if (parent := _parent(pid)) is not None}
        mark = {f"SLURMD_NODENAME={name}".encode(), f"SLURM_CONF={self.folder / 'slurm.conf'}".encode()}
        running = [pid for pid in parents if mark <= _variables(pid)]
        keepers = {parents[pid] for pid in running if _command(parents[pid]).startswith("slurmstepd")}
        return [*running, *keepers]

    # --- commands ----------------------------------------------------------------------------------------------------

    def command(self, *words: str, check: bool = True, **variables: str) -> str:
        """What a command of SLURM prints."""
        done = subprocess.run(
            words, env=self.environment | variables, capture_output=True, text=True, check=False, timeout=WAIT_S
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout.strip()

    def submit(self, *words: str, **variables: str) -> str:
        """The number of a new batch job."""
        return self.command("sbatch", "--parsable", *words, **variables)

    def job(self, number: str) -> Mapping[str, str]:
        """What SLURM knows of a job: JobState, Restarts, Reason, ..."""
        return _fields(self.command("scontrol", "show", "job", "--oneliner", number))

    def node_state(self, name: str) -> str:
        return _fields(self.command("scontrol", "show", "node", "--oneliner", name))["State"]

    # --- daemons -----------------------------------------------------------------------------------------------------

    def _set_up(self) -> None:
        self.folder.chmod(0o755)  # munged wants its socket to be reached
        for name in ("munge", "state", "spool"):
            (self.folder / name).mkdir(mode=0o755)
        key = self.folder / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        ports = _free_ports(len(self.nodes) + 1)
        host = socket.gethostname()
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={self.cpus} RealMemory=1000"
            for name, port in zip(self.nodes, ports[1:], strict=True)
        )
        (self.folder / "slurm.conf").write_text(
            CONFIG.format(
                # A run meets at a port that follows from its job's number: two clusters on one machine have others.
                first_job=1000 + secrets.randbelow(50_000),
                host=host, user=getpass.getuser(), folder=self.folder, controller_port=ports[0],
                credential_s=CREDENTIAL_S, kill_wait_s=KILL_WAIT_S, slurmd_timeout_s=SLURMD_TIMEOUT_S, nodes=nodes,
            )
        )  # fmt: skip
        munge = self.folder / "munge"
        places = {"socket": "socket", "key-file": "key", "log-file": "log", "pid-file": "pid", "seed-file": "seed"}
        self._start("munged", "munged", "--foreground", *(f"--{flag}={munge / name}" for flag, name in places.items()))
        self._wait((munge / "socket").exists, "munged")
        self._start("slurmctld", "slurmctld", "-D")
        for name in self.nodes:
            self.start_node(name)
        self._wait(lambda: all(self.node_state(name) == "IDLE" for name in self.nodes), "the nodes")

    def _start(self, name: str, *words: str) -> None:
        with (self.folder / f"{name.replace(' ', '-')}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(
                words, env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )

    def _end(self, name: str) -> None:
        daemon = self.daemons.pop(name)
        daemon.terminate()
        try:
            daemon.wait(timeout=20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def _wait(self, is_there: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            for name, daemon in self.daemons.items():
                if daemon.poll() is not None:
                    raise RuntimeError(f"{name} ended with {daemon.returncode}; see its files in {self.folder}")
            with suppress(RuntimeError, KeyError):
                if is_there():
                    return
            time.sleep(0.3)
        raise TimeoutError(f"{what}: not there after {WAIT_S} s; see {self.folder}")


def missing_programs() -> list[str]:
    """Those of SLURM and munge that are not installed."""
    path = os.pathsep.join([os.environ["PATH"], *EXTRA_PATH])
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


def _fields(line: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in line.split() if "=" in word)


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _parent(pid: int) -> int | None:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None


def _variables(pid: int) -> set[bytes]:
    with suppress(OSError):
        return set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    return set()


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""
