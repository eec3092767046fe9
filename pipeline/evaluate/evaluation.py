"""One evaluation, from a saved network to reports/, recorded in the run of its training."""

import csv
import dataclasses
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from pipeline import paths
from pipeline.config import Config
from pipeline.dataset import Split
from pipeline.device import use_device
from pipeline.errors import PipelineError, first_line
from pipeline.evaluate.drawing import History, draw_confusion, draw_curves, draw_mistakes, draw_reliability
from pipeline.evaluate.scoring import Mistake, mistakes, reliability, score
from pipeline.files import md5, write_json, write_text
from pipeline.pictures import save_picture
from pipeline.stage import quietly
from pipeline.tracking.recorder import Recorder
from pipeline.tracking.runs import continue_run, epoch_metrics, start_run
from pipeline.tracking.store import Store, page

BATCH = 1000
FACTS = ("run_id", "device", "backend", "parameters", "epochs", "fit_seconds")
CURVES = ("epoch", "loss", "accuracy")
TEST_METRICS = ("accuracy", "accuracy_low", "accuracy_high", "loss", "errors", "images", "calibration_error")


def evaluate_and_record(config: Config, test: Split, store: Store) -> None:
    """Score, write reports/ and record them. Raises PipelineError if models/ is not what train writes."""
    with quietly():
        use_device()
    network, facts, history = load_network(paths.MODEL), read_facts(paths.RUN), read_history(paths.HISTORY)
    if network.input_shape[1:] != test.images.shape[1:]:
        raise PipelineError(
            f"{paths.MODEL} reads images of {network.input_shape[1:]}, the test images are {test.images.shape[1:]}: "
            "it belongs to another dataset. Run `dvc repro`"
        )
    logits, probabilities = predict(network, test)
    figures = score(logits, probabilities, test.labels)
    wrong = mistakes(probabilities, test.labels)
    for path, figure in draw(config, history, test, probabilities, figures, wrong).items():
        save_picture(path, figure)
    write_text(paths.ERRORS, errors_csv(wrong))
    root, test_md5 = paths.project_root(), md5(paths.TEST)
    recorder = continue_run(store, facts["run_id"], root) or restore_run(config, store, facts, history)
    write_json(paths.METRICS, report(config, figures, facts, recorder, test_md5))
    record(recorder, config, figures, facts["epochs"], test_md5)
    Console().print(closing_table(config, figures, facts, recorder))
    print(f"The run is at {address(store, recorder)}")


def load_network(path: Path) -> keras.Model:
    """The saved network, without running any code that the file may bring along (Keras's safe mode)."""
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        reason = "is missing" if not path.exists() else f"cannot be read ({first_line(error)})"
        raise PipelineError(f"{path} {reason}: run `dvc repro`") from None


def predict(network: keras.Model, test: Split) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits and probabilities (N, classes) of all images, each looked at once."""
    try:
        both = keras.Model(network.inputs, [network.get_layer("logits").output, network.output])
    except ValueError:
        raise PipelineError(f"{paths.MODEL} is not a network that train wrote: run `dvc repro`") from None
    logits, probabilities = both.predict(test.images, batch_size=BATCH, verbose=0)
    return logits, probabilities


def read_facts(path: Path) -> dict[str, Any]:
    """What train wrote about the run."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return {name: facts[name] for name in FACTS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PipelineError(f"{path} cannot be read ({error}): run `dvc repro`") from None


def read_history(path: Path) -> History:
    """The training curves by column."""
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        return {name: [float(row[name]) for row in rows] for name in dict.fromkeys((*CURVES, *rows[0]))}
    except (OSError, ValueError, IndexError, KeyError, TypeError) as error:
        raise PipelineError(f"{path} cannot be read ({error}): run `dvc repro`") from None


