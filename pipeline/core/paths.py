"""Paths of the files that stages exchange, relative to the folder of dvc.yaml, and the root of the project."""

from pathlib import Path

CONF = Path("conf")
PARAMS = Path("params.yaml")
REQUIREMENTS = Path("requirements.txt")
COMPOSED = Path("composed.yaml")
SETTINGS = {  # the part of composed.yaml that each stage uses, for DVC to compare
    stage: Path(f"composed/{stage}.yaml") for stage in ("fetch", "preprocess", "train", "evaluate")
}

RAW = Path("data/raw")
RAW_FILES = {
    "train_images": RAW / "train-images-idx3-ubyte.gz",
    "train_labels": RAW / "train-labels-idx1-ubyte.gz",
    "test_images": RAW / "t10k-images-idx3-ubyte.gz",
    "test_labels": RAW / "t10k-labels-idx1-ubyte.gz",
}

TRAIN = Path("data/prepared/train.npz")
VALIDATION = Path("data/prepared/validation.npz")
TEST = Path("data/prepared/test.npz")

MODEL = Path("models/model.keras")
RUN = Path("models/run.json")
HISTORY = Path("models/history.csv")

STATISTICS = Path("reports/data/statistics.json")
SAMPLES_PICTURE = Path("reports/data/samples.png")

METRICS = Path("reports/metrics.json")
EVALUATION = Path("reports/evaluation.json")
ERRORS = Path("reports/errors.csv")
REPORT = Path("reports/report.html")
MODEL_CARD = Path("reports/model_card.md")

CURVES_PICTURE = Path("reports/pictures/curves.png")
CONFUSION_PICTURE = Path("reports/pictures/confusion_matrix.png")
MISTAKES_PICTURE = Path("reports/pictures/worst_mistakes.png")
RELIABILITY_PICTURE = Path("reports/pictures/reliability.png")
PICTURES = (CURVES_PICTURE, CONFUSION_PICTURE, MISTAKES_PICTURE, RELIABILITY_PICTURE)

CHECKPOINTS = Path(".resume")  # relative to project_root(), because DVC empties output folders before a stage runs

COMPILED = Path(".compiled")  # also relative to project_root(): JAX's compilation cache for this machine


def project_root() -> Path:
    """The cloned folder, even if the code runs in a temporary folder of `dvc exp run --temp` or `--queue`.

    DVC creates those in .dvc/tmp/exps. DVC_ROOT is not reliable: it may be inherited from another project.
    """
    here = Path(__file__).parents[2].resolve()
    temporary = next((folder for folder in here.parents if folder.parts[-3:] == (".dvc", "tmp", "exps")), None)
    return temporary.parents[2] if temporary else here
