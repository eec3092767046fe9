"""The command in real clones: it reproduces a commit, leaves nothing behind, and says what prevents it."""

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from tests.commands.reproduce.command import REPRODUCE, outcomes, refusal, replace, reproduce
from tests.conftest import Project, Start

FOREIGN = {  # each would change the run, or make it fail
    **{"DEVICE": "gpu", "MLFLOW_EXPERIMENT_NAME": "mine", "DVC_ROOT": "/nowhere", "DVC_EXP_NAME": "mine"},
    **{"TF_NUM_INTRAOP_THREADS": "none", "MLFLOW_TRACKING_TOKEN": "mine", "DVC_EXP_BASELINE_REV": "mine"},
}


def test_a_commit_is_reproduced_without_the_settings_and_changes_of_the_user(
    committed: Project, temporary: Path, tmp_path: Path
) -> None:
    home, store, cache = (tmp_path / name for name in ("home", "store.db", "cache"))
    (home / ".config" / "dvc").mkdir(parents=True)
    (home / ".config" / "dvc" / "config").write_text(
        f"[cache]\n    dir = {cache}\n    type = nonsense\n", encoding="utf-8"
    )
    before = {path: (committed.root / path).read_bytes() for path in ("dvc.lock", "params.yaml", "mlflow.db")}
    (committed.root / "params.yaml").write_text("recipe: nonsense\n", encoding="utf-8")
    (committed.root / "pipeline" / "stages" / "train" / "__main__.py").write_text("1 / 0\n", encoding="utf-8")

    own = {"TMPDIR": str(temporary), "HOME": str(home), "MLFLOW_TRACKING_URI": f"sqlite:///{store}"}
    found = reproduce(committed, **own, **FOREIGN, GIT_DIR=str(committed.root / ".git"))
    assert (found["status"], found["reproduced"]) == (0, True), found
    assert outcomes(found, "same") >= {"data/raw", "data/prepared/train.npz", "models/model.keras", "test loss"}
    assert outcomes(found, "–") == {"models/run.json", "reports/model_card.md", "reports/report.html"}
    assert len(outcomes(found, "same")) + 3 == len(found["rows"]) == 27
    assert "HEAD is" in found["progress"]
    assert "2 uncommitted changes in the working tree are left out" in found["progress"]

    assert list(temporary.iterdir()) == []
    assert not store.exists()
    assert not cache.exists()
    assert (committed.root / "params.yaml").read_text(encoding="utf-8") == "recipe: nonsense\n"
    assert all((committed.root / path).read_bytes() == before[path] for path in ("dvc.lock", "mlflow.db"))


def test_what_differs_is_named(committed: Project, temporary: Path) -> None:
    """In a tampered dvc.lock, and in reports that are not those of dvc.lock."""
    committed.params(recipe="smoke", training={"deterministic": True})
    committed.succeed("dvc", "repro")
    lock = yaml.safe_load((committed.root / "dvc.lock").read_text(encoding="utf-8"))
    tampered = {"data/prepared/test.npz", "models/model.keras", "composed/fetch.yaml"}
    for stage in lock["stages"].values():
        for out in stage["outs"]:
            if out["path"] in tampered:
                out["md5"] = "0" * 32
    (committed.root / "dvc.lock").write_text(yaml.safe_dump(lock), encoding="utf-8")
    replace(committed.root / "reports" / "metrics.json", '"accuracy": 0.', '"accuracy": 0.9')
    committed.commit()
    result = committed.run(*REPRODUCE, "--reuse", "--keep", TMPDIR=str(temporary))
    assert result.returncode == 1, result.stdout
    assert "Traceback" not in result.stdout, result.stdout
    verdict = result.stdout.splitlines()[-1]
    (kept,) = temporary.iterdir()
    assert f"the clone is kept in {kept}" in result.stdout
    assert (kept / "project" / "models" / "model.keras").is_file()
    assert verdict.startswith("NOT REPRODUCED: ")
    for name in (*tampered, "reports/metrics.json"):
        assert name in result.stdout[result.stdout.index("NOT REPRODUCED") :]


def test_a_promise_in_a_folder_is_made_and_kept(project: Project, temporary: Path) -> None:
    """As CI does with tests/promises/digits."""
    folder = project.root / "tests" / "promises" / "digits"
    settings = {"TMPDIR": str(temporary)}
    for path in ("dvc.lock", "reports"):
        shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink()
    project.commit()
    assert "dvc.lock does not exist at" in refusal(project, "--promise", "tests/promises/digits", **settings)
    output = project.succeed(*REPRODUCE, "--promise", "tests/promises/digits", "--update", "--reuse", **settings)
    assert "tests/promises/digits promises these results: commit it" in output
    changed = project.succeed("git", "status", "--porcelain").split()
    assert changed == ["??", "tests/promises/digits/dvc.lock", "??", "tests/promises/digits/reports/"]
    project.commit()
    found = reproduce(project, "--promise", str(folder), **settings)
    assert (found["status"], outcomes(found, "tolerated")) == (0, set())
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("named", [".", "{root}", "tests/..", "../project"])
def test_the_project_is_not_updated_as_a_promise(project: Project, named: str) -> None:
    result = project.run(*REPRODUCE, "--update", "--promise", named.format(root=project.root))
    assert result.returncode == 2
    assert "--update needs --promise: `dvc repro` writes the project's own dvc.lock" in result.stdout
    assert project.succeed("git", "status", "--porcelain") == ""


