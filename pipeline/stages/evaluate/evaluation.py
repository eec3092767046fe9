"""Evaluate a saved network: write reports/ and record the results in its training run."""

import csv
import dataclasses
import io
import zipfile
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from pipeline.core import paths
from pipeline.core.completion import remove_recorded
from pipeline.core.config import Config, SeedNoise, configuration_digest
from pipeline.core.dataset import Split
from pipeline.core.device import use_device
from pipeline.core.errors import PipelineError, first_line, is_exhausted, without_secrets
from pipeline.core.files import md5, write_text
from pipeline.core.pictures import save_picture
from pipeline.core.process.stage import stderr_held
from pipeline.core.process.worker import Worker
from pipeline.core.records import (
    DataStatistics,
    Evaluation,
    RunReference,
    ScoredImages,
    TrainingFigures,
    TrainingRun,
    metrics_of,
)
from pipeline.stages.evaluate.documents import Findings, model_card, report_page, run_markdown, title
from pipeline.stages.evaluate.drawing import History, draw_confusion, draw_curves, draw_mistakes, draw_reliability
from pipeline.stages.evaluate.scoring import Mistake, Reliability, mistakes, reliability, score
from pipeline.tracking.outbox import send_unsent, tell_failure
from pipeline.tracking.provenance import commands
from pipeline.tracking.recorder import Recorder
from pipeline.tracking.runs import (
    RESTORED_FROM,
    continue_run,
    describe_run,
    epoch_metrics,
    find_restored,
    link_run,
    start_run,
)
from pipeline.tracking.store import Store, page

BATCH = 1000
CURVES = ("epoch", "loss", "accuracy")
TEST_METRICS = ("accuracy", "accuracy_low", "accuracy_high", "loss", "errors", "images", "calibration_error")


def evaluate_and_record(config: Config, test: Split, opening: Future[Store], executor: Executor) -> None:
    """Score the network, write reports/ and record the results in MLflow.

    The process of `executor` opens the store (`opening`) and writes to it.
    Raises PipelineError if models/ does not hold what train wrote.
    """
    with stderr_held():
        device = use_device()
    run, data = TrainingRun.read(paths.RUN), DataStatistics.read(paths.STATISTICS)
    history = read_history(paths.HISTORY)
    with enough_memory(device):
        network = load_network(paths.MODEL, run.model_md5)
    remove_recorded(paths.project_root() / paths.CHECKPOINTS, run.model_md5)
    if network.input_shape[1:] != test.images.shape[1:]:
        raise PipelineError(
            f"{paths.MODEL} expects images of shape {network.input_shape[1:]}, but the test images have shape "
            f"{test.images.shape[1:]}: it was trained on another dataset. Run `dvc repro`"
        )
    with enough_memory(device):
        logits, probabilities = predict(network, test)
    figures = score(logits, probabilities, test.labels)
    wrong = mistakes(probabilities, test.labels)
    store = opening.result()
    executor.submit(send_unsent, paths.project_root()).add_done_callback(tell_failure)
    recorder = find_run(config, store, run, history, test.images.shape[1:], executor)
    run = run.model_copy(update={"run_id": recorder.run_id})  # the training run may be in another store
    digest = md5(paths.TEST)
    findings = Findings(config, run, history, data, figures, wrong, test.images, known_noise(config, digest))
    reproduce = commands(run.provenance, recorder.run_id, run.backend)
    write_reports(findings, reliability(probabilities, test.labels), reproduce)
    evaluation = summarize(findings, recorder, digest)
    evaluation.write(paths.EVALUATION)
    metrics_of(evaluation).write(paths.METRICS)
    record(recorder, findings, reproduce, digest)
    send_again(recorder)
    Console(markup=False).print(closing_table(findings, recorder))
    print(f"The run is at {address(store, recorder)}")


@contextmanager
def enough_memory(device: str) -> Iterator[None]:
    """Turn an error of exhausted memory in this block into a PipelineError."""
    try:
        yield
    except Exception as error:
        if not is_exhausted(error):
            raise
        remedy = "" if device == "cpu" else ", or use DEVICE=cpu"
        raise PipelineError(
            f"the network and a batch of {BATCH} images do not fit in memory: end other processes{remedy}"
        ) from None


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
            f"{digest}. Remove it and run `dvc repro`"
        )
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        reason = f"cannot be read ({first_line(error)}): remove it and" if path.exists() else "is missing:"
        raise PipelineError(f"{path} {reason} run `dvc repro`") from None


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


def read_history(path: Path) -> History:
    """Read the training curves by column."""
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        return {name: [float(row[name]) for row in rows] for name in dict.fromkeys((*CURVES, *rows[0]))}
    except (OSError, ValueError, IndexError, KeyError, TypeError, csv.Error) as error:
        raise PipelineError(f"{path} cannot be read ({error}): remove it and run `dvc repro`") from None


