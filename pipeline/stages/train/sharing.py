"""What process 0 shares with its peers: the configuration, the images, and the checkpoint."""

import io
import json
import os
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import keras

from pipeline.core import paths
from pipeline.core.backends import load_backend
from pipeline.core.cluster import Cluster, find_cluster
from pipeline.core.config import Config
from pipeline.core.files import sha256, text_digest
from pipeline.core.machine import find_version
from pipeline.core.process.stage import stderr_held
from pipeline.stages.train.checkpoint import Checkpoint
from pipeline.stages.train.rendezvous import Facts, Leader, free_port, own_address
from pipeline.stages.train.training import code_files

SETTINGS = "settings.json"


def gather_peers(config: Config, check: Callable[[], object]) -> Leader | None:
    """Wait for the peers, send them the configuration and the images, and connect the backend with theirs.

    None if this process trains alone. `check` is called before waiting, to raise errors at once.
    """
    cluster = find_cluster()
    if cluster is None:
        return None
    load_backend().check_cluster(cluster)
    check()
    announce(cluster)
    leader = Leader(cluster, same_everywhere())
    port = free_port()
    settings = {"port": port, "environment": chosen(), "config": config.model_dump(mode="json", by_alias=True)}
    leader.send(packed([paths.TRAIN, paths.VALIDATION], json.dumps(settings)))
    connect(cluster, port)
    return leader


def send_checkpoint(leader: Leader | None, checkpoint: Checkpoint) -> None:
    """Send the checkpoint to the peers, if there are any."""
    if leader:
        leader.send(packed(checkpoint.files()))


def wait_for_peers(leader: Leader | None) -> None:
    """Wait until the peers have trained all epochs, too, if there are any, and disconnect the backend."""
    if leader:
        leader.wait()
        load_backend().disconnect()


def release_peers(leader: Leader | None) -> None:
    """Tell the peers, if there are any, that the results are recorded."""
    if leader:
        leader.release()


def announce(cluster: Cluster) -> None:
    """Say what this process waits for."""
    others = cluster.processes - 1
    waiting = "process 0" if cluster.process else "1 other process" if others == 1 else f"{others} other processes"
    print(f"train: process {cluster.process} waits for {waiting} at {cluster.address}", flush=True)


def connect(cluster: Cluster, port: int) -> None:
    """Connect the backend with those of all other processes, through this port of process 0."""
    with stderr_held():  # JAX warns about an option that is right here
        load_backend().connect(cluster, port, own_address(cluster))


def same_everywhere() -> Facts:
    """What must be the same for all processes, or their results would silently differ."""
    code = text_digest("".join(sha256(path) for path in code_files()))
    backend = keras.backend.backend()
    return {"version of this project": code, "Keras": keras.__version__, backend: str(find_version(backend))}


def chosen() -> dict[str, str]:
    """Environment variables of process 0 that apply to all processes."""
    return {name: os.environ.get(name, "") for name in ("DEVICE", "DEVICES")}


def packed(files: Iterable[Path], settings: str = "") -> bytes:
    """Pack files and a text into an archive."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(SETTINGS, settings)
        for path in files:
            archive.write(path, path.name)
    return content.getvalue()


def unpack(content: bytes, folder: Path) -> str:
    """Write the files of an archive into a folder, and return the text."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(folder)
    return (folder / SETTINGS).read_text(encoding="utf-8")
