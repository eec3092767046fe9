"""Evaluate a saved network: write reports/ and record the results in its training run."""

import csv
import dataclasses
import io
import json
import zipfile
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from pipeline import paths
from pipeline.config import Config, SeedNoise, configuration_digest
from pipeline.dataset import Split
from pipeline.device import use_device
from pipeline.errors import PipelineError, first_line, without_secrets
from pipeline.evaluate.documents import Findings, model_card, report_page, run_markdown, title
from pipeline.evaluate.drawing import History, draw_confusion, draw_curves, draw_mistakes, draw_reliability
from pipeline.evaluate.scoring import Mistake, Reliability, mistakes, reliability, score
from pipeline.files import md5, write_json, write_text
from pipeline.pictures import save_picture
from pipeline.stage import quietly
from pipeline.tracking.provenance import Provenance, commands
from pipeline.tracking.recorder import Recorder
from pipeline.tracking.runs import continue_run, describe_run, epoch_metrics, link_run, start_run
from pipeline.tracking.store import Store, page

BATCH = 1000
FACTS = (
    *("run_id", "model_md5", "device", "backend", "parameters", "epochs", "fit_seconds", "peak_memory_mib"),
    *("precision", "machine", "versions", "environment"),
)
DATA = ("train", "validation", "test", "duplicates")
CURVES = ("epoch", "loss", "accuracy")
TEST_METRICS = ("accuracy", "accuracy_low", "accuracy_high", "loss", "errors", "images", "calibration_error")


def evaluate_and_record(config: Config, test: Split, opening: Future[Store], executor: Executor) -> None:
    """Score the network, write reports/ and record the results in MLflow.

    The process of `executor` opens the store (`opening`) and writes to it.
    Raises PipelineError if models/ does not hold what train wrote.
    """
    with quietly():
        use_device()
    facts, history, data = read_facts(paths.RUN), read_history(paths.HISTORY), read_data(paths.DATA_REPORT)
    network = load_network(paths.MODEL, facts["model_md5"])
    if network.input_shape[1:] != test.images.shape[1:]:
        raise PipelineError(
            f"{paths.MODEL} expects images of shape {network.input_shape[1:]}, but the test images have shape "
            f"{test.images.shape[1:]}: it was trained on another dataset. Run `dvc repro`"
        )
    logits, probabilities = predict(network, test)
    figures = score(logits, probabilities, test.labels)
    wrong = mistakes(probabilities, test.labels)
    store, provenance = opening.result(), Provenance(**facts["provenance"])
    recorder = find_run(config, store, facts, history, test.images.shape[1:], executor)
    facts["run_id"] = recorder.run_id  # the training run may be in another store
    digest = md5(paths.TEST)
    findings = Findings(config, facts, history, data, figures, wrong, test.images, known_noise(config, digest))
    write_reports(findings, reliability(probabilities, test.labels), commands(provenance, recorder.run_id))
    write_json(paths.METRICS, report(findings, recorder, digest))
    record(recorder, findings, provenance, digest)
    recorder.flush()
    Console(markup=False).print(closing_table(findings, recorder))
    print(f"The run is at {address(store, recorder)}")


def known_noise(config: Config, test_md5: str) -> SeedNoise | None:
    """Return the recipe's recorded seed noise, or None unless it was measured with these settings and test images."""
    noise = config.gate.seed_noise.get(config.dataset.name)
    composed = config.model_dump(by_alias=True, mode="json")
    return noise if noise and noise.configuration == configuration_digest(composed, test_md5) else None


def load_network(path: Path, digest: str) -> keras.Model:
    """Load the network that train saved, in Keras's safe mode, which runs no code from the file.

    Raises PipelineError if the file's MD5 is not `digest`, or if the file is not a Keras network.
    """
    if path.exists() and md5(path) != digest:
        raise PipelineError(
            f"{path} is not the file that train wrote: its MD5 is {md5(path)}, but {paths.RUN} records "
            f"{digest}. Run `dvc checkout` to restore it"
        )
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        reason = "is missing" if not path.exists() else f"cannot be read ({first_line(error)})"
        raise PipelineError(f"{path} {reason}: run `dvc repro`") from None


