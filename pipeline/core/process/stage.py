"""Start and end of every stage: `--help`, and one line instead of a traceback for errors that the user can fix."""

import argparse
import faulthandler
import gc
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import IO, NoReturn

import psutil

from pipeline.core.errors import PipelineError
from pipeline.core.process.surroundings import limit_threads, run_by_dvc, settle, use_own_keras_settings
from pipeline.core.process.worker import RARELY, exit_at_once

DEFAULT_BACKEND = "tensorflow"
BACKENDS = {DEFAULT_BACKEND, "jax", "torch"}
CRASH = "Fatal Python error"  # the start of faulthandler's output
SHELLS = {"sh", "bash", "dash", "zsh", "ksh", "fish", "ash", "busybox"}
INITS = {"init", "systemd", "launchd"}  # processes that adopt those whose parent has ended
# `read` fails when the process, which holds the other end of the pipe, ends. The process handles signals.
WATCH = f'trap "" HUP INT TERM; read -r ended || {{ grep -qs "{CRASH}" "$1" && cat "$1" >&2; rm -f "$1"; }}'


def run_stage(name: str, description: str | None, run: Callable[[], None], cleared: bool = False) -> NoReturn:
    """Run one stage as a command, and end the process.

    `cleared` means that DVC removes the stage's earlier outputs before it starts.
    Exits with status 1 and a message on standard error if `run` raises PipelineError or OSError, such as for a full
    disk or a missing permission. Any other exception is a bug and keeps its traceback.
    """
    prepare_process()
    argparse.ArgumentParser(prog=f"python -m pipeline.stages.{name}", description=description).parse_args()
    if run_by_dvc():
        threading.Thread(target=interrupt_without, args=(find_dvc(),), daemon=True).start()
    rescue = " (`dvc checkout` restores the earlier results.)" if cleared and run_by_dvc() else ""
    try:
        run()
    except PipelineError as error:
        sys.exit(f"{name}: {error}{rescue}")
    except KeyboardInterrupt:
        sys.exit(f"\n{name}: interrupted; `dvc repro` continues from here")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"{name}: {where}{error.strerror or error}. Fix this and run `dvc repro` again.{rescue}")
    exit_at_once()


def prepare_process() -> None:
    """Make the settings of a process that may compute, before it imports anything large."""
    settle()
    limit_threads()
    gc.set_threshold(RARELY)
    # TensorFlow disables oneDNN by default without AVX-512, although oneDNN makes convolutions on AVX2 a fifth faster.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def interrupt_without(dvc: list[psutil.Process]) -> None:
    """Interrupt this process once one of `dvc` has ended, as Ctrl-C does: without DVC, its results would be lost.

    A next run would otherwise train beside this process, which would overwrite its results.
    """
    while dvc and all(map(lives, dvc)):
        time.sleep(0.5)
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # as in a shell's background jobs
    os.kill(os.getpid(), signal.SIGTERM if ignored else signal.SIGINT)


def lives(process: psutil.Process) -> bool:
    """Whether a process has not ended."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def find_dvc() -> list[psutil.Process]:
    """DVC's process and the shells between it and this one; empty if DVC has ended already.

    Not every shell replaces itself by the command that DVC gives it: Debian's /bin/sh waits for it.
    """
    with suppress(psutil.Error):
        parents = psutil.Process().parents()
        for number, process in enumerate(parents, 1):
            if process.name() not in SHELLS:
                adopted = process.name() in INITS or process.pid == 1
                return [] if adopted and not any("dvc" in word for word in process.cmdline()) else parents[:number]
    return []


@contextmanager
def importing_keras() -> Iterator[None]:
    """Import Keras inside the block, without TensorFlow's start-up messages and without unused optional packages.

    Keras imports these packages if they are installed, which takes a third of its import time. SciPy, which JAX needs,
    and the chosen backend remain available. Raises PipelineError if the backend is not supported or not installed.
    """
    check_backend()
    with stderr_held(), absent("sklearn", "matplotlib", "pandas"), other_backends_absent():
        yield
        use_own_keras_settings()


def other_backends_absent() -> AbstractContextManager[None]:
    """Hide all Keras backends but the chosen one from imports inside the block."""
    return absent(*(BACKENDS - {chosen_backend()}))


def chosen_backend() -> str:
    """Name of the Keras backend in the environment variable KERAS_BACKEND, or the default."""
    return os.environ.get("KERAS_BACKEND") or DEFAULT_BACKEND


def check_backend() -> None:
    """Make Keras use the chosen backend, regardless of ~/.keras/keras.json.

    Raises PipelineError if this pipeline does not support the backend, or if it is not installed.
    """
    name = os.environ["KERAS_BACKEND"] = chosen_backend()
    if name not in BACKENDS:
        raise PipelineError(f"KERAS_BACKEND={name}: must be one of {', '.join(sorted(BACKENDS))}")
    if importlib.util.find_spec(name) is None:
        raise PipelineError(missing_backend(name))


def missing_backend(name: str) -> str:
    """Error text for a backend that is not installed: how to install it, or to use an installed one."""
    others = [each for each in sorted(BACKENDS) if importlib.util.find_spec(each) is not None]
    use = "".join(f", and KERAS_BACKEND={each} uses {each}, which is installed" for each in others)
    return f"KERAS_BACKEND={name}: {name} is not installed; make repro BACKEND={name} installs it{use}"


@contextmanager
def absent(*packages: str) -> Iterator[None]:
    """Hide packages from imports inside the block, unless they are already imported."""
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None makes an import fail
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextmanager
def stderr_held() -> Iterator[None]:
    """Buffer standard error, including the output of C++ libraries, and show it only if the block fails.

    It is also shown if C++ code aborts inside the block, because nothing else tells why.
    TensorFlow prints a dozen lines in every process, and no setting silences them.
    """
    if sys.stderr is None:  # closed at start-up
        yield
        return
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.NamedTemporaryFile() as held, shown_after_crash(held):
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


@contextmanager
def shown_after_crash(file: IO[bytes]) -> Iterator[None]:
    """Start a shell that shows a file, with Python's traceback appended, if this process crashes inside the block.

    If the process is killed, the shell only removes the file. If there is no shell, nothing is shown.
    """
    before = faulthandler.is_enabled()
    try:
        watching = subprocess.Popen(["sh", "-c", WATCH, "sh", file.name], stdin=subprocess.PIPE)
    except OSError:
        yield
        return
    with watching as shell:
        faulthandler.enable(file)
        try:
            yield
        finally:
            faulthandler.disable()
            if before:
                faulthandler.enable()
            shell.communicate(b"\n")