@pytest.mark.parametrize("named", ["..", "/etc", "tests/../../other"])
def test_a_promise_outside_the_project_is_one_line(project: Project, named: str) -> None:
    result = project.run(*REPRODUCE, "--promise", named)
    assert result.returncode == 2
    assert f": error: --promise {named} is outside the project, {project.root}" in result.stdout.splitlines()[-1]


def test_a_failing_stage_shows_its_message(committed: Project, temporary: Path) -> None:
    committed.params(recipe="smoke", optimizer={"name": "rmsprop", "learning_rate": 1e30})
    committed.commit()
    result = committed.run(*REPRODUCE, "--reuse", TMPDIR=str(temporary))
    assert result.returncode == 2
    assert "\ntrain: " in result.stdout
    assert result.stdout.splitlines()[-1] == (
        "reproduce: `python -m dvc repro` failed with exit status 255: its message is above"
    )
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(("number", "stage"), [(signal.SIGINT, "train"), (signal.SIGTERM, "compose")])
def test_an_interrupt_removes_the_clone(
    committed: Project, temporary: Path, start: Start, number: signal.Signals, stage: str
) -> None:
    command = [sys.executable, *REPRODUCE[1:], "--reuse"]
    process = start(command, committed.root, TMPDIR=str(temporary), PYTHONUNBUFFERED="1")
    assert process.stdout
    next(read for read in process.stdout if f"> python -m pipeline.stages.{stage}" in read)
    running = [*psutil.Process(process.pid).children(recursive=True)]
    assert running
    process.send_signal(number)
    output = process.stdout.read()
    assert process.wait() == 2
    assert output.splitlines()[-1] == "reproduce: interrupted"
    assert "Traceback" not in output
    assert list(temporary.iterdir()) == []
    _, alive = psutil.wait_procs(running, timeout=5)
    assert not alive


def test_what_cannot_be_tried_is_one_line(project: Project, temporary: Path, tmp_path: Path) -> None:
    def line(*arguments: str, **settings: str) -> str:
        output = project.run(*REPRODUCE, *arguments, **settings).stdout
        (last,) = [each for each in output.splitlines() if not each.startswith("reproduce: HEAD is ")]
        return last

    assert line("nonsense") == "reproduce: git does not know the revision 'nonsense'; fetch it, or name another one"
    (project.root / "dvc.lock").unlink()
    (project.root / "requirements.txt").unlink()
    project.commit()
    assert re.fullmatch(
        r"reproduce: dvc.lock does not exist at \w{7}, or is empty: this commit promises nothing", line()
    )
    (project.root / "dvc.lock").write_text("stages: [", encoding="utf-8")
    project.commit()
    assert re.match(r"reproduce: dvc.lock at \w{7} is damaged", line())
    lock = "schema: '2.0'\nstages:\n  train:\n    outs:\n    - {path: ../other, md5: 0}\n"
    (project.root / "dvc.lock").write_text(lock, encoding="utf-8")
    project.commit()
    assert "names ../other, which is outside the project" in refusal(project, TMPDIR=str(temporary))
    replace(project.root / "dvc.lock", "../other", "other")
    project.commit()
    assert "requirements.txt does not exist in this commit" in refusal(project, TMPDIR=str(temporary))
    assert f"{project.root}, is in the project: set TMPDIR" in refusal(project, TMPDIR=str(project.root))
    assert list(temporary.iterdir()) == []
    shallow = Project(tmp_path / "shallow")
    subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{project.root}", str(shallow.root)], check=True)
    assert "this clone is shallow: `git fetch --unshallow`" in refusal(shallow, "HEAD~1")
    output = shallow.run(*REPRODUCE, TMPDIR=str(temporary)).stdout  # as in CI
    assert "requirements.txt does not exist in this commit" in output
    assert "rejected" not in output


def test_a_full_disk_is_one_line(project: Project, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        assert "has 0.0 GiB of free space, 0.5 are needed: set TMPDIR" in refusal(project, TMPDIR=str(disk))
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_a_commit_gets_its_own_environment(committed: Project, temporary: Path) -> None:
    output = committed.succeed(*REPRODUCE, TMPDIR=str(temporary))
    assert "installing requirements.txt" in output
    assert "uv could not install" not in output
    assert "REPRODUCED: " in output.splitlines()[-1]
