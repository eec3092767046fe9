"""socket.sockets between the processes of one training: who takes part, what they exchange, and who is lost.

JAX by itself aborts with a C++ stack trace when a process is missing or lost, and does not compare their code.
"""

import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import PositiveInt

from pipeline.core.cluster import ADDRESS, AGAIN, COUNT, INDEX, Cluster, out_of_range
from pipeline.core.errors import LostProcessError, PipelineError
from pipeline.core.records import Record

PATIENCE = 300.0  # seconds to wait for the other processes
TICK = 0.1  # seconds
ANSWER = 5.0  # seconds to wait for a message that follows at once
ARRIVED = 1.0  # seconds to receive a message whose first byte is here
LEFT = 20.0  # seconds in which process 0 must end by itself after a peer was lost
# A machine that disappears counts as lost after half a minute. Not all systems have these options.
KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
LONGEST = 10_000  # bytes of a greeting
LENGTH = struct.Struct("!Q")  # of a message
MOST = 1 << 20  # bytes to receive at once
DONE = b"done"

Facts = dict[str, str]  # what must be the same for all processes


class Greeting(Record):
    """What a peer says first."""

    process: PositiveInt
    processes: PositiveInt
    facts: Facts


class Leader:
    """Process 0, connected to its peers."""

    def __init__(self, cluster: Cluster, facts: Facts) -> None:
        """Wait for all peers.

        Raises PipelineError if a peer does not connect, or if this machine cannot listen at the cluster's address.
        """
        self._peers = gather(cluster, facts)
        self._done: set[int] = set()
        self._lost: set[int] = set()
        self._change, self._closed = threading.Condition(), False
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def send(self, content: bytes) -> None:
        """Send bytes to all peers."""
        for process, peer in self._peers.items():
            with losing(process):
                send(peer, content)

    def wait(self) -> None:
        """Wait until all peers have trained all epochs. A peer that is lost now is no longer needed."""
        with self._change:
            self._change.wait_for(lambda: self._lost or len(self._done) == len(self._peers), PATIENCE)
        self._stop()

    def release(self) -> None:
        """Tell the peers that the results are recorded."""
        for peer in self._peers.values():
            with contextlib.suppress(OSError):
                send(peer, DONE)
        self.close()

    def close(self) -> None:
        """End all connections."""
        self._stop()
        for peer in self._peers.values():
            peer.close()

    def _stop(self) -> None:
        self._closed = True
        self._watcher.join()

    def _watch(self) -> None:
        """Notice which peers finish or are lost. End this process if it may wait for a lost one forever."""
        processes = {peer: process for process, peer in self._peers.items()}
        while processes and not self._lost and not self._closed:
            for peer in select.select(list(processes), [], [], TICK)[0]:
                process = processes.pop(peer)
                with self._change:
                    (self._done if finished(peer) else self._lost).add(process)
                    self._change.notify_all()
        for process in self._lost:
            print(f"train: lost the connection to process {process}", flush=True)
        end = time.monotonic() + LEFT
        while self._lost and not self._closed:
            time.sleep(TICK)
            if time.monotonic() > end:
                print(f"train: process {min(self._lost)} was lost. {AGAIN}", flush=True)
                os._exit(1)


class Peer:
    """A peer, connected to process 0."""

    def __init__(self, cluster: Cluster, facts: Facts) -> None:
        """Connect to process 0. Raises PipelineError if it does not answer, or refuses this process."""
        self._leader = connect(cluster)
        with losing(0):
            greeting = Greeting(process=cluster.process, processes=cluster.processes, facts=facts)
            send(self._leader, greeting.model_dump_json().encode())
            refusal = receive(self._leader, LONGEST, PATIENCE).decode()
        if refusal:
            self.close()
            raise PipelineError(refusal)

    def receive(self) -> bytes:
        """Wait for bytes from process 0."""
        with losing(0):
            return receive(self._leader)

    def finish(self) -> None:
        """Tell process 0 that this process has trained all epochs, and wait until the results are recorded."""
        with losing(0):
            send(self._leader, DONE)
            receive(self._leader)
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._leader.close()


def gather(cluster: Cluster, facts: Facts) -> dict[int, socket.socket]:
    """Accept a connection from every peer, and return them by process."""
    peers: dict[int, socket.socket] = {}
    strangers: dict[socket.socket, float] = {}  # connections without a greeting, and when each of them began
    end = time.monotonic() + PATIENCE
    with listen(cluster) as server:
        while len(peers) < cluster.processes - 1 and time.monotonic() < end:
            for ready in select.select([server, *strangers, *peers.values()], [], [], TICK)[0]:
                if ready is server:
                    strangers[kept_alive(server.accept()[0])] = time.monotonic()
                elif ready in strangers:
                    del strangers[ready]
                    admit(ready, cluster, facts, peers)
                else:  # a peer sends nothing now, so its process has ended
                    ready.close()
                    peers = {process: peer for process, peer in peers.items() if peer is not ready}
            for silent in [each for each, since in strangers.items() if time.monotonic() - since > ANSWER]:
                del strangers[silent]
                silent.close()
    for stranger in strangers:
        stranger.close()
    missing = [process for process in range(1, cluster.processes) if process not in peers]
    if not missing:
        return dict(sorted(peers.items()))
    for peer in peers.values():
        peer.close()
    raise PipelineError(
        f"process {', '.join(map(str, missing))} did not connect to {cluster.address} within {PATIENCE:.0f} s: run the "
        f"same command there, with its {INDEX}, and check that no firewall is in between"
    )


