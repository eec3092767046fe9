"""A sweep in the MLflow UI, and its page of charts."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser import ui
from tests.conftest import Project, copy
from tests.sweep.files import write

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]


def test_a_sweep_is_one_row_with_its_trials_below(page: Page, trained_runs: Project, tmp_path: Path) -> None:
    project = copy(trained_runs, tmp_path / "project")
    write(project, "s", finalists=1, seeds=2)
    printed = project.succeed("python", "-m", "pipeline.sweep", "s")
    sweep, trials = (found.split("#")[1] for found in re.findall(r"http://127\.0\.0\.1:5000/\S+", printed))
    with ui.serve(project.root, tmp_path / "log") as address:
        server = address.split("#")[0]
        page.goto(f"{server}#{trials}")
        ui.close_assistant(page)
        rows = page.get_by_role("row")
        expect(rows.filter(has_text="trial ")).to_have_count(0)
        for column in ("sweep.state", "val_accuracy", "val_loss", "fit_seconds", "parameters"):
            expect(page.get_by_role("columnheader", name=column).first).to_be_visible()
        rows.filter(has_text="sweep s").get_by_role("button").first.click()
        for name in ("trial 0", "trial 1", "trial 2", "current settings, seed 2"):
            expect(rows.get_by_role("link", name=name, exact=True)).to_be_visible()
        page.goto(f"{server}#{sweep}")
        expect(page.get_by_text("Best trials on the held-out images")).to_be_visible()
        expect(page.get_by_text("Finals with the seeds 2, 3 on the held-out images")).to_be_visible()


def test_the_page_of_charts_needs_no_network(page: Page, trained_runs: Project, tmp_path: Path) -> None:
    project = copy(trained_runs, tmp_path / "project")
    write(project, "s")
    project.succeed("python", "-m", "pipeline.sweep", "s")
    requests: list[str] = []
    problems: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto((project.root / ".sweeps/s/sweep.html").as_uri())
    expect(page.locator(".plotly-graph-div svg.main-svg").first).to_be_visible()
    expect(page.get_by_role("table")).to_have_count(1)
    assert page.locator(".plotly-graph-div").count() == 4
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert problems == []
