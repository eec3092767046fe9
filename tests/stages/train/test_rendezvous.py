import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.cluster import Cluster
from pipeline.core.errors import LostProcessError, PipelineError
from pipeline.stages.train import rendezvous
from pipeline.stages.train.checkpoint import Checkpoint
from pipeline.stages.train.recording import ended_early
from pipeline.stages.train.rendezvous import Leader, Peer, own_address
from tests.conftest import free_port

FACTS = {"version of this project": "a", "Keras": "3"}


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadPoolExecutor]:
    """Threads for the processes. At the end, all connections are closed."""
    opened: list[Leader | Peer] = []
    for kind in (Leader, Peer):
        make = kind.__init__

        def remember(self: Any, *arguments: Any, make: Any = make) -> None:
            make(self, *arguments)
            opened.append(self)

        monkeypatch.setattr(kind, "__init__", remember)
    with ThreadPoolExecutor(4) as pool:
        yield pool
    for each in opened:
        each.close()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for seconds, not for minutes."""
    monkeypatch.setattr(rendezvous, "PATIENCE", 2.0)
    monkeypatch.setattr(rendezvous, "ANSWER", 0.2)
    monkeypatch.setattr(rendezvous, "ARRIVED", 0.1)


def cluster_of(port: int, process: int, processes: int = 2) -> Cluster:
    return Cluster("127.0.0.1", port, processes, process)


def meet(pool: ThreadPoolExecutor, processes: int = 2) -> tuple[Leader, list[Peer]]:
    port = free_port()
    leader = pool.submit(Leader, cluster_of(port, 0, processes), FACTS)
    peers = [pool.submit(Peer, cluster_of(port, process, processes), FACTS) for process in range(1, processes)]
    return leader.result(), [peer.result() for peer in peers]


def test_all_peers_receive_the_same_and_finish(pool: ThreadPoolExecutor) -> None:
    leader, peers = meet(pool, 3)
    large = os.urandom(5_000_000)
    sending = pool.submit(leader.send, large)
    assert list(pool.map(Peer.receive, peers)) == [large, large]
    sending.result()
    waiting = pool.submit(leader.wait)
    ending = [pool.submit(peers[0].finish)]
    time.sleep(0.3)
    assert not waiting.done()
    ending.append(pool.submit(peers[1].finish))
    waiting.result(2)
    assert not any(end.done() for end in ending), "the results are not recorded yet"
    leader.release()
    for end in ending:
        end.result(2)


def test_a_peer_that_starts_first_waits(pool: ThreadPoolExecutor) -> None:
    port = free_port()
    peer = pool.submit(Peer, cluster_of(port, 1), FACTS)
    time.sleep(1.2)
    Leader(cluster_of(port, 0), FACTS)
    peer.result()


def test_something_else_that_connects_is_ignored(pool: ThreadPoolExecutor) -> None:
    """A port scanner, a browser, and a peer of another program."""
    port = free_port()
    leader = pool.submit(Leader, cluster_of(port, 0), FACTS)
    time.sleep(0.2)
    length = rendezvous.LENGTH.pack
    greetings = [
        *(b"{}", b"[" * 9_990, b'{"process":Infinity,"processes":2,"facts":{}}', b"\xff", b"null", b'"\\ud800"'),
        *(b'{"process":1,"processes":2,"facts":[]}', b'{"process":0,"processes":2,"facts":{}}'),
        *(b'{"process":-1,"processes":2,"facts":{}}', b'{"process":true,"processes":2,"facts":{}}'),
    ]
    noise = [b"", b"GET / HTTP/1.1\r\n\r\n", length(1 << 60), length(1 << 63), length(9) + b"x"]
    with contextlib.ExitStack() as stack:
        for content in [*noise, *(length(len(each)) + each for each in greetings)] * 3:
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            connection.sendall(content)
        Peer(cluster_of(port, 1), FACTS)
        leader.result()


def drip(connection: socket.socket) -> None:
    """Send a byte now and then."""
    for _ in range(100):
        connection.sendall(b" ")
        time.sleep(0.05)


def test_a_slow_client_delays_no_peer(pool: ThreadPoolExecutor) -> None:
    port = free_port()
    leader = pool.submit(Leader, cluster_of(port, 0), FACTS)
    time.sleep(0.2)
    with socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(rendezvous.LENGTH.pack(9_000))
        sending = pool.submit(drip, slow)
        began = time.monotonic()
        Peer(cluster_of(port, 1), FACTS)
        leader.result()
        assert time.monotonic() - began < 1.5
    assert isinstance(sending.exception(), OSError), "the connection was closed"


def test_a_peer_that_was_started_again_replaces_its_earlier_process(pool: ThreadPoolExecutor) -> None:
    port = free_port()
    leader = pool.submit(Leader, cluster_of(port, 0, 3), FACTS)
    Peer(cluster_of(port, 1, 3), FACTS).close()
    time.sleep(0.2)
    again, other = Peer(cluster_of(port, 1, 3), FACTS), Peer(cluster_of(port, 2, 3), FACTS)
    leader.result().send(b"for all")
    assert (again.receive(), other.receive()) == (b"for all", b"for all")


@pytest.mark.parametrize(
    ("peer", "facts", "message"),
    [
        (1, FACTS | {"Keras": "2"}, "process 1 has another Keras than process 0 (2 instead of 3): check out the same"),
        (1, {}, "process 1 has another version of this project than process 0 (None instead of a)"),
        (3, FACTS, "JAX_NUM_PROCESSES is 4 for process 3, but 2 for process 0"),
        (7, FACTS, "JAX_PROCESS_ID=7: must be 0 to 1, another one for each process"),
    ],
)
def test_a_peer_that_does_not_fit_is_refused(
    pool: ThreadPoolExecutor, capsys: pytest.CaptureFixture[str], peer: int, facts: dict[str, str], message: str
) -> None:
    port = free_port()
    leader = pool.submit(Leader, cluster_of(port, 0), FACTS)
    with pytest.raises(PipelineError) as raised:
        Peer(cluster_of(port, peer, 4 if peer == 3 else 2), facts)
    assert str(raised.value).startswith(message)
    with pytest.raises(PipelineError, match=f"^process 1 did not connect to 127.0.0.1:{port} within 2 s: run the same"):
        leader.result()
    assert capsys.readouterr().out.startswith(f"train: refused a process: {message}")


def test_two_peers_with_one_number(pool: ThreadPoolExecutor) -> None:
    port = free_port()
    leader = pool.submit(Leader, cluster_of(port, 0, 3), FACTS)
    kept = Peer(cluster_of(port, 1, 3), FACTS)
    with pytest.raises(PipelineError, match=r"^two processes have JAX_PROCESS_ID=1: give each another number$"):
        Peer(cluster_of(port, 1, 3), FACTS)
    Peer(cluster_of(port, 2, 3), FACTS)
    leader.result().send(b"for all")
    assert kept.receive() == b"for all"


def test_process_0_does_not_answer() -> None:
    port = free_port()
    message = f"^process 0 does not answer at 127.0.0.1:{port} .*: run the same command there, with JAX_PROCESS_ID=0"
    with pytest.raises(PipelineError, match=message):
        Peer(cluster_of(port, 1), FACTS)


@pytest.mark.parametrize("process", [0, 1])
def test_an_unknown_host(process: int) -> None:
    cluster = Cluster("no-such-host.invalid", 1234, 2, process)
    start: Callable[[Cluster, dict[str, str]], object] = Peer if process else Leader
    with pytest.raises(PipelineError, match=r"no-such-host.invalid"):
        start(cluster, FACTS)


def test_a_port_that_is_in_use() -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(PipelineError, match=f"process 0 cannot listen on port {port} .*: choose another port"):
            Leader(cluster_of(port, 0), FACTS)


def test_a_lost_peer_is_named_and_ends_process_0(
    pool: ThreadPoolExecutor, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses: list[int] = []
    monkeypatch.setattr(rendezvous, "LEFT", 0.1)
    monkeypatch.setattr(os, "_exit", statuses.append)
    leader, (one, other) = meet(pool, 3)
    ending = pool.submit(other.finish)
    one.close()
    time.sleep(0.5)
    assert statuses[:1] == [1]
    output = capsys.readouterr().out
    assert "train: lost the connection to process 1\n" in output
    assert "train: process 1 was lost. Run the same command on every machine again: training continues" in output
    leader.wait()  # which no longer needs process 1
    with pytest.raises(PipelineError, match=r"^process 1 was lost \(.*\)\. Run the same command on every"):
        leader.send(b"x" * 10_000_000)
    leader.close()
    with pytest.raises(PipelineError, match=r"^process 0 was lost"):
        ending.result(2)


def test_a_lost_process_0_is_named(pool: ThreadPoolExecutor) -> None:
    leader, (peer,) = meet(pool)
    threading.Timer(0.2, leader.close).start()
    with pytest.raises(PipelineError, match=r"^process 0 was lost"):
        peer.receive()


class NoRecords:
    """A recorder that records nothing."""

    def status(self, status: str) -> None: ...

    def flush(self, patience: float) -> None: ...


@pytest.mark.parametrize(("error", "kept"), [(LostProcessError("lost"), True), (PipelineError("diverged"), False)])
def test_a_lost_process_keeps_the_checkpoint(tmp_path: Path, error: PipelineError, kept: bool) -> None:
    recorder: Any = NoRecords()
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    with pytest.raises(PipelineError), ended_early(recorder, Checkpoint(folder)):
        raise error
    assert folder.exists() is kept


def test_the_own_address_is_that_in_the_network_of_process_0() -> None:
    assert own_address(cluster_of(1, 1)) == "127.0.0.1"