def admit(connection: socket.socket, cluster: Cluster, facts: Facts, peers: dict[int, socket.socket]) -> None:
    """Add a connection to the peers if it greets as one that fits, or else close it."""
    try:
        greeting = Greeting.parse(receive(connection, LONGEST, ARRIVED), "greeting")
        refusal = refuse(greeting, cluster, facts, set(peers))
        send(connection, refusal.encode())
    except (OSError, EOFError, ValueError, PipelineError):  # something else connected
        connection.close()
        return
    if refusal:
        connection.close()
        print(f"train: refused a process: {refusal}", flush=True)
    else:
        peers[greeting.process] = connection


def refuse(greeting: Greeting, cluster: Cluster, facts: Facts, present: set[int]) -> str:
    """Why a peer cannot take part; empty if it can."""
    process, processes = greeting.process, greeting.processes
    if processes != cluster.processes:
        return f"{COUNT} is {processes} for process {process}, but {cluster.processes} for process 0"
    if process >= processes:
        return out_of_range(process, processes)
    if process in present:
        return f"two processes have {INDEX}={process}: give each another number"
    for name, value in facts.items():
        other = greeting.facts.get(name)
        if other != value:
            return (
                f"process {process} has another {name} than process 0 ({other} instead of {value}): check out the "
                "same commit and install its requirements on all machines"
            )
    return ""


def listen(cluster: Cluster) -> socket.socket:
    """Listen on the cluster's port. Raises PipelineError if that is impossible."""
    family, _ = resolve(cluster)
    try:
        server = socket.create_server(("", cluster.port), family=family)
    except OSError as error:
        raise PipelineError(
            f"{ADDRESS}={cluster.address}: process 0 cannot listen on port {cluster.port} ({error.strerror}): choose "
            "another port, the same for all processes"
        ) from None
    return server


def connect(cluster: Cluster) -> socket.socket:
    """Connect to process 0. Raises PipelineError if it does not answer."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return kept_alive(socket.create_connection((cluster.host, cluster.port), timeout=ANSWER))
        except OSError as error:  # it may start later, and its name may be announced later
            if time.monotonic() > end:
                raise PipelineError(
                    f"process 0 does not answer at {cluster.address} ({error.strerror or error}): run the same command "
                    f"there, with {INDEX}=0, and check that no firewall is in between"
                ) from None
            time.sleep(1)


def resolve(cluster: Cluster) -> tuple[socket.AddressFamily, Any]:
    """Address family and socket address of process 0. Raises PipelineError if its host is unknown."""
    try:
        family, _, _, _, place = socket.getaddrinfo(cluster.host, cluster.port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise PipelineError(
            f"{ADDRESS}={cluster.address}: the host {cluster.host} is not known ({error.strerror})"
        ) from None
    return family, place


def own_address(cluster: Cluster) -> str:
    """The IP address of this machine in the network in which it reaches process 0."""
    family, place = resolve(cluster)
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(place)  # sends nothing
        address: str = probe.getsockname()[0]
    return address


def free_port() -> int:
    """A port on which no process listens."""
    with socket.create_server(("", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def kept_alive(connection: socket.socket) -> socket.socket:
    """The connection, which from now on fails when the other machine disappears."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection


def send(connection: socket.socket, content: bytes) -> None:
    """Send a message: the number of bytes, and the bytes."""
    connection.sendall(LENGTH.pack(len(content)))
    connection.sendall(content)


def receive(connection: socket.socket, longest: int | None = None, seconds: float | None = None) -> bytes:
    """Receive a message.

    Raises EOFError if the connection ends, ValueError if the message is longer than `longest` bytes, and TimeoutError
    if it takes more than `seconds`.
    """
    end = None if seconds is None else time.monotonic() + seconds
    (length,) = LENGTH.unpack(receive_exactly(connection, LENGTH.size, end))
    if longest is not None and length > longest:
        raise ValueError(f"a message of {length} bytes")
    return receive_exactly(connection, length, end)


def receive_exactly(connection: socket.socket, count: int, end: float | None) -> bytes:
    """Receive this number of bytes, until a time of the monotonic clock."""
    content = bytearray()
    while len(content) < count:
        left = None if end is None else end - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError("timed out")
        connection.settimeout(left)
        part = connection.recv(min(count - len(content), MOST))
        if not part:
            raise EOFError
        content += part
    connection.settimeout(None)
    return bytes(content)


def finished(peer: socket.socket) -> bool:
    """Whether a peer says that it has trained all epochs; otherwise it was lost."""
    try:
        return receive(peer, LONGEST, ANSWER) == DONE
    except (OSError, EOFError, ValueError):
        return False


@contextmanager
def losing(process: int) -> Iterator[None]:
    """Turn errors of the connection to this process into LostProcessError."""
    try:
        yield
    except (OSError, EOFError, ValueError) as error:
        raise LostProcessError(f"process {process} was lost ({str(error) or 'it has ended'}). {AGAIN}") from None
