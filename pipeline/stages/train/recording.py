"""Train as one MLflow run: what the training reports is recorded by another process."""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import keras

from pipeline.core import paths
from pipeline.core.backends import load_backend
from pipeline.core.completion import mark_complete, remove_recorded
from pipeline.core.config import Config
from pipeline.core.dataset import Split
from pipeline.core.device import use_devices
from pipeline.core.errors import LostProcessError, PipelineError
from pipeline.core.files import md5, write_text
from pipeline.core.machine import describe_machine, describe_versions
from pipeline.core.process.stage import stderr_held
from pipeline.core.process.stopwatch import Stopwatch
from pipeline.core.process.surroundings import computing_settings, run_by_dvc
from pipeline.core.records import Provenance, TrainingRun
from pipeline.repository.dvc import recorded_outputs
from pipeline.stages.train.archive import save_network
from pipeline.stages.train.checkpoint import Checkpoint, Epoch, open_checkpoint
from pipeline.stages.train.fitting import compile_epochs
from pipeline.stages.train.sharing import gather_peers, release_peers, send_checkpoint, wait_for_peers
from pipeline.stages.train.training import (
    Trained,
    history_csv,
    peak_memory_mib,
    set_up,
    summary,
    train,
    training_name,
)
from pipeline.tracking.outbox import send_unsent, tell_failure
from pipeline.tracking.provenance import find_provenance
from pipeline.tracking.recorder import Recorder
from pipeline.tracking.runs import continue_run, epoch_metrics, look_up_packages, resume_run, start_run, system_metrics
from pipeline.tracking.store import Store
from pipeline.tracking.tags import TRAINING

PATIENCE = 10.0  # seconds without a response from the store after which a failed training run stops waiting


def train_and_record(
    config: Config, images: Split, validation: Split, opening: Future[Store], executor: Executor, watch: Stopwatch
) -> None:
    """Train, write models/, and record both through the executor's process, which is opening the store.

    Raises PipelineError if the network cannot be built or diverges. Errors from opening the store come first: nothing
    is compiled or trained that cannot be recorded.
    """
    root = paths.project_root()
    provenance = find_provenance()
    watch.lap("log")
    try:
        leader = gather_peers(config, check=opening.result)
        device = select_devices(config)
        network, learner = set_up(config, images, validation, device)
        watch.lap("build")
    except Exception:
        opening.result()  # wait, or this process could end before all tables exist
        raise
    store = opening.result()
    executor.submit(send_unsent, root).add_done_callback(tell_failure)
    watch.lap("log")
    compile_epochs(learner, images, validation, config)
    watch.lap("compile")
    with open_own_checkpoint(root / paths.CHECKPOINTS, training_name(config, device)) as checkpoint:
        recorder = open_run(config, store, provenance, checkpoint, device, executor)
        with ended_early(recorder, checkpoint):
            record_data(recorder, config, images, validation)
            executor.submit(look_up_packages).add_done_callback(tell_failure)  # while this process fits
            recorder.text("model_summary.txt", summary(network))
            watch.lap("log")
            send_checkpoint(leader, checkpoint)
            with system_metrics(recorder):
                report = reporter(recorder, config)
                trained = train(network, learner, images, validation, config, checkpoint, report)
            wait_for_peers(leader)
            watch.lap("fit")
            save(trained)
            watch.lap("save")
            digest = record_model(recorder, config, trained)
            watch.lap("log")
            finish(recorder, describe(recorder, trained, digest, device, provenance, watch))
        end(checkpoint, digest)
        release_peers(leader)


def open_own_checkpoint(parent: Path, name: str) -> AbstractContextManager[Checkpoint]:
    """Open the checkpoint of a training run, but not that of an earlier one whose model DVC has recorded."""
    remove_recorded(parent, recorded_outputs().get(str(paths.MODEL)))
    return open_checkpoint(parent, name)


def end(checkpoint: Checkpoint, model_md5: str) -> None:
    """Discard the checkpoint of a complete training, unless DVC still has to record the model."""
    if run_by_dvc():
        mark_complete(checkpoint.folder, model_md5)
    else:
        checkpoint.discard()


