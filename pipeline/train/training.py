"""A training run, from the seed to the saved network, recorded as one MLflow run."""

import csv
import io
import os
import resource
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np

from pipeline import paths
from pipeline.config import Config
from pipeline.dataset import Split
from pipeline.device import choose_precision, use_device
from pipeline.errors import PipelineError
from pipeline.files import md5, write_json, write_text
from pipeline.machine import describe_machine, describe_versions, find_version
from pipeline.stage import other_backends_absent, quietly
from pipeline.stopwatch import Stopwatch
from pipeline.surroundings import computing_settings
from pipeline.tracking.provenance import EXPERIMENT, Provenance, find_provenance
from pipeline.tracking.recorder import Recorder, send_unsent, tell_failure
from pipeline.tracking.runs import continue_run, epoch_metrics, look_up_packages, start_run, system_metrics
from pipeline.tracking.store import Store
from pipeline.train.archive import save_network
from pipeline.train.checkpoint import Checkpoint, Epoch, fingerprint, open_checkpoint
from pipeline.train.components import explained
from pipeline.train.fitting import UNTRAINABLE, Learner, check_finite, compile_epochs, count_updates, fit, prepare
from pipeline.train.network import build_augmentation, build_network, build_optimizer
from pipeline.train.recalibration import recalibrate

FLOAT32 = "float32"
PATIENCE = 10.0  # seconds without a response from the store after which a failed training run stops waiting
HISTORY_COLUMNS = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")


def train_and_record(
    config: Config, train: Split, validation: Split, opening: Future[Store], executor: Executor, watch: Stopwatch
) -> None:
    """Fit, write models/, and record both through the executor's process, which is opening the store.

    Raises PipelineError if the network cannot be built or diverges. Errors from opening the store come first: nothing
    is compiled or trained that cannot be recorded.
    """
    root = paths.project_root()
    tell_other_versions(config.versions)
    provenance = find_provenance()
    watch.lap("log")
    try:
        with quietly():
            device = use_device(deterministic=config.training.deterministic)
        network, learner = set_up(config, train, validation, device)
        watch.lap("build")
    except PipelineError:
        opening.result()  # wait, or this process could end before all tables exist
        raise
    store = opening.result()
    executor.submit(send_unsent, root).add_done_callback(tell_failure)
    watch.lap("log")
    compile_epochs(learner, train, validation, config)
    watch.lap("compile")
    with open_checkpoint(root / paths.CHECKPOINTS, training_name(config, device)) as checkpoint:
        recorder = open_run(config, store, provenance, checkpoint, device, executor)
        with ended_early(recorder, checkpoint):
            record_data(recorder, config, train, validation)
            executor.submit(look_up_packages).add_done_callback(tell_failure)  # while this process fits
            recorder.text("model_summary.txt", summary(network))
            watch.lap("log")
            epochs = fit_recorded(learner, train, validation, config, checkpoint, recorder)
            watch.lap("fit")
            learner.give_weights_to(network)
            if config.training.recalibrate:
                recalibrate(network, train.images)
                check_finite([network])
            save_network(paths.MODEL, network)
            write_text(paths.HISTORY, history_csv(epochs))
            watch.lap("save")
            digest = md5(paths.MODEL)
            recorder.tags({"dvc.model": digest})
            recorder.model(paths.MODEL, network.input_shape[1:], config.dataset.classes, keras.backend.backend())
            recorder.flush()
            watch.lap("log")
            facts = {"run_id": recorder.run_id, "model_md5": digest, "device": device} | outcome(network, epochs)
            facts["provenance"] = provenance._asdict()
            facts["seconds"] = {name: round(seconds, 2) for name, seconds in watch.seconds.items()}
            write_json(paths.RUN, facts)
            recorder.metrics(costs(facts), len(epochs))
            recorder.status("FINISHED")
            recorder.flush()
        checkpoint.discard()


