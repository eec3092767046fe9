"""The environment of a clone: its own, or the current one if it has the same packages."""

import os
import subprocess
import sys
from pathlib import Path

from pipeline.commands.doctor.environment import differing_packages, shorten
from pipeline.commands.reproduce.clone import Clone, run
from pipeline.core.errors import PipelineError
from pipeline.core.machine import requirements_of

FOREIGN = ("GIT_", "DVC_", "MLFLOW_", "PYTHON", "KERAS_", "MAKE", "MFLAGS", "VIRTUAL_ENV")  # prefixes of variables
OWN = {"BACKEND", "GPU"}  # of the Makefile


def prepare_python(clone: Clone, backend: str, reuse: bool) -> str:
    """Path of the Python that runs the pipeline in a clone.

    With `reuse`, the current one if it has the versions that the clone pins. Otherwise a new environment, which the
    clone's own Makefile installs from its lock file; commits that precede the Makefile get it from pip.
    """
    requirements = requirements_of(backend)
    if not (clone.root / requirements).is_file():
        raise PipelineError(f"{requirements} does not exist in this commit: nothing says which packages it needs")
    if reuse:
        missing, different = differing_packages(clone.root / requirements)
        if not missing and not different:
            print(f"reproduce: this environment has the versions that {requirements} pins", file=sys.stderr)
            return sys.executable
        print(f"reproduce: this environment differs: {shorten([*missing, *different])}", file=sys.stderr)
    install(clone, requirements)
    return str(clone.root / ".venv" / "bin" / "python")


def install(clone: Clone, requirements: Path) -> None:
    """Install a lock file in a new environment. The user's settings of pip and uv apply, such as an index."""
    root = clone.root
    settings = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN) and name not in OWN}
    settings["TMPDIR"] = str(clone.home)
    python = getattr(sys, "_base_executable", sys.executable)  # not of an environment
    target = f".venv/{requirements}"
    known = subprocess.run(["make", "-n", target], cwd=root, env=settings, capture_output=True, check=False)
    if known.returncode == 0:
        run(root, ["make", target, f"PYTHON={python}"], settings)
        return
    run(root, [python, "-m", "venv", ".venv"], settings)
    run(root, [".venv/bin/python", "-m", "pip", "install", "--quiet", "-r", str(requirements)], settings)
