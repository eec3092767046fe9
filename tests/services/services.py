"""Real services on loopback: PostgreSQL, S3-compatible stores and MLflow's server. Each can be killed and restarted."""

import contextlib
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import requests
import yaml

from tests.conftest import ROOT, Project, environment, free_port

DEPLOY = ROOT / "deploy"
BUCKET = "digits"  # as in deploy/dvc/config
PATIENCE = 120  # seconds until a service must answer
DEBIAN = sorted(Path("/usr/lib/postgresql").glob("*/bin"))  # not in PATH, because several versions can be installed
ADMIN = "admin"  # as in deploy/basic_auth.ini
VARIABLE = re.compile(r"\$\{(\w+):\?[^}]*\}")  # in deploy/compose.yaml
MISSING = "needs PostgreSQL's programs: apt-get install postgresql"


class Service:
    """A process group that listens on a port of 127.0.0.1, and writes its output to a log file."""

    def __init__(self, name: str, folder: Path, command: Sequence[str], port: int, path: str, **settings: str) -> None:
        self.log = folder / f"{name}.log"
        self.folder, self.command, self.port, self.settings = folder, command, port, settings
        self.address = f"http://127.0.0.1:{port}"
        self._path = path
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process, and wait until it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=environment(self.settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + PATIENCE
        while not self.answers():
            assert self._process.poll() is None, self.output
            assert time.monotonic() < end, f"no answer: {self.output}"
            time.sleep(0.1)

    def answers(self) -> bool:
        """Whether the service answers a request."""
        try:
            return requests.get(f"{self.address}{self._path}", timeout=5).status_code < 500
        except requests.RequestException:
            return False

    def kill(self) -> None:
        """Kill the process and its children without any warning."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    @property
    def output(self) -> str:
        """Everything that the service has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")


def postgres_programs() -> Path | None:
    """The folder with PostgreSQL's programs; None if they are not installed."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    return next((folder for folder in [*folders, *DEBIAN[::-1]] if (folder / "pg_ctl").exists()), None)


class Postgres:
    """A PostgreSQL server in a new folder, with a database `mlflow`, whose user must give a password."""

    def __init__(self, programs: Path, folder: Path, password: str) -> None:
        self.programs, self.folder, self.port = programs, folder, free_port()
        self._password = password

    @property
    def settings(self) -> dict[str, str]:
        """The environment variables with which PostgreSQL's clients connect."""
        connection = {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": "mlflow"}
        return {**connection, "PGDATABASE": "mlflow", "PGPASSWORD": self._password}

    def create(self) -> None:
        """Create the database, and start the server."""
        secret = self.folder / "password"
        secret.write_text(self._password, encoding="utf-8")
        if user := unprivileged():
            shutil.chown(self.folder, user)
            shutil.chown(secret, user)
        options = ("--username=mlflow", f"--pwfile={secret}", "--auth=scram-sha-256", "--no-sync", "--encoding=UTF8")
        self._serve("initdb", *options)
        secret.unlink()
        self.start()
        self.run("createdb", "--maintenance-db=postgres", "mlflow")

    def start(self) -> None:
        """Start the server, and wait until it accepts connections."""
        options = f"-c listen_addresses=127.0.0.1 -c port={self.port} -c unix_socket_directories= -c fsync=off"
        self._serve("pg_ctl", "start", "--wait", f"--log={self.folder}/log", f"--options={options}")

    def kill(self) -> None:
        """Stop the server at once, without waiting for its clients."""
        self._serve("pg_ctl", "stop", "--mode=immediate")

    def answers(self) -> bool:
        """Whether the server accepts connections."""
        command = [str(self.programs / "pg_isready"), "-q"]
        return subprocess.run(command, env=os.environ | self.settings, check=False).returncode == 0

    def run(self, program: str, *arguments: str, **settings: str) -> str:
        """Run one of PostgreSQL's clients, and return its output."""
        command = [str(self.programs / program), *arguments]
        environment = os.environ | self.settings | settings
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    def _serve(self, program: str, *arguments: str) -> None:
        command = [str(self.programs / program), f"--pgdata={self.folder}/data", *arguments]
        user = unprivileged()
        become: dict[str, Any] = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if user else {}
        with (self.folder / "output").open("ab") as output:  # not a pipe, which the server would keep open
            done = subprocess.run(command, cwd="/", stdout=output, stderr=output, check=False, **become)
        assert not done.returncode, (self.folder / "output").read_text(encoding="utf-8")


@contextmanager
def postgres_server(programs: Path) -> Iterator[Postgres]:
    """Start a PostgreSQL server in a new folder, while the block runs."""
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest's own folders are closed to other users
    server = Postgres(programs, folder, secrets.token_hex())
    try:
        server.create()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder)


def unprivileged() -> str | None:
    """The user to become to run PostgreSQL, which refuses to run as root; None for other users."""
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names) if os.getuid() == 0 else None