def predict(network: keras.Model, test: Split) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the logits and probabilities (N, classes) of all test images, each scored once."""
    try:
        both = keras.Model(network.inputs, [network.get_layer("logits").output, network.output])
    except ValueError:
        raise PipelineError(f"{paths.MODEL} is not a network that train wrote: run `dvc repro`") from None
    logits, probabilities = both.predict(test.images, batch_size=BATCH, verbose=0)
    if count := int((~np.isfinite(logits)).any(axis=1).sum()):
        raise PipelineError(
            f"{paths.MODEL} predicts NaN or infinity for {count} of {len(logits)} test images: lower "
            "optimizer.learning_rate and run `dvc repro`"
        )
    return logits, probabilities


def read_facts(path: Path) -> dict[str, Any]:
    """Read the facts that train recorded about its run."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return {name: facts[name] for name in FACTS} | {"provenance": Provenance(**facts["provenance"])._asdict()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PipelineError(f"{path} cannot be read ({error}): run `dvc repro`") from None


def read_history(path: Path) -> History:
    """Read the training curves by column."""
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        return {name: [float(row[name]) for row in rows] for name in dict.fromkeys((*CURVES, *rows[0]))}
    except (OSError, ValueError, IndexError, KeyError, TypeError) as error:
        raise PipelineError(f"{path} cannot be read ({error}): run `dvc repro`") from None


def read_data(path: Path) -> dict[str, Any]:
    """Read the statistics that preprocess wrote about the data."""
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {name: data[name] for name in DATA}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PipelineError(f"{path} cannot be read ({error}): run `dvc repro`") from None


def write_reports(findings: Findings, bins: Reliability, reproduce: list[str]) -> None:
    """Write the plots, the list of misclassified images, the report and the model card."""
    figures = findings.figures
    curve = draw_reliability(bins, figures["calibration_error"])
    for path, figure in {
        paths.CURVES_PICTURE: draw_curves(findings.history, findings.config.training.validate_on),
        paths.CONFUSION_PICTURE: draw_confusion(np.array(figures["confusion_matrix"])),
        paths.MISTAKES_PICTURE: draw_mistakes(findings.images, findings.wrong),
        paths.RELIABILITY_PICTURE: curve,
    }.items():
        save_picture(path, figure)
    write_text(paths.ERRORS, errors_csv(findings.wrong))
    write_text(paths.REPORT, report_page(findings, curve, reproduce))
    write_text(paths.MODEL_CARD, model_card(findings))


