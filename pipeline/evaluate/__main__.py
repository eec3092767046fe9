"""Score the network on every test image, once, and write reports/; ends with a short table.

Read when it runs: DEVICE (auto, cpu or gpu), MLFLOW_TRACKING_URI, KERAS_BACKEND.
"""

from pipeline import paths
from pipeline.config import load_config
from pipeline.dataset import load_split
from pipeline.stage import quietly, run_stage
from pipeline.tracking.store import open_store


def run() -> None:
    """Evaluate models/model.keras."""
    config = load_config()
    test = load_split(paths.TEST)
    store = open_store(paths.project_root(), required=False)
    with quietly():
        from pipeline.evaluate.evaluation import evaluate_and_record

    evaluate_and_record(config, test, store)


if __name__ == "__main__":
    run_stage("evaluate", __doc__, run)
