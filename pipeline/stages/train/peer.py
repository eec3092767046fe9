"""A peer: a process that trains along with process 0, usually on another machine.

It needs the code and the environment, but neither the data nor DVC: it receives the configuration, the images and the
checkpoint from process 0, and computes the same epochs, each process with its share of every batch.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from pipeline.core import paths
from pipeline.core.cluster import AGAIN, Cluster, cluster_errors, find_cluster
from pipeline.core.config import Config
from pipeline.core.dataset import load_split
from pipeline.core.errors import DISCONNECTED, PipelineError
from pipeline.core.process.stage import importing_keras, run_stage, stderr_held
from pipeline.core.process.surroundings import run_by_dvc
from pipeline.core.process.worker import end_with_parent

FOLDER = "PEER_FOLDER"  # for what process 0 sends; the child removes it if its parent was killed
TERMINATED = 128 + signal.SIGTERM  # the exit status that shells report for a process that this signal ended
PROGRAM = (sys.executable, "-m", "pipeline.stages.train.peer")


def run_peer(cluster: Cluster) -> None:
    """Train along in a child process, because JAX aborts a process that loses the connection to process 0.

    Raises PipelineError if that happens.
    """
    if run_by_dvc():
        raise PipelineError(
            f"process {cluster.process} trains along without DVC: run `make repro` or `python -m pipeline.stages.train`"
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    with tempfile.TemporaryDirectory() as folder:  # which this process removes, even if the child is aborted
        environment = os.environ | {"TMPDIR": folder, FOLDER: folder}
        with subprocess.Popen(PROGRAM, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as child:
            assert child.stderr is not None
            try:
                messages = child.stderr.read().decode(errors="replace")
            except KeyboardInterrupt:
                sys.exit(f"\ntrain: process {cluster.process} was interrupted, which ends all others. {AGAIN}")
    if child.returncode < 0 and DISCONNECTED.search(messages):
        raise PipelineError(f"process 0 ended, or the connection to {cluster.address} was lost. {AGAIN}")
    if child.returncode < 0:
        print(messages, end="")
        name = signal.Signals(-child.returncode).name
        raise PipelineError(f"process {cluster.process} was ended by {name} (is there enough memory?). {AGAIN}")
    if child.returncode:
        sys.exit(messages.strip())


def run() -> None:
    """Train along, and end when the parent process ends."""
    folder = os.environ[FOLDER]
    threading.Thread(target=end_with_parent, args=(folder,), daemon=True).start()
    with cluster_errors():
        train_along(Path(folder))


def train_along(folder: Path) -> None:
    """Train until process 0 has recorded the results. Files that it sends are kept in a folder.

    Raises PipelineError if this process runs other code or other versions than process 0.
    """
    cluster = find_cluster()
    assert cluster is not None
    with importing_keras():
        from pipeline.core.backends import load_backend
        from pipeline.core.device import use_devices
        from pipeline.stages.train.checkpoint import Checkpoint
        from pipeline.stages.train.fitting import compile_epochs, fit
        from pipeline.stages.train.rendezvous import Peer
        from pipeline.stages.train.sharing import announce, connect, same_everywhere, unpack
        from pipeline.stages.train.training import set_up

    backend = load_backend()
    backend.check_cluster(cluster)
    announce(cluster)
    peer = Peer(cluster, same_everywhere())
    settings = json.loads(unpack(peer.receive(), folder))
    os.environ.update(settings["environment"])
    connect(cluster, settings["port"])
    config = Config.model_validate(settings["config"])
    images, validation = load_split(folder / paths.TRAIN.name), load_split(folder / paths.VALIDATION.name)
    with stderr_held():
        device = use_devices(config.training.batch_size, config.training.deterministic)
    _, learner = set_up(config, images, validation, device)
    compile_epochs(learner, images, validation, config)
    unpack(peer.receive(), folder)
    fit(learner, images, validation, config, Checkpoint(folder), lambda _: None)
    backend.disconnect()
    peer.finish()
    print(f"train: process {cluster.process} has finished, and process 0 has recorded the results")


if __name__ == "__main__":
    run_stage("train", __doc__, run)
