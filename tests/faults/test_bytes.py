"""Flipped bits in files that a run reads later."""

import os
import random
from pathlib import Path

import pytest

from tests.faults.conftest import Tell
from tests.faults.trial import Trial

pytestmark = pytest.mark.faults


def flip(path: Path, seed: str, silently: bool) -> None:
    """Flip one bit of a file; silently, as a disk does: with the same time of modification."""
    chooser, before = random.Random(seed), path.stat()
    content = bytearray(path.read_bytes())
    content[chooser.randrange(len(content))] ^= 1 << chooser.randrange(8)
    mode = before.st_mode
    path.chmod(0o600)
    path.write_bytes(content)
    path.chmod(mode)
    if silently:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


OUTPUTS = ["data/prepared/train.npz", "data/prepared/validation.npz", "data/prepared/test.npz", "models/model.keras"]
OUTPUTS += [
    "models/run.json",
    "models/history.csv",
    "composed.yaml",
    "composed/train.yaml",
    "reports/data/statistics.json",
]


@pytest.mark.parametrize("silently", [False, True])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("path", OUTPUTS)
def test_a_result_has_a_flipped_bit(trial: Trial, tell: Tell, path: str, seed: int, silently: bool) -> None:
    """And the stages that read it run again."""
    trial.project.succeed("dvc", "repro", **trial.settings)
    flip(trial.root / path, f"{path} {seed}", silently)
    stage = "train" if path.startswith(("data", "composed")) and "test" not in path else "evaluate"
    run = trial.project.run("dvc", "repro", "--force", "--single-item", stage, **trial.settings)
    assert "Traceback" not in run.stdout
    trial.project.succeed("dvc", "checkout", "--force")
    trial.recover()
    how = "found and named" if run.returncode else "rebuilt, or not read"
    tell(f"flipped bit in {Path(path).parts[0]}", "one bit, with and without a new time of modification", how)
