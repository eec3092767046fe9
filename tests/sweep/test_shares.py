"""The part of a machine that each trial may use."""

import os
import subprocess
import sys

import pytest

from pipeline.core.errors import PipelineError
from pipeline.sweep import shares
from pipeline.sweep.shares import divide, divide_cores
from tests.conftest import Project

TAKEN = """
import os
from pipeline.sweep.shares import divide
shares = divide({jobs}, {cores}, {gpus})
shares[-1].take()
print(len(shares), sorted(os.sched_getaffinity(0)), os.environ.get("CUDA_VISIBLE_DEVICES"))
"""


def taken(jobs: int | None, gpus: int | None, devices: str | None, cores: int | None = None) -> str:
    """The number of shares, and the cores and GPUs of a process that takes the last one."""
    variables = {key: value for key, value in os.environ.items() if key not in ("CUDA_VISIBLE_DEVICES", "DEVICE")}
    variables |= {} if devices is None else {"CUDA_VISIBLE_DEVICES": devices}
    code = TAKEN.format(jobs=jobs, cores=cores, gpus=gpus)
    return subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_trials_divide_the_cores_and_the_gpus() -> None:
    cores = sorted(os.sched_getaffinity(0))
    assert taken(2, None, "") == f"2 {cores[1::2]}"
    assert taken(1, None, "") == f"1 {cores}"
    assert taken(None, None, "0,1,GPU-5f3c,7").endswith(" 7"), "as many trials as GPUs"
    assert taken(2, 2, "0,1,GPU-5f3c,7") == f"2 {cores[1::2]} GPU-5f3c,7"
    assert taken(None, 2, "0,1,2,3,4").split()[0] == "2"
    assert taken(2, 0, "0,1") == f"2 {cores[1::2]}"
    assert taken(None, None, "", cores=1) == f"{len(cores)} {cores[-1:]}"
    assert taken(1, None, "", cores=1) == f"1 {cores[:1]}"
    assert taken(1, 1, "3") == f"1 {cores} 3"


@pytest.mark.parametrize(
    ("cores", "quota", "memory", "trials"),
    [
        (2, None, 64, 2),
        (64, None, 64, 4),
        (1, None, 64, 1),
        (8, 2.5, 64, 2),
        (8, 0.5, 64, 1),
        (8, None, 4, 2),
        (8, None, 0, 1),
    ],
)
def test_without_options_there_is_a_core_and_memory_for_each_trial(
    cores: int, quota: float | None, memory: int, trials: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "usable_cores", lambda: cores)
    monkeypatch.setattr(shares, "processor_quota", lambda: quota)
    monkeypatch.setattr(shares, "available_memory", lambda: memory << 30)
    assert len(divide(None, None, 0)) == trials
    assert len(divide(None, 1, 0)) == trials


def test_more_trials_than_cores_share_them() -> None:
    cores = os.sched_getaffinity(0)
    found = divide_cores(len(cores) + 1, None)
    assert all(len(each) == 1 for each in found)
    assert set().union(*found) == cores


def test_a_system_without_affinity_limits_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert [share.threads for share in divide(2, None, 0)] == [4, 4]
    assert divide(1, None, 0)[0].threads is None


@pytest.mark.parametrize(("jobs", "gpus", "devices"), [(1, 2, "0"), (3, None, "0,1"), (2, 1, ""), (1, 1, None)])
def test_more_gpus_than_there_are(
    jobs: int, gpus: int | None, devices: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.sweep.shares.installed_gpus", list)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if devices is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    monkeypatch.delenv("DEVICE", raising=False)
    with pytest.raises(PipelineError, match=r"GPUs? (each need|needs)"):
        divide(jobs, None, gpus)


def test_more_cores_than_there_are() -> None:
    with pytest.raises(PipelineError, match="2 side by side with 500 cores each need 1000, but this machine has"):
        divide(2, 500, 0)


def test_the_command_refuses_more_gpus_before_anything_runs(trained: Project) -> None:
    result = trained.run("python", "-m", "pipeline.sweep", "smoke", "--gpus", "2", CUDA_VISIBLE_DEVICES="0")
    assert result.returncode == 1
    said = "1 trial with 2 GPUs needs 2, but CUDA_VISIBLE_DEVICES names 1 GPU: use --gpus 1, or --gpus 0 to train on"
    assert said in result.stdout
    assert not (trained.root / ".sweeps").exists()
