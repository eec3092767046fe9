"""Score the network once on every test image, write reports/ and print a summary table.

Environment variables: DEVICE (auto, cpu or gpu), MLFLOW_TRACKING_URI, KERAS_BACKEND.
"""

from pipeline.core import paths
from pipeline.core.dataset import load_split
from pipeline.core.machine import check_versions
from pipeline.core.process.stage import check_backend, importing_keras, run_stage
from pipeline.core.process.worker import Worker
from pipeline.core.validation import load_config
from pipeline.repository.dvc import check_undamaged, check_upstream
from pipeline.tracking.store import open_store


def run() -> None:
    """Evaluate models/model.keras."""
    check_backend()
    check_versions("evaluate")
    config = load_config(stage="evaluate")
    check_upstream("evaluate")
    check_undamaged((paths.RUN, paths.HISTORY, paths.STATISTICS))
    with Worker() as worker:  # imports MLflow while this process imports Keras
        opening = worker.submit(open_store, paths.project_root(), required=False)
        test = load_split(paths.TEST)
        with importing_keras():
            import keras  # noqa: F401 (on its own: importing_keras hides Matplotlib, which the plots need)
        from pipeline.stages.evaluate.evaluation import evaluate_and_record

        evaluate_and_record(config, test, opening, worker)


if __name__ == "__main__":
    run_stage("evaluate", __doc__, run)
