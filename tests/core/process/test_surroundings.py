"""Commands in the environments that docs/surroundings.md lists."""

import json
import re
import shutil
import sqlite3
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.core.errors import PipelineError
from pipeline.core.process.surroundings import COMPUTING, computing_settings
from pipeline.tracking.store import locate_store
from tests.conftest import PATH, ROOT, Project

PROXY = "http://127.0.0.1:9"


def hostile(folder: Path) -> dict[str, str]:
    """All settings that must not affect a command, combined."""
    home = folder / "home"
    (home / ".keras").mkdir(parents=True)
    keras = {"image_data_format": "channels_first", "floatx": "float16", "epsilon": 0.1, "backend": "torch"}
    (home / ".keras" / "keras.json").write_text(json.dumps(keras), encoding="utf-8")
    proxies = {"HTTP_PROXY": PROXY, "http_proxy": PROXY, "NO_PROXY": "example.org"}
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    notebook = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    other = {"DVC_ROOT": str(folder / "another-project")}
    return {"HOME": str(home), "DEVICE": "", **other, **proxies, **ascii_alone, **notebook}


def test_training_does_not_depend_on_its_environment(trained: Project, tmp_path: Path) -> None:
    before = trained.report("evaluation.json")
    settings = hostile(tmp_path)
    for stage in ("compose", "preprocess", "train", "evaluate"):
        trained.succeed(sys.executable, "-m", f"pipeline.stages.{stage}", PATH=PATH, **settings)
    assert not (tmp_path / "another-project").exists()
    after = trained.report("evaluation.json")
    assert after["test"] == before["test"]
    trained.commit()
    status = trained.run(sys.executable, "-m", "pipeline.commands.gate", "--base", "HEAD", PATH=PATH, **settings)
    assert status.returncode in (0, 2), status.stdout  # 2: the stages ran without DVC, so `dvc status` reports changes
    assert "Traceback" not in status.stdout


def test_an_experiment_in_a_temporary_folder_is_recorded_in_the_project(trained: Project, tmp_path: Path) -> None:
    """Even if DVC_ROOT is inherited from another project."""
    other = str(tmp_path / "another-project")
    trained.succeed("dvc", "exp", "run", "--temp", "-S", "+seed=5", DVC_ROOT=other)
    assert not Path(other).exists()
    client = MlflowClient(f"sqlite:///{trained.root}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert {run.data.params["seed"] for run in runs} == {"1", "5"}


def test_dvc_does_not_compose_params_yaml(project: Project, tmp_path: Path) -> None:
    """Even if the user's global settings enable it for other projects."""
    settings = tmp_path / "config"
    settings.mkdir()
    (settings / "config").write_text("[hydra]\n    enabled = true\n", encoding="utf-8")
    output = project.succeed("dvc", "config", "hydra.enabled", DVC_GLOBAL_CONFIG_DIR=str(settings))
    assert output.strip() == "false"


def test_line_endings_are_those_of_the_repository(project: Project) -> None:
    project.succeed("git", "config", "core.autocrlf", "true")
    for name in ("params.yaml", "conf/config.yaml", "pipeline/stages/train/fitting.py"):
        (project.root / name).unlink()
    project.succeed("git", "checkout", "--", ".")
    assert b"\r" not in (project.root / "pipeline" / "stages" / "train" / "fitting.py").read_bytes()
    assert project.succeed("git", "status", "--short") == ""


def test_settings_that_can_change_a_result_are_recorded_and_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in COMPUTING:
        monkeypatch.delenv(name, raising=False)
    assert computing_settings() == ""
    monkeypatch.setenv("XLA_FLAGS", "--a=1 --b")
    monkeypatch.setenv("DEVICE", "cpu")
    assert computing_settings() == "DEVICE=cpu 'XLA_FLAGS=--a=1 --b'"
    lines = (ROOT / "docs" / "surroundings.md").read_text(encoding="utf-8").splitlines()
    documented = {
        name for line in lines if "`environment` |" in line for name in re.findall("`([A-Z][A-Z_0-9]+)`", line)
    }
    assert documented == set(COMPUTING)


def places(project: Project) -> set[str]:
    """Artifact locations in the project's database."""
    with sqlite3.connect(project.root / "mlflow.db") as database:
        dump = "\n".join(database.iterdump())
    return {line.partition("/mlartifacts")[0] for line in dump.split("file://")[1:]}


@pytest.mark.parametrize("moved", [True, False])
def test_a_moved_or_copied_project_is_complete(trained: Project, moved: bool) -> None:
    old, new = trained.root, trained.root.parent / 'it\'s "100%" [new] $HOME; #1 & é'
    before = trained.files("mlartifacts")
    shutil.copytree(old, new, symlinks=True)
    if moved:
        shutil.rmtree(old)
    project = Project(new)
    output = project.succeed("dvc", "repro", "--force", "--single-item", "evaluate")
    assert f"this project was at {old.as_uri()}/mlartifacts" in output
    assert places(project) == {new.as_uri().removeprefix("file://")}
    client = MlflowClient(f"sqlite:///{new}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    for run in runs:
        assert client.list_artifacts(run.info.run_id, "reports"), run.info.run_id
    assert "this project was at" not in project.succeed("python", "-m", "pipeline.commands.runs", "send")
    assert old.exists() != moved
    if not moved:
        assert trained.files("mlartifacts") == before
        assert places(trained) == {str(old)}


@pytest.mark.parametrize("name", ["what?", "a%20b"])
def test_a_folder_that_a_url_cannot_name_is_rejected(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        PipelineError, match=r"cannot contain the folder '.*': rename it, or set MLFLOW_TRACKING_URI to another store"
    ):
        locate_store(tmp_path / name)
