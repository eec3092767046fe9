"""One trial in a process of its own: an ordinary training, which reports its epochs, and its figures at the end."""

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.core.config import Config
from pipeline.core.dataset import Split, load_split
from pipeline.core.errors import PipelineError, first_line, is_exhausted
from pipeline.core.process.stage import importing_keras, prepare_process, stderr_held
from pipeline.sweep.shares import Share

Epoch = dict[str, float]
POLLING = 0.2  # seconds
STARTING = threading.Lock()  # multiprocessing is not made to start processes in several threads
TRAIN, VALIDATION = "train.npz", "validation.npz"  # in the folder of the sweep


class Task(NamedTuple):
    """What a trial trains, on which images, and on which part of the machine."""

    config: Config
    folder: Path  # with the images
    checkpoints: Path
    share: Share
    most_parameters: float = math.inf


class Outcome(NamedTuple):
    """The figures of a trained network on the validation images."""

    val_accuracy: float
    val_loss: float  # mean cross-entropy in nats, without label smoothing
    fit_seconds: float
    parameters: int
    wrong: list[int]  # indices of the misclassified validation images


class TrialError(Exception):
    """A trial failed: its message is the reason, in one line. The sweep goes on."""


class SurplusError(TrialError):
    """Several machines started the same trial, or more trials than the sweep has. It does not count."""


class Interrupted(BaseException):
    """The sweep stops. Optuna does not record this as a failure of the trial, which is started again later."""


@contextmanager
def running(task: Task, stopped: threading.Event) -> Iterator[Iterator[Epoch | Outcome]]:
    """Run a trial in a process, and yield its epochs and then its outcome. The process ends with the block.

    The iterator raises TrialError if the trial fails, and Interrupted when `stopped` is set.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that other threads hold
    connection, other = context.Pipe()
    process = context.Process(target=work, args=(other, task), daemon=True)
    with STARTING:
        resource_tracker.ensure_running()  # it would unblock the signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # in this thread and in processes that it starts
        process.start()
        other.close()
    try:
        yield messages(connection, process, stopped)
    finally:
        process.kill()
        process.join()
        connection.close()


def messages(
    connection: Connection, process: "multiprocessing.process.BaseProcess", stopped: threading.Event
) -> Iterator[Epoch | Outcome]:
    """The epochs of a trial, and its outcome. Raises TrialError if the trial fails or its process dies."""
    while True:
        while not connection.poll(POLLING):
            if stopped.is_set():
                raise Interrupted("interrupted")
        try:
            message = connection.recv()
        except (EOFError, OSError):
            process.join()
            raise TrialError(end_of(process.exitcode or 0)) from None
        if isinstance(message, TrialError):
            raise message
        yield message
        if isinstance(message, Outcome):
            return


def end_of(status: int) -> str:
    """Why a trial has no figures, from the exit status of its process."""
    if status < 0:
        return f"its process was ended by signal {-status}, perhaps for want of memory"
    return f"its process ended with status {status}, and says above why"


def work(connection: Connection, task: Task) -> None:
    """Run a trial, and send its epochs and its outcome, or the reason why it has none."""
    task.share.take()
    prepare_process()
    threading.Thread(target=end_with_sweep, daemon=True).start()
    with open(os.devnull, "w", encoding="utf-8") as nothing:  # noqa: PTH123 (a device)
        os.dup2(nothing.fileno(), 1)  # the sweep prints one line for each trial
    try:
        outcome = train(task, connection)
    except PipelineError as error:
        connection.send(TrialError(first_line(error)))
    except Exception as error:
        if not is_exhausted(error):
            raise
        connection.send(TrialError(f"memory is exhausted ({first_line(error)[:200]})"))
    else:
        connection.send(outcome)


def end_with_sweep() -> None:
    """End this process when that of the sweep has ended, even if it was killed."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def train(task: Task, connection: Connection) -> Outcome:
    """Train the network as the train stage does, and evaluate it on the validation images."""
    config, files = task.config, [task.folder / TRAIN, task.folder / VALIDATION]
    images, validation = map(load_split, files)
    with importing_keras():
        from pipeline.stages.train import fitting, training
        from pipeline.stages.train.checkpoint import open_checkpoint
        from pipeline.stages.train.recording import select_devices
    device = select_devices(config)
    network, learner = training.set_up(config, images, validation, device)
    if network.count_params() > task.most_parameters:
        raise PipelineError(f"it has {network.count_params():,} parameters, more than {task.most_parameters:,}")
    fitting.compile_epochs(learner, images, validation, config)
    with open_checkpoint(task.checkpoints, training.training_name(config, device, files)) as checkpoint:
        trained = training.train(network, learner, images, validation, config, checkpoint, connection.send)
        outcome = evaluate(trained.network, validation, trained.epochs)
        checkpoint.discard()
    return outcome


def evaluate(network: Any, validation: Split, epochs: list[Epoch]) -> Outcome:
    """The figures of a trained network."""
    from pipeline.stages.evaluate.evaluation import predict
    from pipeline.stages.evaluate.scoring import mistakes, score

    with stderr_held():
        logits, probabilities = predict(network, validation)
    figures = score(logits, probabilities, validation.labels)
    wrong = mistakes(probabilities, validation.labels)
    seconds = sum(epoch["seconds"] for epoch in epochs)
    return Outcome(figures.accuracy, figures.loss, seconds, network.count_params(), [each.index for each in wrong])
