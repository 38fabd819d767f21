"""Ends every process of a job when one of them fails or dies, with a line that names it.

Every process holds a connection to process 0. The kernel closes it the moment its process dies, however that was, and
process 0 tells the rest. Waiting for the runtime instead would take a heartbeat timeout, in which collectives hang, and
ends in an abort with a stack trace. A host that vanishes is noticed by keep-alive probes.
"""

import os
import secrets
import selectors
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from looplm.errors import UserError

KEY = "looplm/watch"
CONNECT_TIMEOUT_S = 60
GRACE_S = 1.0
"""A failure often comes in every process at once: each gets this long to say its own."""
KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""Seconds, seconds, probes: 25 s to notice that a host is gone."""
DONE, FAILED, BEGUN = "done", "failed", "begun"
ALL_AGAIN = "start them all again to go on from the newest checkpoint"
THE_REST = "those that are left go on from the newest checkpoint"


class Watch:
    """Runs in a thread from its construction to `finish` or `fail`; between, the loss of a process ends this one.

    Raises UserError when process 0 cannot be reached.
    """

    current: "Watch | None" = None
    """The one of this process."""

    def __init__(self, index: int, count: int, afterwards: str = ALL_AGAIN):
        """afterwards: what follows the loss of a process, for the line that names it."""
        Watch.current = self
        self.index, self.count, self.afterwards = index, count, afterwards
        self._leaving = False
        self._all_done = threading.Event()
        self._members: dict[socket.socket, int] = {}
        self._begun: dict[int, int] = {}
        """Process 0: the step that every process has begun, of those that said so in the present stall."""
        client, host = _coordination()
        if index == 0:
            self._server = _listen()
            self._token = secrets.token_hex(16)
            client.key_value_set(KEY, f"{self._server.getsockname()[1]} {self._token}")
            run = self._gather
        else:
            port, token = client.blocking_key_value_get(KEY, 1000 * CONNECT_TIMEOUT_S).split()
            try:
                self._socket = _keep_alive(socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S))
            except OSError as error:
                raise UserError(
                    f"process {index} cannot reach process 0 at {host}:{port} ({error}); open the ports between hosts"
                ) from error
            self._socket.settimeout(None)
            _send(self._socket, f"{token} {index}")
            run = self._follow
        threading.Thread(target=run, name="looplm-watch", daemon=True).start()

    def finish(self) -> None:
        """Waits until every process has come here."""
        if self.index != 0:
            _send(self._socket, DONE)
        self._all_done.wait()
        self._leaving = True

    def fail(self, reason: str) -> None:
        """Tells the others that this process is about to end."""
        self._leaving = True
        text = f"{FAILED} {' '.join(reason.split())[:500]}"
        if self.index != 0:
            _send(self._socket, text)
        else:
            self._tell_all(f"0 {text}")
            time.sleep(2 * GRACE_S)  # when process 0 is gone the runtime aborts the others

    def stalled(self, step: int) -> None:
        """No step is done for a while; this process has begun `step`. It tells process 0."""
        if self.index != 0:
            _send(self._socket, f"{BEGUN} {step}")
        else:
            self._begun[0] = step

    def goes_on(self) -> None:
        """A step was done after all."""
        self._begun.clear()

    def behind(self) -> str:
        """On process 0, in a stall: who is behind, in words; empty when nobody has told anything, and elsewhere."""
        begun = dict(self._begun)
        if not begun:
            return ""
        last = max(begun.values())
        late = [f"process {n} is behind, at step {step}" for n, step in sorted(begun.items()) if step < last]
        silent = [str(n) for n in range(self.count) if n not in begun]
        late += [f"process {', '.join(silent)} says nothing"] if silent else []
        return f"{'; '.join(late) or f'nobody of {self.count} processes is behind'}; the furthest has begun step {last}"

    def _gather(self) -> None:
        """Process 0: hears everybody, and tells everybody."""
        done: set[int] = set()
        with selectors.DefaultSelector() as selector:
            selector.register(self._server, selectors.EVENT_READ)
            while len(done) < self.count - 1:
                for key, _ in selector.select():
                    connection: Any = key.fileobj
                    if connection is self._server:
                        if (member := self._admit()) is not None:
                            selector.register(member, selectors.EVENT_READ)
                        continue
                    text = _receive(connection)
                    if text.startswith(f"{BEGUN} "):
                        self._begun[self._members[connection]] = int(text.removeprefix(BEGUN))
                    elif text == DONE:
                        done.add(self._members[connection])
                    elif self._members[connection] not in done:
                        self._tell_all(f"{self._members[connection]} {text}")
                        self._end(self._members[connection], text)
                    if not text:
                        selector.unregister(connection)
        self._tell_all(DONE)
        self._all_done.set()

    def _admit(self) -> socket.socket | None:
        connection = _keep_alive(self._server.accept()[0])
        connection.settimeout(CONNECT_TIMEOUT_S)
        token, _, index = _receive(connection).partition(" ")
        if not (secrets.compare_digest(token, self._token) and index.isdigit()):
            connection.close()  # a stranger
            return None
        connection.settimeout(None)
        self._members[connection] = int(index)
        return connection

    def _follow(self) -> None:
        """Every other process: hears process 0."""
        text = _receive(self._socket)
        if text == DONE:
            self._all_done.set()
        else:
            index, _, reason = text.partition(" ")
            self._end(int(index or 0), reason)

    def _tell_all(self, text: str) -> None:
        for connection in self._members:
            _send(connection, text)

    def _end(self, index: int, text: str) -> None:
        if text:
            time.sleep(GRACE_S)
        if self._leaving:
            return
        how = f"failed ({text.removeprefix(FAILED).strip()})" if text else "was lost (killed, crashed or cut off)"
        line = f"looplm: process {index} of {self.count} {how}, so process {self.index} ends too; {self.afterwards}\n"
        sys.stdout.flush()
        os.write(2, line.encode())
        if self.index == 0:
            time.sleep(GRACE_S)  # when process 0 is gone the runtime aborts the others
        os._exit(1)


def _coordination() -> tuple[Any, str]:
    """The runtime's key-value store, and the host of process 0. jax has no public name for them."""
    from jax._src.distributed import global_state

    address = str(global_state.coordinator_address)
    return global_state.client, address.rpartition(":")[0].strip("[]")


def _listen() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("", 0), backlog=1024)


def _keep_alive(connection: socket.socket) -> socket.socket:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        if (option := getattr(socket, name, None)) is not None:  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
    return connection


def _send(connection: socket.socket, text: str) -> None:
    with suppress(OSError):  # the other side is gone; whoever reads from it knows
        connection.sendall(text.encode() + b"\n")


def _receive(connection: socket.socket) -> str:
    """One line without its end; empty when the other side is gone."""
    line = b""
    try:
        while not line.endswith(b"\n"):
            byte = connection.recv(1)
            if not byte:
                return ""
            line += byte
    except OSError:
        return ""
    return line.decode(errors="replace").strip()
