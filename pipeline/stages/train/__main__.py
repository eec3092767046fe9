"""Train the network, record the run in MLflow, and write models/.

If a training run was killed, the next run of the stage resumes it after its last finished epoch.
Environment variables: DEVICE (auto, cpu or gpu), DEVICES (a number or all), KERAS_BACKEND, MLFLOW_TRACKING_URI,
MLFLOW_EXPERIMENT_NAME; JAX_NUM_PROCESSES, JAX_PROCESS_ID and JAX_COORDINATOR_ADDRESS for several machines.
"""

import atexit
import contextlib
import os
import sys
from typing import NoReturn

import psutil

from pipeline.core import paths
from pipeline.core.cluster import cluster_errors, find_cluster
from pipeline.core.dataset import load_split
from pipeline.core.errors import is_exhausted
from pipeline.core.machine import check_versions
from pipeline.core.process.stage import check_backend, importing_keras, run_stage
from pipeline.core.process.stopwatch import Stopwatch
from pipeline.core.process.worker import Worker
from pipeline.core.validation import load_config
from pipeline.repository.dvc import check_upstream
from pipeline.stages.train.batch_size import PROGRAM
from pipeline.stages.train.peer import run_peer
from pipeline.tracking.store import open_store


def run() -> None:
    """Train with the configuration in composed.yaml, or along with the process that does.

    If memory is exhausted, suggest a smaller batch size.
    """
    cluster = find_cluster()
    if cluster:
        with cluster_errors():
            run_peer(cluster) if cluster.process else train()
        return
    try:
        train()
    except Exception as error:
        if not is_exhausted(error):
            raise
        suggest_batch_size()


def suggest_batch_size() -> NoReturn:
    """Replace this process by one that looks for a batch size that fits in memory."""
    with contextlib.suppress(Exception):
        from pipeline.core.backends import load_backend
        from pipeline.core.device import use_device

        os.environ["DEVICES"] = str(load_backend().devices)
        os.environ["DEVICE"] = use_device()
    with contextlib.suppress(OSError, AttributeError):  # a closed standard output
        sys.stdout.flush()
    atexit._run_exitfuncs()  # TensorFlow's removal of temporary files
    os.execv(sys.executable, PROGRAM)  # noqa: S606 (a process frees all its memory, the GPU's too, only by ending)


def train() -> None:
    """Train, with the parts that take long side by side."""
    watch = Stopwatch(psutil.Process().create_time())
    check_backend()
    check_versions("train")
    config = load_config(stage="train")
    check_upstream("train")
    with Worker() as worker:  # imports MLflow while this process imports Keras
        opening = worker.submit(open_store, paths.project_root())
        watch.lap("import")
        images, validation = load_split(paths.TRAIN), load_split(paths.VALIDATION)
        watch.lap("load")
        with importing_keras():
            from pipeline.stages.train.recording import train_and_record

        watch.lap("import")
        train_and_record(config, images, validation, opening, worker, watch)


if __name__ == "__main__":
    run_stage("train", __doc__, run, cleared=True)