class Team(NamedTuple):
    """A team's server and its store, and the passwords of its users."""

    mlflow: Service
    s3: Service
    postgres: Postgres
    bucket: Path  # the folder of the objects
    passwords: dict[str, str]
    keys: dict[str, str]  # AWS_…
    printed: list[str]  # the output of all commands

    def login(self, user: str) -> dict[str, str]:
        """The environment variables that switch a checkout to the team's server and store."""
        return {
            "MLFLOW_TRACKING_URI": self.mlflow.address,
            "MLFLOW_TRACKING_USERNAME": user,
            "MLFLOW_TRACKING_PASSWORD": self.passwords[user],
            "DVC_SYSTEM_CONFIG_DIR": str(DEPLOY / "dvc"),
            "DVC_SITE_CACHE_DIR": str(self.bucket.parent / f"dvc-{user}"),  # as on a machine of one's own
            **self.keys,
        }

    @property
    def secrets(self) -> list[str]:
        """Everything that only its owner may see."""
        database = self.postgres.settings["PGPASSWORD"]
        return [*self.passwords.values(), self.keys["AWS_SECRET_ACCESS_KEY"], database]

    @contextmanager
    def without(self, service: str) -> Iterator[None]:
        """Kill a service, and start it again after the block if the block has not done so."""
        found = getattr(self, service)
        found.kill()
        try:
            yield
        finally:
            if not found.answers():
                found.start()


class Running:
    """A command that runs, and the output that it has printed so far."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self._process, self._log = process, log

    @property
    def output(self) -> str:
        """Everything that the command has printed."""
        return self._log.read_text(encoding="utf-8")

    def wait_for(self, text: str) -> None:
        """Wait until the command has printed a text."""
        end = time.monotonic() + PATIENCE
        while text not in self.output:
            assert self._process.poll() is None, self.output
            assert time.monotonic() < end, f"{text!r} does not appear: {self.output}"
            time.sleep(0.05)

    def finish(self) -> int:
        """Wait for the end of the command, and return its exit status."""
        return self._process.wait(PATIENCE)


class Member(Project):
    """A clone of the project whose commands use the team's services with one user's login."""

    def __init__(self, root: Path, team: Team, user: str) -> None:
        super().__init__(root)
        self.team, self.user = team, user

    def run(self, *command: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run a command with the user's login."""
        result = super().run(*command, **self.team.login(self.user) | settings)
        self.team.printed.append(result.stdout)
        return result

    @contextmanager
    def running(self, *command: str, **settings: str) -> Iterator[Running]:
        """Run a command while the block runs."""
        log = self.root.parent / f"{self.root.name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=self.root,
                env=environment(self.team.login(self.user) | settings),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            yield Running(process, log)
        finally:
            process.kill()
            process.wait()
            self.team.printed.append(log.read_text(encoding="utf-8"))


def tracking(postgres: Postgres, folder: Path, keys: dict[str, str], password: str, workers: int = 1) -> Service:
    """MLflow's server with the settings of deploy/compose.yaml, but for the addresses."""
    port = free_port()
    secret = {"MLFLOW_AUTH_ADMIN_PASSWORD": password, "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex()}
    hosts = {"MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{port}", "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ""}
    settings = deployed("mlflow", secret | hosts | postgres.settings | keys) | postgres.settings | keys
    settings |= {"MLFLOW_AUTH_CONFIG_PATH": str(DEPLOY / "basic_auth.ini"), "MLFLOW_DISABLE_TELEMETRY": "true"}
    settings["MLFLOW_WORKERS"] = str(workers)
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--port", str(port)]
    return Service("mlflow", folder, command, port, "/health", **settings)


def deployed(service: str, values: dict[str, str]) -> dict[str, str]:
    """The environment of a service in deploy/compose.yaml, with these values for its variables."""
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    settings: dict[str, str] = compose["services"][service]["environment"]
    return {name: VARIABLE.sub(lambda found: values[found[1]], value) for name, value in settings.items()}


def rclone(folder: Path, objects: Path, keys: dict[str, str]) -> Service:
    """An S3-compatible store of the files in a folder, which keeps them when it is killed."""
    port = free_port()
    command = ["rclone", "serve", "s3", "--addr", f"127.0.0.1:{port}", "--config", os.devnull, str(objects)]
    return Service("rclone", folder, command, port, "/", **deployed("s3", keys))


def moto(folder: Path) -> Service:
    """Another implementation of S3, which keeps its objects in memory and accepts any key."""
    port = free_port()
    return Service("moto", folder, [str(Path(sys.executable).parent / "moto_server"), "-p", str(port)], port, "/")
