"""Projects that are moved, copied, shared, or visible at two paths."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.core.errors import PipelineError
from pipeline.tracking.store import Store, experiment_id, open_store
from tests.conftest import ROOT, Start

CODE = (
    "import sys, time; from pathlib import Path; from pipeline.tracking.store import open_store; "
    "open_store(Path(sys.argv[1])); print('open', flush=True); time.sleep(float(sys.argv[2]))"
)
OPEN = (sys.executable, "-c", CODE)


def project(folder: Path) -> tuple[Store, MlflowClient, str]:
    """A store with one run that has one artifact."""
    store = reopen(folder)
    client = MlflowClient(store.uri)
    return store, client, record(client, experiment_id(store, "mnist"))


def record(client: MlflowClient, experiment: str) -> str:
    run_id = str(client.create_run(experiment).info.run_id)
    client.log_text(run_id, "hello", "note.txt")
    return run_id


def reopen(folder: Path, **settings: str) -> Store:
    """The store of a folder, opened as another process would open it."""
    folder.mkdir(exist_ok=True)
    os.environ["MLFLOW_TRACKING_URI"] = settings.get("uri", "")
    return open_store(folder)


def execute(store: Store, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(str(store.file))) as database:
        database.execute(statement)
        database.commit()


def has_note(store: Store, run_id: str) -> bool:
    return [file.path for file in MlflowClient(store.uri).list_artifacts(run_id)] == ["note.txt"]


def test_a_project_with_a_shared_database_leaves_other_projects_runs_alone(tmp_path: Path) -> None:
    owner = reopen(tmp_path / "owner")
    second = reopen(tmp_path / "second", uri=owner.uri)
    run_id = record(MlflowClient(second.uri), experiment_id(second, "second"))
    assert has_note(reopen(tmp_path / "owner"), run_id)
    assert not (tmp_path / "second" / "mlartifacts").exists()


def test_the_artifacts_of_a_shared_database_survive_the_projects(tmp_path: Path) -> None:
    """Also if the projects reach it by a symbolic link, before it exists."""
    shared = tmp_path / "shared" / "mlflow.db"
    shared.parent.mkdir()
    first = reopen(tmp_path / "first", uri=f"sqlite:///{shared}")
    run_id = record(MlflowClient(first.uri), experiment_id(first, "mnist"))
    shutil.rmtree(tmp_path / "first")
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "mlflow.db").symlink_to(shared)
    second = reopen(tmp_path / "second")
    assert has_note(second, run_id)
    assert has_note(second, record(MlflowClient(second.uri), experiment_id(second, "mnist")))
    assert not (tmp_path / "first").exists()
    assert not (tmp_path / "second" / "mlartifacts").exists()


def test_a_link_to_a_database_that_does_not_exist_yet_stays(tmp_path: Path) -> None:
    shared = tmp_path / "shared.db"
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "mlflow.db").symlink_to(shared)
    reopen(tmp_path / "one")
    assert (tmp_path / "one" / "mlflow.db").is_symlink()
    assert shared.stat().st_size


def test_a_database_that_another_project_created_belongs_to_its_owner(tmp_path: Path) -> None:
    (tmp_path / "owner").mkdir()
    second = reopen(tmp_path / "second", uri=f"sqlite:///{tmp_path}/owner/mlflow.db")
    run_id = record(MlflowClient(second.uri), experiment_id(second, "second"))
    assert has_note(reopen(tmp_path / "owner"), run_id)


def test_a_symlinked_database_belongs_to_no_project(tmp_path: Path) -> None:
    _, _, run_id = project(tmp_path / "one")
    (tmp_path / "one" / "mlflow.db").rename(tmp_path / "shared.db")
    for name in ("one", "two", "one"):
        (tmp_path / name).mkdir(exist_ok=True)
        if not (tmp_path / name / "mlflow.db").exists():
            (tmp_path / name / "mlflow.db").symlink_to(tmp_path / "shared.db")
        assert has_note(reopen(tmp_path / name), run_id)


@pytest.mark.parametrize("name", ["mlartifacts", "MLArtifacts"])
def test_a_chosen_location_stays(tmp_path: Path, name: str) -> None:
    store, client, _ = project(tmp_path / "old")
    run_id = record(client, client.create_experiment("chosen", (tmp_path / "drive" / name).as_uri()))
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    assert has_note(reopen(tmp_path / "new"), run_id)
    assert has_note(store, run_id)


def test_if_only_the_database_was_copied_earlier_runs_stay_and_new_ones_go_to_the_copy(tmp_path: Path) -> None:
    old, _, run_id = project(tmp_path / "old")
    (tmp_path / "new").mkdir()
    shutil.copy(tmp_path / "old" / "mlflow.db", tmp_path / "new")
    new = reopen(tmp_path / "new")
    assert has_note(new, run_id)
    later = record(MlflowClient(new.uri), experiment_id(new, "mnist"))
    assert has_note(new, later)
    assert (new.artifacts / later).is_dir()
    assert not (old.artifacts / later).exists()


def test_a_moved_empty_project_writes_nothing_to_the_old_location(tmp_path: Path) -> None:
    reopen(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    new = reopen(tmp_path / "new")
    assert has_note(new, record(MlflowClient(new.uri), "0"))
    assert not (tmp_path / "old").exists()


def test_a_database_of_an_earlier_version_is_recognized_by_its_run_files(tmp_path: Path) -> None:
    store, _, run_id = project(tmp_path / "old")
    execute(store, "UPDATE experiments SET artifact_location = '/old/mlruns/0' WHERE experiment_id = 0")
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    shutil.rmtree(tmp_path / "old")
    new = reopen(tmp_path / "new")
    assert has_note(new, run_id)
    shutil.copytree(tmp_path / "new", tmp_path / "newer")
    shutil.rmtree(tmp_path / "new")
    assert has_note(reopen(tmp_path / "newer"), run_id)


def test_a_read_only_database_is_read(tmp_path: Path) -> None:
    store, _, run_id = project(tmp_path / "old")
    refuse = "CREATE TRIGGER refuse BEFORE UPDATE ON experiments BEGIN SELECT RAISE(ABORT, 'read-only'); END"
    execute(store, refuse)
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    assert has_note(reopen(tmp_path / "new"), run_id)


def test_a_project_in_use_at_another_path_is_not_relocated(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As inside and outside a container: a moved directory stands for one with two paths."""
    project(tmp_path / "host")
    using = start([*OPEN, str(tmp_path / "host"), "600"], ROOT)
    assert using.stdout
    assert using.stdout.readline() == "open\n"
    (tmp_path / "host").rename(tmp_path / "container")
    for required in (True, False):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
        with pytest.raises(PipelineError, match=r"was last opened as file://.*/host/mlartifacts, and a process is usi"):
            open_store(tmp_path / "container", required)
    using.kill()
    using.wait()
    reopen(tmp_path / "container")


def test_a_message_that_cannot_be_encoded_is_ignored(tmp_path: Path) -> None:
    project(tmp_path / "old")
    shutil.copytree(tmp_path / "old", tmp_path / "né中")
    settings = {"PYTHONIOENCODING": "ascii", "MLFLOW_TRACKING_URI": ""}
    subprocess.run([*OPEN, str(tmp_path / "né中"), "0"], cwd=ROOT, env=os.environ | settings, check=True)
