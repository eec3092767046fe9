"""A real store with real runs, MLflow's own server, and a real browser."""

import sqlite3
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.ui import DRAWING, launch, open_context, serve
from tests.commands.promote.command import promote
from tests.conftest import MIRROR, ROOT, Project, clone

SCREENSHOTS = ROOT / "screenshots"
OLD_RUNS, DAY = 500, 24 * 60 * 60 * 1000  # milliseconds


class Runs(NamedTuple):
    """A project with runs, the address at which `make ui` shows them, and the runs as the store has them."""

    project: Project
    address: str
    client: MlflowClient
    by_name: dict[str, Run]


@pytest.fixture(scope="session")
def trained_runs(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone with three trained models of two recipes and two networks; the first is promoted."""
    folder = tmp_path_factory.mktemp("browser") / "project"
    folder.mkdir()
    return train_runs(folder)


def train_runs(folder: Path) -> Project:
    project = clone(folder)
    project.params(recipe="smoke", dataset=None, model={"name": None}, optimizer={"name": None}, seed=1)
    project.commit()
    project.succeed("dvc", "repro")
    project.commit()
    promote(project, "--base", "HEAD")
    project.succeed("dvc", "exp", "run", "-n", "convolutions", "-S", "model.name=cnn")
    changes = ("recipe=notebook", "dataset=digits", "model.name=mlp", "optimizer.name=adamw", "+training.epochs=2")
    project.succeed("dvc", "exp", "run", "-n", "adamw", *(part for each in changes for part in ("-S", each)))
    return project


def store_client(project: Project) -> MlflowClient:
    return MlflowClient(f"sqlite:///{project.root}/mlflow.db")


def all_runs(client: MlflowClient) -> list[Run]:
    experiment = client.get_experiment_by_name("digits")
    return list(client.search_runs([experiment.experiment_id]))


@pytest.fixture(scope="session")
def runs(trained_runs: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """The trained runs, served as by `make ui`."""
    client = store_client(trained_runs)
    by_name = {str(run.info.run_name): run for run in all_runs(client)}
    with serve(trained_runs.root, tmp_path_factory.mktemp("server") / "log") as address:
        yield Runs(trained_runs, address, client, by_name)


@pytest.fixture(scope="session")
def many_runs(trained_runs: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the trained runs and 500 older runs, ten of each name."""
    folder = tmp_path_factory.mktemp("many")
    database = f"{folder}/mlflow.db"
    with (
        closing(sqlite3.connect(trained_runs.root / "mlflow.db")) as source,
        closing(sqlite3.connect(database)) as copy,
    ):
        source.backup(copy)
    client = MlflowClient(f"sqlite:///{database}")
    (first, *_) = all_runs(client)
    for age in range(1, OLD_RUNS + 1):
        start = first.info.start_time - age * DAY
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(start / 1000))
        name = f"smoke-mlp-seed-{age % 50}"
        client.create_run(first.info.experiment_id, start, {"started": started}, run_name=name)
    with serve(trained_runs.root, folder / "log", MLFLOW_TRACKING_URI=f"sqlite:///{database}") as address:
        yield address


@pytest.fixture(scope="session")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address at which `make serve` serves a champion trained on MNIST for two epochs."""
    folder = tmp_path_factory.mktemp("drawing") / "project"
    folder.mkdir()
    project = clone(folder)
    project.params(recipe="baseline", training={"epochs": 2})
    project.succeed("dvc", "repro", **MIRROR)
    project.commit()
    promote(project, "--base", "HEAD")
    with serve(folder, tmp_path_factory.mktemp("server") / "log", DRAWING) as address:
        yield address


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The system's Chromium."""
    with sync_playwright() as playwright:
        chromium = launch(playwright)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page in a fresh browser context; a failed test leaves a screenshot in screenshots/.

    A test may set options of the context, such as its size: `parametrize("page", [{…}], indirect=True)`.
    """
    context = open_context(browser, **getattr(request, "param", {}))
    yield context.new_page()
    context.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Save a screenshot of the page when a test fails, and report its path."""
    report = yield
    page = getattr(item, "funcargs", {}).get("page")
    if report.when == "call" and report.failed and isinstance(page, Page):
        report.sections.append(("screenshot", str(save_screenshot(page, SCREENSHOTS / f"{item.name}.png"))))
    return report


def save_screenshot(page: Page, path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    page.screenshot(path=path)
    return path