def errors_csv(wrong: list[Mistake]) -> str:
    """Format the misclassified images as CSV, one per row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(Mistake)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(mistake) for mistake in wrong)
    return text.getvalue()


def report(findings: Findings, recorder: Recorder, test_md5: str) -> dict[str, Any]:
    """Return the content of reports/metrics.json. DVC shows its numbers and strings and ignores its lists."""
    names = ("epochs", "parameters", "fit_seconds", "device", "backend", "precision")
    training = {name: findings.facts[name] for name in names}
    dataset = {"name": findings.config.dataset.name, "test_md5": test_md5}
    run = {"experiment_id": recorder.run.experiment_id, "run_id": recorder.run_id}
    return {"test": findings.figures, "training": training, "dataset": dataset, "mlflow": run}


def record(recorder: Recorder, findings: Findings, provenance: Provenance, test_md5: str) -> None:
    """Record the test metrics, plots and documents in a run."""
    figures, shape = findings.figures, list(findings.images.shape[1:])
    recorder.dataset(findings.config.dataset.name, "test", test_md5, figures["images"], shape)
    recorder.tags({"dvc.test": test_md5})
    recorder.metrics({f"test/{name}": figures[name] for name in TEST_METRICS}, findings.facts["epochs"])
    for picture in (*paths.PICTURES, paths.SAMPLES_PICTURE):
        recorder.artifact(picture, "plots")
    for file in (paths.METRICS, paths.ERRORS, paths.DATA_REPORT):
        recorder.artifact(file, "reports")
    for file in (paths.REPORT, paths.MODEL_CARD):
        recorder.artifact(file)
    recorder.model_file(paths.MODEL_CARD)
    recorder.model_file(paths.MISTAKES_PICTURE, paths.MISTAKES_PICTURE.parent.name)  # the model card links to it there
    describe_run(recorder, run_markdown(findings), commands(provenance, recorder.run_id))


def find_run(
    config: Config,
    store: Store,
    facts: dict[str, Any],
    history: History,
    image_shape: tuple[int, ...],
    executor: Executor,
) -> Recorder:
    """Return the run to record in: the training run, or a restored or child run in its place."""
    root, provenance = paths.project_root(), Provenance(**facts["provenance"])
    run = executor.submit(continue_run, store, facts["run_id"], root).result()
    if run is None:
        print(f"evaluate: MLflow has no run {facts['run_id']}: recording a restored run for this model")
        run = executor.submit(start_run, store, config, root, provenance, restored_tags(facts)).result()
        recorder = Recorder(run, executor)
        record_curves(recorder, config, history)
        recorder.model(paths.MODEL, image_shape, config.dataset.classes, keras.backend.backend())
        recorder.status("FINISHED")
        return recorder
    linked = executor.submit(link_run, store, facts["run_id"], config, root, provenance).result()
    if linked is None:
        return Recorder(run, executor)
    print(f"evaluate: the model belongs to MLflow run {facts['run_id']}: recording this experiment in a child run")
    recorder = Recorder(linked, executor)
    record_curves(recorder, config, history)
    recorder.status("FINISHED")
    return recorder


def restored_tags(facts: dict[str, Any]) -> dict[str, str]:
    """Tags of the run of a model that came from DVC's cache or a remote, and whose own run is not in this store."""
    tags = {"restored": "true", "restored.from": facts["run_id"], "dvc.model": facts["model_md5"]}
    made = {"device": facts["device"], "keras.backend": facts["backend"]}
    return tags | made | {name: facts[name] for name in ("precision", "machine", "versions", "environment")}


def record_curves(recorder: Recorder, config: Config, history: History) -> None:
    """Record the metrics of every epoch in a run."""
    for index, number in enumerate(history["epoch"]):
        epoch = {name: values[index] for name, values in history.items()}
        recorder.metrics(epoch_metrics(epoch, config.training.validate_on), int(number))


def closing_table(findings: Findings, recorder: Recorder) -> Table:
    """Summarize the results for the terminal."""
    config, figures, facts = findings.config, findings.figures, findings.facts
    table = Table(title=title(config), title_justify="left", show_header=False)
    low, high = figures["accuracy_low"], figures["accuracy_high"]
    table.add_row("test loss", f"{figures['loss']:.4f}")
    table.add_row("test accuracy", f"{figures['accuracy']:.2%}  (95 % interval {low:.2%} … {high:.2%})")
    table.add_row("errors", f"{figures['errors']} of {figures['images']:,} images, listed in {paths.ERRORS}")
    where = f"{facts['device']}, {facts['precision']}"
    table.add_row("training", f"{facts['fit_seconds']:.1f} s, {facts['epochs']} epochs, {where}")
    table.add_row("reports", f"{paths.REPORT} (open it in a browser), {paths.MODEL_CARD}, `dvc plots show`")
    if recorder.is_incomplete():
        table.add_row("MLflow", "some records did not reach the store: run `python -m pipeline.tracking send`")
    return table


def address(store: Store, recorder: Recorder) -> str:
    """Say where to find the run."""
    experiment = recorder.run.experiment_id
    if experiment is None:
        return without_secrets(f"{store.uri}, run {recorder.run_id}, once the store responds")
    where = page(store, f"experiments/{experiment}/runs/{recorder.run_id}")
    return where if store.remote else f"{where} (start the UI with `make ui`)"