def draw(
    config: Config,
    history: History,
    test: Split,
    probabilities: NDArray[np.float32],
    figures: dict[str, Any],
    wrong: list[Mistake],
) -> dict[Path, Figure]:
    """All pictures, by where they go."""
    bins = reliability(probabilities, test.labels)
    return {
        paths.CURVES_PICTURE: draw_curves(history, config.training.validate_on),
        paths.CONFUSION_PICTURE: draw_confusion(np.array(figures["confusion_matrix"])),
        paths.MISTAKES_PICTURE: draw_mistakes(test.images, wrong),
        paths.RELIABILITY_PICTURE: draw_reliability(bins, figures["calibration_error"]),
    }


def errors_csv(wrong: list[Mistake]) -> str:
    """The list of wrong images, one a row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(Mistake)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(mistake) for mistake in wrong)
    return text.getvalue()


def report(
    config: Config, figures: dict[str, Any], facts: dict[str, Any], recorder: Recorder, test_md5: str
) -> dict[str, Any]:
    """The content of reports/metrics.json. DVC shows its numbers and names and passes over its lists."""
    training = {name: facts[name] for name in ("epochs", "parameters", "fit_seconds", "device", "backend")}
    dataset = {"name": config.dataset.name, "test_md5": test_md5}
    run = {"experiment_id": recorder.experiment_id, "run_id": recorder.run_id}
    return {"test": figures, "training": training, "dataset": dataset, "mlflow": run}


def record(recorder: Recorder, config: Config, figures: dict[str, Any], epochs: int, test_md5: str) -> None:
    """Add the test's figures and pictures to a run."""
    recorder.dataset(config.dataset.name, "test", test_md5, figures["images"], [])
    recorder.tags({"dvc.test": test_md5})
    recorder.metrics({f"test/{name}": figures[name] for name in TEST_METRICS}, epochs)
    for picture in (*paths.PICTURES, paths.SAMPLES_PICTURE):
        recorder.artifact(picture, "plots")
    for file in (paths.METRICS, paths.ERRORS, paths.DATA_REPORT):
        recorder.artifact(file, "reports")


def restore_run(config: Config, store: Store, facts: dict[str, Any], history: History) -> Recorder:
    """A run for a model that came out of DVC's cache or a remote, and whose own run this store does not have."""
    print(f"evaluate: MLflow has no run {facts['run_id']}: the model was restored, and so is its run")
    tags = {"restored": "true", "restored.from": facts["run_id"], "dvc.model": md5(paths.MODEL)}
    tags |= {"device": facts["device"], "keras.backend": facts["backend"]}
    recorder = start_run(store, config, paths.project_root(), "evaluate", tags)
    for index, number in enumerate(history["epoch"]):
        epoch = {name: values[index] for name, values in history.items()}
        recorder.metrics(epoch_metrics(epoch, config.training.validate_on), int(number))
    recorder.model(paths.MODEL)
    recorder.status("FINISHED")
    return recorder


def closing_table(config: Config, figures: dict[str, Any], facts: dict[str, Any], recorder: Recorder) -> Table:
    """What a person wants to know at the end."""
    title = f"{config.recipe}: {config.model.name} on {config.dataset.name}, seed {config.seed}"
    table = Table(title=title, title_justify="left", show_header=False)
    low, high = figures["accuracy_low"], figures["accuracy_high"]
    table.add_row("test loss", f"{figures['loss']:.4f}")
    table.add_row("test accuracy", f"{figures['accuracy']:.2%}  (95 % interval {low:.2%} … {high:.2%})")
    table.add_row("errors", f"{figures['errors']} of {figures['images']:,} images, listed in {paths.ERRORS}")
    table.add_row("training", f"{facts['fit_seconds']:.1f} s, {facts['epochs']} epochs, {facts['device']}")
    table.add_row("pictures", f"{paths.CURVES_PICTURE.parent}/, or `dvc plots show`")
    if recorder.is_incomplete():
        table.add_row("MLflow", "the store did not take everything: `python -m pipeline.tracking send` sends the rest")
    return table


def address(store: Store, recorder: Recorder) -> str:
    """Where to look at the run."""
    experiment = recorder.experiment_id
    if experiment is None:
        return f"{store.uri}, run {recorder.run_id}, once it answers"
    where = page(store, f"experiments/{experiment}/runs/{recorder.run_id}")
    return where if store.remote else f"{where} once `make ui` serves it"
