"""The files of deploy/, checked without a container engine: what they pin, expose, read and run."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.conftest import ROOT, Project

DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"
PINNED = re.compile(r"[\w./-]+(?::[\w.-]+)?@sha256:[0-9a-f]{64}")
SECRET = re.compile("PASSWORD|SECRET")
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]


class Stage(NamedTuple):
    """A stage of the Dockerfile: its image or the stage that it is based on, and its other instructions."""

    base: str
    instructions: list[tuple[str, str]]


def stages() -> dict[str, Stage]:
    """The stages of the Dockerfile by name."""
    text = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", " ")
    found: dict[str, Stage] = {}
    for line in text.splitlines():
        name, _, arguments = line.strip().partition(" ")
        if name == "FROM":
            base, _, stage = arguments.partition(" AS ")
            found[stage] = Stage(base, [])
        elif name and not name.startswith("#"):
            found[stage].instructions.append((name, re.sub(" +", " ", arguments)))
    return found


def inherited(name: str) -> list[tuple[str, str]]:
    """The instructions of a stage and of the stages that it is based on."""
    stage = stages()[name]
    return (inherited(stage.base) if stage.base in stages() else []) + stage.instructions


def test_images_are_pinned_by_digest() -> None:
    bases = {stage.base for stage in stages().values()} - stages().keys()
    images = {service["image"] for service in SERVICES.values() if "image" in service}
    assert bases
    assert images
    assert [name for name in bases | images if not PINNED.fullmatch(name)] == []


@pytest.mark.parametrize("target", ["base", "cpu", "gpu", "server"])
def test_no_image_runs_as_root(target: str) -> None:
    users = [arguments for name, arguments in inherited(target) if name == "USER"]
    assert users[-1] == "1000"


def test_images_contain_no_lists_of_packages_and_no_caches() -> None:
    commands = [arguments for name in stages() for kind, arguments in stages()[name].instructions if kind == "RUN"]
    (install,) = [command for command in commands if "apt-get install" in command]
    assert "--no-install-recommends" in install
    assert "rm -rf /var/lib/apt/lists/*" in install
    for target in ("cpu", "gpu", "server"):
        copied = [arguments for name, arguments in inherited(target) if name == "COPY" and "--from" in arguments]
        assert [arguments.split()[-1] for arguments in copied] == [".venv"]


def test_environments_are_those_of_make() -> None:
    for name, lock in (("cpu", "requirements"), ("gpu", "requirements-gpu"), ("server", "requirements-team")):
        (build,) = [arguments for kind, arguments in stages()[f"{name}-environment"].instructions if kind == "RUN"]
        assert build == f"make .venv/{lock}.txt"
        assert (ROOT / f"{lock}.txt").exists()


def test_what_git_ignores_is_not_copied() -> None:
    ignored = set((DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines())
    for line in [*patterns(ROOT / ".gitignore"), *(f".dvc/{name}" for name in patterns(ROOT / ".dvc" / ".gitignore"))]:
        assert {line, f"**/{line}"} & ignored, line


def patterns(path: Path) -> list[str]:
    """The patterns of a .gitignore, without slashes at their ends."""
    return [line.strip("/") for line in path.read_text(encoding="utf-8").splitlines() if line]


def test_nothing_is_exposed_beyond_this_machine() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert "ports" not in SERVICES["postgres"]


def test_services_are_watched_and_hardened() -> None:
    for service in SERVICES.values():
        assert service["healthcheck"]["test"][0] == "CMD"
        assert service["restart"] == "unless-stopped"
        assert "no-new-privileges:true" in service["security_opt"]
    conditions = {other["condition"] for other in SERVICES["mlflow"]["depends_on"].values()}
    assert conditions == {"service_healthy"}


def test_secrets_come_from_the_environment() -> None:
    settings = {name: value for service in SERVICES.values() for name, value in service["environment"].items()}
    secrets = {name: value for name, value in settings.items() if SECRET.search(name)}
    assert len(secrets) >= 4
    assert all(re.fullmatch(r"\$\{\w+:\?set it in server.env\}", value) for value in secrets.values())
    read = set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text(encoding="utf-8")))
    assert read == variables("server.env.example").keys()


@pytest.mark.parametrize("name", ["server.env.example", "client.env.example"])
def test_examples_contain_no_secret(name: str) -> None:
    assert {value for variable, value in variables(name).items() if SECRET.search(variable)} <= {"", "''"}


def variables(name: str) -> dict[str, str]:
    """The variables that a file sets."""
    lines = (DEPLOY / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


def test_the_development_container_is_a_target_of_the_dockerfile() -> None:
    text = (ROOT / ".devcontainer.json").read_text(encoding="utf-8")
    settings = json.loads(re.sub(r"^ *//.*$", "", text, flags=re.MULTILINE))
    assert (ROOT / settings["build"]["dockerfile"]) == DOCKERFILE
    assert settings["build"]["target"] in stages()
    assert (ROOT / settings["postCreateCommand"].removeprefix("make .venv/")).exists()


def test_the_documented_commands_fill_in_every_secret(tmp_path: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs" / "team.md").read_text(encoding="utf-8"), re.M | re.S)
    commands = next(block for block in blocks if "server.env" in block).partition("docker compose")[0]
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    subprocess.run(["sh", "-euc", commands], cwd=tmp_path, check=True)
    filled = tmp_path / "deploy" / "server.env"
    before = filled.read_bytes()
    subprocess.run(["sh", "-euc", commands], cwd=tmp_path, check=True)
    assert filled.read_bytes() == before, "the volumes of the database keep the first secrets"
    lines = dict(line.split("=", 1) for line in filled.read_text(encoding="utf-8").splitlines() if "=" in line)
    assert all(len(lines[name]) >= 32 for name, value in variables("server.env.example").items() if not value)
    assert filled.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("password", ["pa$HOME #x `y`", "correct horse", "a'b\\"])
def test_a_password_in_the_client_settings_is_not_run_by_the_shell(tmp_path: Path, password: str) -> None:
    text = (DEPLOY / "client.env.example").read_text(encoding="utf-8")
    quoted = password.replace("'", "'\\''")
    file = tmp_path / "client.env"
    names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    for name in names:
        assert f"\n{name}=''\n" in text
        text = text.replace(f"{name}=''", f"{name}='{quoted}'")
    file.write_text(text, encoding="utf-8")
    printed = Project(ROOT).succeed("sh", "-euc", f"set -a; . {file}; env")
    assert {name: f"{name}={password}\n" in printed for name in names} == dict.fromkeys(names, True)


NAMES = ("a:b", " ", "", "nina\n", "\x1b[2Jnina", "n" * 400, "-nina ", "ni/na", "\udcff")


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_names_that_cannot_log_in_are_refused_before_anything_is_created(name: str) -> None:
    (printed,) = Project(ROOT).fail("python", "deploy/users.py", "--", "nina", name).splitlines()
    assert printed.startswith(f"users: {name[:40]!r}: a name has 1 to 64 letters, digits and ")


def test_the_client_settings_name_the_remote() -> None:
    command = "set -a; . deploy/client.env.example; dvc remote list"
    printed = Project(ROOT).succeed("sh", "-euc", command)
    assert printed.split() == ["team", "s3://digits/dvc", "(default)"]