def write_reports(findings: Findings, bins: Reliability, reproduce: list[str]) -> None:
    """Write the plots, the list of misclassified images, the report and the model card."""
    figures = findings.figures
    curve = draw_reliability(bins, figures.calibration_error)
    for path, figure in {
        paths.CURVES_PICTURE: draw_curves(findings.history, findings.config.training.validate_on),
        paths.CONFUSION_PICTURE: draw_confusion(np.array(figures.confusion_matrix)),
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


def summarize(findings: Findings, recorder: Recorder, test_md5: str) -> Evaluation:
    """Return the record of the evaluation."""
    return Evaluation(
        test=findings.figures,
        training=TrainingFigures.model_validate(findings.run.model_dump(include=set(TrainingFigures.model_fields))),
        dataset=ScoredImages(name=findings.config.dataset.name, test_md5=test_md5),
        mlflow=RunReference(run_id=recorder.run_id, experiment_id=recorder.run.experiment_id),
    )


def record(recorder: Recorder, findings: Findings, reproduce: list[str], test_md5: str) -> None:
    """Record the test metrics, plots and documents in a run."""
    figures, shape = findings.figures, list(findings.images.shape[1:])
    recorder.dataset(findings.config.dataset.name, "test", test_md5, figures.images, shape)
    recorder.tags({"dvc.test": test_md5})
    recorder.metrics({f"test/{name}": getattr(figures, name) for name in TEST_METRICS}, findings.run.epochs)
    for picture in (*paths.PICTURES, paths.SAMPLES_PICTURE):
        recorder.artifact(picture, "plots")
    for file in (paths.EVALUATION, paths.ERRORS, paths.STATISTICS):
        recorder.artifact(file, "reports")
    for file in (paths.REPORT, paths.MODEL_CARD):
        recorder.artifact(file)
    recorder.model_file(paths.MODEL_CARD)
    recorder.model_file(paths.MISTAKES_PICTURE, paths.MISTAKES_PICTURE.parent.name)  # the model card links to it there
    describe_run(recorder, run_markdown(findings), reproduce)


def send_again(recorder: Recorder) -> None:
    """Wait until all records are written or kept, and try once more to send those that were kept.

    The store may be available again, or another process of the pipeline may have died.
    """
    if recorder.is_incomplete():
        with Worker() as worker:
            worker.submit(send_unsent, recorder.run.root).result()


def find_run(
    config: Config,
    store: Store,
    trained: TrainingRun,
    history: History,
    image_shape: tuple[int, ...],
    executor: Executor,
) -> Recorder:
    """Return the run to record in: the training run, or a restored or child run in its place."""
    root, provenance = paths.project_root(), trained.provenance
    run = executor.submit(continue_run, store, trained.run_id, root).result()
    if run is None and (earlier := executor.submit(find_restored, store, trained, config, root).result()):
        return Recorder(earlier, executor)
    if run is None:
        print(f"evaluate: MLflow has no run {trained.run_id}: recording a restored run for this model")
        run = executor.submit(start_run, store, config, root, provenance, restored_tags(trained)).result()
        recorder = Recorder(run, executor)
        record_curves(recorder, config, history)
        recorder.model(paths.MODEL, image_shape, config.dataset.classes, keras.backend.backend())
        recorder.status("FINISHED")
        return recorder
    linked = executor.submit(link_run, store, trained.run_id, config, root, provenance).result()
    if linked is None:
        return Recorder(run, executor)
    print(f"evaluate: the model belongs to MLflow run {trained.run_id}: recording this experiment in a child run")
    recorder = Recorder(linked, executor)
    record_curves(recorder, config, history)
    recorder.status("FINISHED")
    return recorder


def restored_tags(run: TrainingRun) -> dict[str, str]:
    """Tags of the run of a model that came from DVC's cache or a remote, and whose own run is not in this store."""
    tags = {"restored": "true", RESTORED_FROM: run.run_id, "dvc.model": run.model_md5}
    made = {"device": run.device, "devices": str(run.devices), "keras.backend": run.backend}
    return tags | made | run.model_dump(include={"precision", "machine", "versions", "environment"})


def record_curves(recorder: Recorder, config: Config, history: History) -> None:
    """Record the metrics of every epoch in a run."""
    for index, number in enumerate(history["epoch"]):
        epoch = {name: values[index] for name, values in history.items()}
        recorder.metrics(epoch_metrics(epoch, config.training.validate_on), int(number))


def closing_table(findings: Findings, recorder: Recorder) -> Table:
    """Summarize the results for the terminal."""
    config, figures, run = findings.config, findings.figures, findings.run
    table = Table(title=title(config), title_justify="left", show_header=False)
    low, high = figures.accuracy_low, figures.accuracy_high
    table.add_row("test loss", f"{figures.loss:.4f}")
    table.add_row("test accuracy", f"{figures.accuracy:.2%}  (95 % interval {low:.2%} … {high:.2%})")
    table.add_row("errors", f"{figures.errors} of {figures.images:,} images, listed in {paths.ERRORS}")
    where = f"{run.hardware}, {run.precision}"
    table.add_row("training", f"{run.fit_seconds:.1f} s, {run.epochs} epochs, {where}")
    table.add_row("reports", f"{paths.REPORT} (open it in a browser), {paths.MODEL_CARD}, `dvc plots show`")
    if recorder.is_incomplete():
        table.add_row("MLflow", "some records did not reach the store: run `make send`")
    return table


def address(store: Store, recorder: Recorder) -> str:
    """Say where to find the run."""
    experiment = recorder.run.experiment_id
    if experiment is None:
        return without_secrets(f"{store.uri}, run {recorder.run_id}, once the store responds")
    where = page(store, f"experiments/{experiment}/runs/{recorder.run_id}")
    return where if store.remote else f"{where} (start the UI with `make ui`)"
