"""Train the network, record the run in MLflow, and write models/.

If a training run was killed, the next run of the stage resumes it after its last finished epoch.
Environment variables: DEVICE (auto, cpu or gpu), MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, KERAS_BACKEND.
"""

import psutil

from pipeline.core import paths
from pipeline.core.dataset import load_split
from pipeline.core.process.stage import check_backend, importing_keras, run_stage
from pipeline.core.process.stopwatch import Stopwatch
from pipeline.core.process.worker import Worker
from pipeline.core.validation import load_config
from pipeline.tracking.store import open_store


def run() -> None:
    """Train with the configuration in composed.yaml."""
    watch = Stopwatch(psutil.Process().create_time())
    check_backend()
    config = load_config(stage="train")
    with Worker() as worker:  # imports MLflow while this process imports Keras
        opening = worker.submit(open_store, paths.project_root())
        watch.lap("import")
        train, validation = load_split(paths.TRAIN), load_split(paths.VALIDATION)
        watch.lap("load")
        with importing_keras():
            from pipeline.stages.train.recording import train_and_record

        watch.lap("import")
        train_and_record(config, train, validation, opening, worker, watch)


if __name__ == "__main__":
    run_stage("train", __doc__, run, cleared=True)
