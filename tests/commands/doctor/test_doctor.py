"""The doctor on real set-ups that are broken in one way each."""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands.doctor.environment import check_disk
from pipeline.commands.doctor.finding import Finding
from pipeline.core.containers import processor_quota
from tests.conftest import PATH, Project, environment
from tests.web import Handler, serving

DOCTOR = ("python", "-m", "pipeline.commands.doctor")
CPU_GROUP = Path("/sys/fs/cgroup/cpu")  # version 1 of cgroups


def examine(
    project: Project, *only: str, prefix: tuple[str, ...] = (), **settings: str
) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """The exit status, and the findings by topic, of all checks or of some."""
    command = [*prefix, *DOCTOR, "--json", *(["--only", *only] if only else [])]
    result = subprocess.run(
        command, cwd=project.root, env=environment(settings), capture_output=True, text=True, check=False
    )
    assert result.stderr == ""
    found: dict[str, list[dict[str, Any]]] = {}
    for each in json.loads(result.stdout):
        found.setdefault(each["topic"], []).append(each)
    return result.returncode, found


def problems(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The topics with a problem. Each problem has a remedy."""
    listed = [each for part in found.values() for each in part if each["level"] == "problem"]
    assert all(each["remedy"] for each in listed)
    return [each["topic"] for each in listed]


def test_a_machine_that_can_run_the_pipeline(trained_once: Project) -> None:
    before = {name: (trained_once.root / name).read_bytes() for name in ("mlflow.db", "dvc.lock", "composed.yaml")}
    status, found = examine(trained_once)
    assert (status, problems(found)) == (0, [])
    facts = {topic: " ".join(each["fact"] for each in part) for topic, part in found.items()}
    assert "recipe smoke, digits, seed 1" in facts["configuration"]
    assert "digits is part of scikit-learn" in facts["data"]
    assert "experiments digits" in facts["MLflow"]
    assert "no champion for digits yet" in facts["registry"]
    assert "in use" in facts["backend"]
    assert "GFLOP/s" in facts["CPU"]
    assert before == {name: (trained_once.root / name).read_bytes() for name in before}, "the doctor changes nothing"
    text = trained_once.succeed(*DOCTOR, COLUMNS="200")
    assert text.endswith("The pipeline can run\n")


def test_output_to_a_closed_pipe_has_no_traceback(trained_once: Project) -> None:
    command = f"{' '.join(DOCTOR)} --only Python disk git 2>&1 | head -1"
    assert "Traceback" not in trained_once.run("sh", "-c", command, PATH=PATH).stdout


def test_a_new_clone_says_where_its_data_will_come_from(project: Project, tmp_path: Path) -> None:
    (tmp_path / "train-labels-idx1-ubyte.gz").touch()
    status, found = examine(project, "data", "MLflow", "DVC", "git", DATASET_MIRROR=str(tmp_path))
    assert (status, problems(found)) == (0, [])
    assert found["data"][0]["fact"] == f"mnist will be fetched from {tmp_path}"
    assert found["MLflow"][0]["fact"] == "the first run creates mlflow.db"
    assert not (project.root / "mlflow.db").exists()


def test_no_source_of_the_data(project: Project) -> None:
    file = project.root / "composed.yaml"
    text = file.read_text(encoding="utf-8")
    start, end = text.index("  mirrors:"), text.index("  about:")
    file.write_text(f"{text[:start]}  mirrors:\n    - http://127.0.0.1:9/\n{text[end:]}", encoding="utf-8")
    status, found = examine(project, "data")
    if found["data"][0]["level"] != "ok":  # a folder with the data may lie beside the clone
        assert (status, problems(found)) == (1, ["data"])


def test_without_git(trained_once: Project) -> None:
    command, nowhere = [sys.executable, *DOCTOR[1:], "--json", "--only", "git"], environment({"PATH": "/nowhere"})
    result = subprocess.run(command, cwd=trained_once.root, env=nowhere, capture_output=True, text=True, check=False)
    (git,) = [each for each in json.loads(result.stdout) if each["topic"] == "git"]
    assert (result.returncode, git["level"], git["remedy"]) == (1, "problem", "apt-get install git")


def test_without_an_identity_or_history(trained: Project, tmp_path: Path) -> None:
    for name in ("user.name", "user.email"):
        trained.succeed("git", "config", "--unset", name)
    status, found = examine(trained, "git", HOME=str(tmp_path), XDG_CONFIG_HOME=str(tmp_path), GIT_CONFIG_NOSYSTEM="1")
    assert (status, found["git"][0]["level"]) == (0, "warning")
    assert "user.name and user.email not set" in found["git"][0]["fact"]
    trained.succeed("git", "rev-parse", "HEAD")
    shallow = tmp_path / "shallow"
    trained.succeed("git", "clone", "-q", "--depth", "1", f"file://{trained.root}", str(shallow))
    _, found = examine(Project(shallow), "git")
    assert any("the clone is shallow" in each["fact"] for each in found["git"])


def test_other_packages_than_the_pinned_ones(trained: Project) -> None:
    file = trained.root / "requirements.txt"
    text = file.read_text(encoding="utf-8")
    text = text.replace("\nrich==", "\nrich==9.").replace("\nkeras==", "\nkeras-of-tomorrow==")
    file.write_text(text, encoding="utf-8")
    status, found = examine(trained, "packages")
    missing, different = found["packages"]
    assert (status, problems(found)) == (1, ["packages"])
    assert missing["fact"] == "not installed: keras-of-tomorrow"
    assert "results may differ: rich" in different["fact"]


def test_packages_of_another_backend(trained_once: Project) -> None:
    """The environment of the tests has JAX beside TensorFlow, so nothing that JAX needs is missing."""
    _, found = examine(trained_once, "packages", KERAS_BACKEND="jax")
    assert [(each["level"], each["fact"]) for each in found["packages"]] == [
        ("ok", "the versions that requirements-jax.txt pins")
    ]


@pytest.mark.parametrize(
    ("path", "content", "topic", "fact"),
    [
        ("composed.yaml", "seed: [", "configuration", "composed.yaml is not YAML"),
        (".dvc/config", "[core", "DVC", "config file error"),
        ("mlflow.db", "not a database" * 99, "MLflow", "file is not a database"),
        ("requirements.txt", None, "packages", "requirements.txt is missing"),
    ],
)
def test_damaged_files(trained: Project, path: str, content: str | None, topic: str, fact: str) -> None:
    if content is None:
        (trained.root / path).unlink()
    else:
        (trained.root / path).write_text(content, encoding="utf-8")
    status, found = examine(trained, topic)
    assert (status, problems(found)) == (1, [topic])
    assert any(fact in each["fact"] for each in found[topic]), found[topic]


def test_a_folder_that_a_killed_dvc_left_empty(trained: Project) -> None:
    folder = trained.root / ".dvc" / "cache" / "runs" / "12" / "12ab"
    folder.mkdir(parents=True)
    status, found = examine(trained, "cache")
    assert (status, problems(found)) == (1, ["cache"])
    assert found["cache"][0]["remedy"] == f"rmdir {folder}"


def test_a_locked_store(trained: Project) -> None:
    with contextlib.closing(sqlite3.connect(trained.root / "mlflow.db")) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        status, found = examine(trained, "MLflow")
    assert (status, problems(found)) == (1, ["MLflow"])
    assert "database is locked" in found["MLflow"][0]["fact"]


def test_a_server_that_does_not_answer(trained_once: Project) -> None:
    status, found = examine(trained_once, "MLflow", MLFLOW_TRACKING_URI="http://user:hidden@127.0.0.1:9")
    assert (status, problems(found)) == (1, ["MLflow"])
    assert "cannot be reached" in found["MLflow"][0]["fact"]
    assert "hidden" not in json.dumps(found)


def test_a_database_of_another_program_is_not_changed(trained_once: Project, tmp_path: Path) -> None:
    file = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE customers(x)")
    before = file.read_bytes()
    for address in (f"sqlite:///{file}", f"sqlite+pysqlite:///{file}", f"sqlite:///{file}?timeout=5"):
        status, found = examine(trained_once, "MLflow", MLFLOW_TRACKING_URI=address)
        assert (status, problems(found)) == (1, ["MLflow"])
        assert "a database of another program" in found["MLflow"][0]["fact"]
        assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ("UPDATE alembic_version SET version_num = '451aebb31d03'", "have the schema 451aebb31d03, but this version"),
        ("DELETE FROM alembic_version", "have the schema None, but this version"),
        ("DROP TABLE inputs", "some of MLflow's tables are missing"),
        ("DROP TABLE alembic_version", "a database of another program"),
    ],
)
def test_a_store_of_another_version_is_not_changed(trained: Project, change: str, fact: str) -> None:
    file = trained.root / "mlflow.db"
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute(change)
        connection.commit()
    before = file.read_bytes()
    status, found = examine(trained, "MLflow")
    assert (status, problems(found)) == (1, ["MLflow"])
    assert fact in found["MLflow"][0]["fact"]
    assert file.read_bytes() == before


def test_an_empty_database_stays_empty(trained_once: Project, tmp_path: Path) -> None:
    file = tmp_path / "empty.db"
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE x(y)")
        connection.execute("DROP TABLE x")
    before = file.read_bytes()
    status, found = examine(trained_once, "MLflow", MLFLOW_TRACKING_URI=f"sqlite:///{file}")
    assert (status, problems(found)) == (0, [])
    assert file.read_bytes() == before


def test_no_finding_contains_a_password_or_a_control_character(trained_once: Project) -> None:
    """The server is healthy, and drops every other request: MLflow's message contains its address."""

    def answer(handler: Handler, _: int) -> None:
        if handler.path == "/health":
            handler.send(b"OK")

    with serving(answer) as address:
        place = address.replace("//", "//admin:s3cretPW@")
        _, found = examine(trained_once, "MLflow", MLFLOW_TRACKING_URI=place, MLFLOW_HTTP_REQUEST_TIMEOUT="1")
    assert problems(found) == ["MLflow"]
    assert "s3cretPW" not in json.dumps(found)
    finding = Finding("DVC", "ok", "remote: s3://key:s3cretPW@host\x1b[2J", "dvc remote add https://u:s3cretPW@host")
    assert finding == Finding("DVC", "ok", "remote: s3://***@host\\x1b[2J", "dvc remote add https://***@host")


@pytest.mark.parametrize("name", ["openvino", "tensorflwo"])
def test_a_backend_that_does_not_exist(trained_once: Project, name: str) -> None:
    status, found = examine(trained_once, "backend", KERAS_BACKEND=name)
    assert (status, problems(found)) == (1, ["backend"])


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no processor affinity on this system")
def test_fewer_cores_than_the_machine_has(trained_once: Project) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core")
    one = ("taskset", "-c", str(min(os.sched_getaffinity(0))))
    status, found = examine(trained_once, "CPU", prefix=one, PATH=PATH)
    assert status == 0
    assert found["CPU"][1]["fact"] == f"this process may use 1 of {os.cpu_count()} cores"


@pytest.fixture
def half_a_core() -> Iterator[Path]:
    """A cgroup that may use half a core."""
    group = CPU_GROUP / "doctor-test"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("cgroups cannot be created here")
    (group / "cpu.cfs_quota_us").write_text("50000", encoding="utf-8")
    yield group
    group.rmdir()


def test_a_limit_of_the_container(trained_once: Project, half_a_core: Path) -> None:
    enter = f'echo $$ > {half_a_core}/cgroup.procs; exec "$@"'
    status, found = examine(trained_once, "CPU", prefix=("sh", "-c", enter, "sh"), PATH=PATH)
    assert status == 0
    cores = len(os.sched_getaffinity(0))
    fact = f"the container may use the time of 0.5 of {cores} cores, so training uses 1 thread"
    assert fact in [each["fact"] for each in found["CPU"]]


def test_limits_of_cgroups_of_version_2(tmp_path: Path) -> None:
    """The smallest limit of a group and of the groups above it counts."""
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    membership = tmp_path / "cgroup"
    membership.write_text("0::/a/b\n", encoding="utf-8")
    assert processor_quota(tmp_path, membership) is None
    (inner / "cpu.max").write_text("max 100000\n", encoding="utf-8")
    assert processor_quota(tmp_path, membership) is None
    (tmp_path / "a" / "cpu.max").write_text("150000 100000\n", encoding="utf-8")
    assert processor_quota(tmp_path, membership) == 1.5
    (inner / "cpu.max").write_text("200000 100000\n", encoding="utf-8")
    assert processor_quota(tmp_path, membership) == 1.5


def test_a_shadowed_driver_library(trained_once: Project, tmp_path: Path) -> None:
    """As if a GPU were present, with a file of the library's name that is none in front of the real one."""
    (tmp_path / "libcuda.so.1").write_text("not a library", encoding="utf-8")
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\n", encoding="utf-8")
    tool.chmod(0o755)
    library, path = str(tmp_path), f"{tmp_path}{os.pathsep}{PATH}"
    status, found = examine(trained_once, "GPU", LD_LIBRARY_PATH=library, PATH=path)
    assert (status, found["GPU"][0]["level"]) == (0, "warning")
    assert "libcuda.so.1 cannot be loaded: " in found["GPU"][0]["fact"]
    status, found = examine(trained_once, "GPU", DEVICE="gpu", LD_LIBRARY_PATH=library, PATH=path)
    assert (status, problems(found)) == (1, ["GPU"]), "the pipeline could not run"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    (found,) = check_disk(small_disk)
    assert (found.level, found.remedy[:6]) == ("problem", "dvc gc")