@contextmanager
def ended_early(recorder: Recorder, checkpoint: Checkpoint) -> Iterator[None]:
    """Mark the run as failed or killed if the block raises."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, PipelineError):  # it would diverge again; after other errors, training resumes
            checkpoint.discard()
        try:
            recorder.status("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            recorder.flush(PATIENCE)
        except OSError as lost:  # the first error matters more
            print(f"train: the end of the run could not be recorded ({lost})")
        raise


def set_up(config: Config, train: Split, validation: Split, device: str) -> tuple[keras.Model, Learner]:
    """Build the network to save, in float32, and a learner with the same weights in the training precision.

    All randomness follows from the configured seed.
    """
    training, shape, classes = config.training, train.images.shape[1:], config.dataset.classes
    with other_backends_absent():  # Keras would import an installed TensorFlow to seed it, too
        keras.utils.set_random_seed(config.seed)
    keras.config.set_dtype_policy(FLOAT32)
    with explained("model"):
        network = trained = build_network(config.model, shape, classes)
    augmentation = build_augmentation(training, shape)
    precision = choose_precision(training.precision, device)
    if precision != FLOAT32:
        keras.config.set_dtype_policy(precision)
        trained = build_network(config.model, shape, classes)
        trained.set_weights(network.get_weights())
    optimizer = build_optimizer(config.optimizer, training, count_updates(len(train.images), training))
    images = np.concatenate([train.images, validation.images])
    with explained(UNTRAINABLE):
        return network, prepare(trained, optimizer, augmentation, training, images)


def tell_other_versions(pinned: dict[str, str]) -> None:
    """Warn about installed versions that differ from the pinned ones: DVC does not detect the difference."""
    for package, version in pinned.items():
        installed = find_version(package)
        if installed not in (None, version):
            print(
                f"train: {package} {installed} is installed but {paths.REQUIREMENTS} pins {version}: results may differ"
            )


def training_name(config: Config, device: str) -> str:
    """Unique name of a training run, from its configuration, data, code, device, backend and versions."""
    relevant = config.model_dump(mode="json", include={"seed", "model", "optimizer", "training"}, by_alias=True)
    backend = keras.backend.backend()
    relevant["computed_by"] = [keras.__version__, backend, find_version(backend), device]
    relevant["precision"] = keras.config.dtype_policy().name
    code = sorted(Path(__file__).parent.parent.rglob("*.py"))
    return fingerprint(relevant, [paths.TRAIN, paths.VALIDATION, *code])


def open_run(
    config: Config, store: Store, provenance: Provenance, checkpoint: Checkpoint, device: str, executor: Executor
) -> Recorder:
    """Open the MLflow run of the resumed training run, or a new one. The executor's process writes it."""
    root = paths.project_root()
    run = executor.submit(continue_run, store, checkpoint.run_id, root).result()
    if run is None:
        tags = {"device": device, "keras.backend": keras.backend.backend()}
        tags["precision"] = keras.config.dtype_policy().name
        run = executor.submit(start_run, store, config, root, provenance, tags).result()
        checkpoint.run_id = run.run_id
    recorder = Recorder(run, executor)
    recorder.tags({"dvc.experiment": os.environ.get(EXPERIMENT, "")})  # another experiment may have started the run
    recorder.status("RUNNING")
    return recorder


def record_data(recorder: Recorder, config: Config, train: Split, validation: Split) -> None:
    """Record the training and validation sets by their hashes in dvc.lock."""
    validation_context = {"validation": "validation", "test": "test", "none": ""}[config.training.validate_on]
    for path, split, context in ((paths.TRAIN, train, "train"), (paths.VALIDATION, validation, validation_context)):
        if context:
            digest = md5(path)
            recorder.dataset(config.dataset.name, context, digest, len(split.images), list(split.images.shape[1:]))
            recorder.tags({f"dvc.{path.stem}": digest})


def fit_recorded(
    learner: Learner, train: Split, validation: Split, config: Config, checkpoint: Checkpoint, recorder: Recorder
) -> list[Epoch]:
    """Fit, and record every epoch and the machine's load."""

    def report(epoch: Epoch) -> None:
        figures = epoch_metrics(epoch, config.training.validate_on)
        recorder.metrics(figures, int(epoch["epoch"]), epoch["timestamp"])

    with system_metrics(recorder):
        return fit(learner, train, validation, config, checkpoint, report)


def outcome(network: keras.Model, epochs: list[Epoch]) -> dict[str, Any]:
    """Facts about a finished training run, for models/run.json."""
    return {
        "backend": keras.backend.backend(),
        "precision": keras.config.dtype_policy().name,
        "parameters": network.count_params(),
        "epochs": len(epochs),
        "fit_seconds": round(sum(epoch["seconds"] for epoch in epochs), 2),
        "peak_memory_mib": peak_memory_mib(),
        "machine": describe_machine(),
        "versions": describe_versions(),
        "environment": computing_settings(),
    }


def summary(network: keras.Model) -> str:
    """Table of layers, as printed by `network.summary()`."""
    lines: list[str] = []
    network.summary(line_length=88, expand_nested=True, print_fn=lambda line, **_: lines.append(line))
    return "\n".join(lines) + "\n"


def history_csv(epochs: list[Epoch]) -> str:
    """Learning curves as CSV, one row per epoch, without times, so that the same training gives the same file."""
    text = io.StringIO()
    columns = [name for name in HISTORY_COLUMNS if name in epochs[0]]
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(epoch | {"epoch": int(epoch["epoch"])} for epoch in epochs)
    return text.getvalue()


def costs(facts: dict[str, Any]) -> dict[str, float]:
    """Time and memory of the training run, as metrics."""
    seconds = {f"work/{name}_seconds": value for name, value in facts["seconds"].items() if name != "fit"}
    return seconds | {"work/fit_seconds": facts["fit_seconds"], "work/peak_memory_mib": facts["peak_memory_mib"]}


def peak_memory_mib() -> int:
    """Peak memory of this process, in MiB (getrusage(2) gives KiB on Linux and bytes on macOS)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1 << 20 if sys.platform == "darwin" else 1 << 10)
