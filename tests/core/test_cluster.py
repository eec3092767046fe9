import pytest

from pipeline.core.cluster import Cluster, find_cluster
from pipeline.core.errors import PipelineError

NAMES = "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_COORDINATOR_ADDRESS"


def set_all(monkeypatch: pytest.MonkeyPatch, values: tuple[str, ...]) -> None:
    """Set the variables that describe a cluster."""
    for name, value in zip(NAMES, values, strict=True):
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("values", "cluster"),
    [
        (("", "", ""), None),
        (("1", "0", "host:1"), None),
        (("1", "", ""), None),
        (("", "0", ""), None),
        (("2", "1", "host:1234"), Cluster("host", 1234, 2, 1)),
        ((" 4 ", "0", " 10.0.0.1:65535 "), Cluster("10.0.0.1", 65535, 4, 0)),
        (("2", "0", "[::1]:80"), Cluster("::1", 80, 2, 0)),
    ],
)
def test_a_cluster_is_described_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, values: tuple[str, ...], cluster: Cluster | None
) -> None:
    set_all(monkeypatch, values)
    assert find_cluster() == cluster


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("two", "0", "h:1"), "JAX_NUM_PROCESSES=two: must be a number"),
        (("-2", "0", "h:1"), "JAX_NUM_PROCESSES=-2: must be a number"),
        (("0", "0", "h:1"), "JAX_NUM_PROCESSES=0: must be at least 1"),
        (("2", "", "h:1"), "JAX_PROCESS_ID=: must be 0 to 1, another one for each process"),
        (("2", "2", "h:1"), "JAX_PROCESS_ID=2: must be 0 to 1, another one for each process"),
        (("2", "x", "h:1"), "JAX_PROCESS_ID=x: must be a number"),
        (("", "1", "h:1"), "JAX_PROCESS_ID is set, but JAX_NUM_PROCESSES is not: set JAX_COORDINATOR_ADDRESS="),
        (("2", "0", ""), "JAX_COORDINATOR_ADDRESS=: must be HOST:PORT of process 0, the same for all processes"),
        (("2", "0", "host"), "JAX_COORDINATOR_ADDRESS=host: must be HOST:PORT"),
        (("2", "0", ":80"), "JAX_COORDINATOR_ADDRESS=:80: must be HOST:PORT"),
        (("2", "0", "host:0"), "JAX_COORDINATOR_ADDRESS=host:0: must be HOST:PORT"),
        (("2", "0", "host:65536"), "JAX_COORDINATOR_ADDRESS=host:65536: must be HOST:PORT"),
        (("2", "0", "host:http"), "JAX_COORDINATOR_ADDRESS=host:http: must be HOST:PORT"),
    ],
)
def test_a_cluster_that_makes_no_sense(monkeypatch: pytest.MonkeyPatch, values: tuple[str, ...], message: str) -> None:
    set_all(monkeypatch, values)
    with pytest.raises(PipelineError) as raised:
        find_cluster()
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(("host", "address"), [("h", "h:80"), ("10.0.0.1", "10.0.0.1:80"), ("::1", "[::1]:80")])
def test_an_address_is_written_as_in_a_url(host: str, address: str) -> None:
    assert Cluster(host, 80, 2, 0).address == address
