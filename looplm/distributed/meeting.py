"""Where the processes of an elastic job find each other, again and again: a folder that all of their hosts see.

Who waits there keeps changing a file of its own, so that whoever is gone is told from who is there without comparing
clocks. The lowest number among them writes a plan: who goes on, and where they meet. A plan holds what its members made
up when they came, so one of an earlier time is nobody's.
"""

import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from looplm.distributed.slurm import Place

BEAT_S = 0.5
ALIVE_S = 5.0
"""A file that has not changed for so long is of a process that is gone."""
WINDOW_S = 15.0
"""After a loss, those that are left are waited for until nobody has come for so long."""
FIRST_S = 300.0
"""At the start of a job all have to come, and are waited for so long."""
SIZES, PLAN, ENDED = "sizes.json", "plan.json", "ended.json"


class Seen(NamedTuple):
    """What is known of another process that waits."""

    content: Mapping[str, Any]
    changed: float
    """When its file was seen to change, by this host's clock."""
    is_alive: bool


class Absent(Exception):
    """Some never came; the message says who."""


class Meeting:
    """One process's seat. `asked_to_stop` ends a wait."""

    def __init__(self, folder: Path, place: Place, asked_to_stop: Callable[[], bool] = lambda: False):
        self.folder, self.place, self.asked_to_stop = folder, place, asked_to_stop
        self.number, self.count = place.process_id, place.num_processes
        self.host = _own_address(place)
        self.group: list[int] = []
        """The numbers of the group that this process was in last."""
        self._seen: dict[int, Seen] = {}

    def wait(self) -> Place | int | None:
        """Wait for the next group: the place in it, or the exit code of a run that has ended meanwhile, or None when
        asked to stop. Raises Absent when a job does not begin."""
        nonce, ended, began = secrets.token_hex(8), self._read(ENDED), time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        mine: dict[str, Any] = {"nonce": nonce, "again": bool(self.group), "beat": 0}
        known: set[int] = set()
        changed = began
        try:
            while not self.asked_to_stop():
                mine["beat"] += 1
                self._write(f"{self.number}.json", mine)
                plan = self._read(PLAN)
                if plan.get("members", {}).get(str(self.number)) == nonce:
                    return self._seat(plan)
                if (now_ended := self._read(ENDED)) != ended:
                    return int(now_ended["code"])
                present = {n: seen.content for n, seen in self.look().items() if seen.is_alive} | {self.number: mine}
                if set(present) != known:
                    known, changed = set(present), time.monotonic()
                if min(present) == self.number and self._is_complete(present, began, changed):
                    self._decide(present)
                else:
                    time.sleep(BEAT_S)
            return None
        finally:
            (self.folder / f"{self.number}.json").unlink(missing_ok=True)

    def look(self) -> dict[int, Seen]:
        """Who else waits here, by number."""
        now = time.monotonic()
        for number in set(range(self.count)) - {self.number}:
            content, before = self._read(f"{number}.json"), self._seen.get(number)
            if not content:
                self._seen.pop(number, None)
            elif before is None:
                self._seen[number] = Seen(content, now, is_alive=False)  # of an earlier time, until it changes
            elif content != before.content:
                self._seen[number] = Seen(content, now, is_alive=True)
            elif now - before.changed > ALIVE_S:
                self._seen[number] = before._replace(is_alive=False)
        return dict(self._seen)

    def newcomers(self) -> list[int]:
        """Who waits while this process's group goes on, and would make it larger."""
        others = [number for number, seen in self.look().items() if seen.is_alive and number not in self.group]
        return others if self._size(len(self.group) + len(others)) > len(self.group) else []

    def end(self, code: int) -> None:
        """Tell those who wait that the run has ended."""
        self._write(ENDED, {"code": code, "nonce": secrets.token_hex(8)})

    def _is_complete(self, present: Mapping[int, Mapping[str, Any]], began: float, changed: float) -> bool:
        if len(present) == self.count or (self.group and set(self.group) <= set(present)):
            return True
        now = time.monotonic()
        if any(content["again"] for content in present.values()):
            return now - changed > WINDOW_S
        if now - began > FIRST_S:
            absent = sorted(set(range(self.count)) - set(present))
            raise Absent(
                f"of {self.count} processes {', '.join(map(str, absent))} did not come to {self.folder} within "
                f"{FIRST_S:.0f} s; start them all, with a --workdir that every host sees"
            )
        return False

    def _decide(self, present: Mapping[int, Mapping[str, Any]]) -> None:
        again = any(content["again"] for content in present.values())
        members = sorted(present)[: self._size(len(present)) if again else len(present)]
        is_first = self.number == 0 and not again
        coordinator = self.place.coordinator if is_first else f"{self.host}:{_free_port()}"
        nonces = {str(number): present[number]["nonce"] for number in members}
        self._write(PLAN, {"members": nonces, "coordinator": coordinator})

    def _seat(self, plan: Mapping[str, Any]) -> Place:
        self.group = sorted(map(int, plan["members"]))
        self._seen.clear()
        index = self.group.index(self.number)
        return Place(plan["coordinator"], len(self.group), index, self.place.local_devices)

    def _size(self, present: int) -> int:
        """How many of so many processes can form a group: the batch and the mesh have to divide."""
        return max((size for size in self._read(SIZES).get("sizes", ()) if size <= present), default=present)

    def _read(self, name: str) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            return dict(json.loads((self.folder / name).read_text()))
        return {}

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        write(self.folder / name, content)


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content))
    os.replace(temporary, path)


def _own_address(place: Place) -> str:
    """By which others reach this host: process 0's is given, and on the way there the others have theirs. Asked at the
    start, when that name still leads to a host."""
    host, _, port = place.coordinator.rpartition(":")
    if place.process_id == 0:
        return host
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # sends nothing
            own = str(probe.getsockname()[0])
    except OSError:
        return socket.getfqdn()
    return f"[{own}]" if ":" in own else own


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
