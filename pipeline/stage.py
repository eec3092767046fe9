"""How every stage starts and ends: `--help`, and one clear line instead of a traceback for what the user can mend."""

import argparse
import faulthandler
import gc
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import IO, NoReturn

from pipeline.errors import PipelineError
from pipeline.surroundings import settle, use_own_keras_settings
from pipeline.worker import RARELY, exit_at_once

BACKENDS = {"tensorflow", "jax", "torch"}
CRASH = "Fatal Python error"  # how faulthandler begins
# `read` fails once the process, which holds the other end of the pipe, is gone. The process handles signals itself.
WATCH = f'trap "" HUP INT TERM; read -r ended || {{ grep -qs "{CRASH}" "$1" && cat "$1" >&2; rm -f "$1"; }}'


def run_stage(name: str, description: str | None, run: Callable[[], None], cleared: bool = False) -> NoReturn:
    """Run one stage as a command, and end the process.

    `cleared` says that DVC removes what the stage made earlier before it starts.
    Exits with status 1 and the message on standard error when `run` raises PipelineError or an OSError
    (a full disk, a file without permission); any other exception is a bug and keeps its traceback.
    """
    settle()
    gc.set_threshold(RARELY)
    # Without AVX-512 TensorFlow leaves oneDNN off by itself; on AVX2, too, convolutions are a fifth quicker with it.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    argparse.ArgumentParser(prog=f"python -m pipeline.{name}", description=description).parse_args()
    rescue = " (`dvc checkout` brings the earlier results back.)" if cleared and "DVC_STAGE" in os.environ else ""
    try:
        run()
    except PipelineError as error:
        sys.exit(f"{name}: {error}{rescue}")
    except KeyboardInterrupt:
        sys.exit(f"\n{name}: interrupted; `dvc repro` goes on from here")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"{name}: {where}{error.strerror or error}. Mend that and run `dvc repro` again.{rescue}")
    exit_at_once()


@contextmanager
def importing_keras() -> Iterator[None]:
    """Import Keras inside the block, without TensorFlow's greetings and without packages that no stage has it use.

    Keras takes them along where they are there, and a third of its import is theirs. SciPy, which JAX needs, stays; of
    Keras's backends the one that it computes with.
    """
    with quietly(), absent("sklearn", "matplotlib", "pandas"), other_backends_absent():
        yield
        use_own_keras_settings()


def other_backends_absent() -> AbstractContextManager[None]:
    """Have Keras inside the block find no other of its backends than the one that it computes with."""
    return absent(*(BACKENDS - {chosen_backend()}))


def chosen_backend() -> str:
    """What Keras will compute with, as the environment variable KERAS_BACKEND says."""
    return os.environ.get("KERAS_BACKEND") or "tensorflow"


def check_backend() -> None:
    """Have Keras use the chosen backend, whatever its own file of settings says.

    Raises PipelineError for one that this pipeline does not know, or that is not installed.
    """
    name = os.environ["KERAS_BACKEND"] = chosen_backend()
    if name not in BACKENDS:
        raise PipelineError(f"KERAS_BACKEND={name}: must be {', '.join(sorted(BACKENDS))}")
    if importlib.util.find_spec(name) is None:
        raise PipelineError(f"KERAS_BACKEND={name}: {name} is not installed: pip install {name}")


@contextmanager
def absent(*packages: str) -> Iterator[None]:
    """Have imports inside the block not find these packages, unless they were imported before."""
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: Python's own way to say so
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextmanager
def quietly() -> Iterator[None]:
    """Hold back what is written to standard error, also by libraries in C++, and show it only if the block fails.

    It is shown, too, if C++ code aborts inside the block: nothing else says why.
    TensorFlow greets every process with a dozen lines that no setting silences.
    """
    if sys.stderr is None:  # closed from the start
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
    """Show a file, with Python's traceback appended, if this process crashes inside the block: a shell waits for that.

    If the process is killed, the shell only removes the file. Without a shell, nothing is shown.
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
