"""The processes that train one network together, usually on several machines, as the environment describes them."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from pipeline.core.errors import PipelineError, first_line, is_disconnected, is_exhausted

# The names that JAX's documentation uses, and that Kubeflow and other launchers set.
COUNT, INDEX, ADDRESS = "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_COORDINATOR_ADDRESS"
ALL = f"{ADDRESS}=HOST:PORT, {COUNT} and {INDEX}"
HIGHEST_PORT = 65_535
AGAIN = "Run the same command on every machine again: training continues after the last finished epoch"


class Cluster(NamedTuple):
    """The processes of one training. Process 0 records the run; the others, its peers, only train along."""

    host: str  # of process 0
    port: int
    processes: int
    process: int  # number of this one

    def at(self, port: int) -> str:
        """Address of a port of process 0."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"

    @property
    def address(self) -> str:
        """Address of process 0."""
        return self.at(self.port)


def find_cluster() -> Cluster | None:
    """The cluster that the environment describes; None if this process trains alone.

    Raises PipelineError if a variable is missing or invalid.
    """
    processes, process = number(COUNT), number(INDEX)
    if processes is None and process:
        raise PipelineError(f"{INDEX} is set, but {COUNT} is not: set {ALL}, or none of them")
    if processes in (None, 1):
        return None
    if processes == 0:
        raise PipelineError(f"{COUNT}=0: must be at least 1")
    if process is None or process >= processes:
        raise PipelineError(out_of_range(process, processes))
    address = os.environ.get(ADDRESS, "").strip()
    host, _, port = address.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) <= HIGHEST_PORT:
        raise PipelineError(f"{ADDRESS}={address}: must be HOST:PORT of process 0, the same for all processes")
    return Cluster(host.strip("[]"), int(port), processes, process)


def out_of_range(process: int | None, processes: int) -> str:
    """Error text for the number of a process that is missing or too high."""
    value = "" if process is None else process
    return f"{INDEX}={value}: must be 0 to {processes - 1}, another one for each process"


@contextmanager
def cluster_errors() -> Iterator[None]:
    """Explain errors in this block that are due to a lost process or to exhausted memory."""
    try:
        yield
    except Exception as error:
        if is_disconnected(error):
            raise PipelineError(f"another process was lost ({first_line(error)}). {AGAIN}") from None
        if is_exhausted(error):
            raise PipelineError("memory was exhausted: set a smaller training.batch_size") from None
        raise


def number(name: str) -> int | None:
    """The number in an environment variable; None if it is empty or not set."""
    text = os.environ.get(name, "").strip()
    if text and not re.fullmatch("[0-9]{1,6}", text):
        raise PipelineError(f"{name}={text}: must be a number")
    return int(text) if text else None