def save(trained: Trained) -> None:
    """Write the network and its learning curves."""
    save_network(paths.MODEL, trained.network)
    write_text(paths.HISTORY, history_csv(trained.epochs))


def select_devices(config: Config) -> str:
    """Select the devices, without the messages that backends print."""
    with stderr_held():
        return use_devices(config.training.batch_size, config.training.deterministic)


def reporter(recorder: Recorder, config: Config) -> Callable[[Epoch], None]:
    """A function that records the metrics of one epoch."""

    def report(epoch: Epoch) -> None:
        figures = epoch_metrics(epoch, config.training.validate_on)
        recorder.metrics(figures, int(epoch["epoch"]), epoch["timestamp"])

    return report


def finish(recorder: Recorder, run: TrainingRun) -> None:
    """Write models/run.json, and mark the run as finished."""
    run.write(paths.RUN)
    recorder.metrics(costs(run), run.epochs)
    recorder.status("FINISHED")
    recorder.flush()


@contextmanager
def ended_early(recorder: Recorder, checkpoint: Checkpoint) -> Iterator[None]:
    """Mark the run as failed or killed if the block raises."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, PipelineError) and not isinstance(error, LostProcessError):
            checkpoint.discard()  # it would diverge again; after other errors, training resumes
        try:
            recorder.status("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            recorder.flush(PATIENCE)
        except OSError as lost:  # the first error matters more
            print(f"train: the end of the run could not be recorded ({lost})")
        raise


def open_run(
    config: Config, store: Store, provenance: Provenance, checkpoint: Checkpoint, device: str, executor: Executor
) -> Recorder:
    """Open the MLflow run of the resumed training run, or a new one. The executor's process writes it."""
    root = paths.project_root()
    if abandoned := executor.submit(continue_run, store, checkpoint.forget_damaged(), root).result():
        Recorder(abandoned, executor).status("FAILED")
    tag, again = checkpoint.tag
    # Another experiment may have started the run, on another number of devices.
    tags = {"device": device, "devices": str(load_backend().devices), "keras.backend": keras.backend.backend()}
    tags |= {"precision": keras.config.dtype_policy().name, TRAINING: tag}
    run = executor.submit(resume_run, store, checkpoint.run_id, config, root, provenance, tags).result()
    if run is None:
        run = executor.submit(start_run, store, config, root, provenance, tags, again).result()
        checkpoint.run_id = run.run_id
    recorder = Recorder(run, executor)
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


def record_model(recorder: Recorder, config: Config, trained: Trained) -> str:
    """Record models/model.keras, wait until it is written, and return its MD5."""
    digest, shape, backend = md5(paths.MODEL), trained.network.input_shape[1:], keras.backend.backend()
    recorder.tags({"dvc.model": digest})
    recorder.model(paths.MODEL, shape, config.dataset.classes, backend)
    recorder.flush()
    return digest


def describe(
    recorder: Recorder, trained: Trained, digest: str, device: str, provenance: Provenance, watch: Stopwatch
) -> TrainingRun:
    """The content of models/run.json."""
    return TrainingRun(
        run_id=recorder.run_id,
        model_md5=digest,
        device=device,
        devices=load_backend().devices,
        backend=keras.backend.backend(),
        precision=keras.config.dtype_policy().name,
        parameters=trained.network.count_params(),
        epochs=len(trained.epochs),
        fit_seconds=round(sum(epoch["seconds"] for epoch in trained.epochs), 2),
        peak_memory_mib=peak_memory_mib(),
        machine=describe_machine(),
        versions=describe_versions(),
        environment=computing_settings(),
        provenance=provenance,
        seconds={name: round(seconds, 2) for name, seconds in watch.seconds.items()},
    )


def costs(run: TrainingRun) -> dict[str, float]:
    """Time and memory of the training run, as metrics."""
    seconds = {f"work/{name}_seconds": value for name, value in run.seconds.items() if name != "fit"}
    return seconds | {"work/fit_seconds": run.fit_seconds, "work/peak_memory_mib": run.peak_memory_mib}
