"""The MLflow UI as a first-time visitor sees it at the address that `make ui` prints."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser import ui
from tests.browser.conftest import Runs
from tests.commands.promote.command import NAME

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]
FIRST = "smoke-mlp-seed-1"
CONVOLUTIONS = "smoke-cnn-seed-1 (convolutions)"
STARTED = "tags.`started`"  # a column of the list
ADAMW = "notebook-mlp-seed-1 (adamw)"


def test_the_printed_address_opens_the_list_of_runs(page: Page, runs: Runs) -> None:
    ui.open_runs(page, runs.address)
    ui.expect_runs(page, [ADAMW, CONVOLUTIONS, FIRST])
    assert set(runs.by_name) == {ADAMW, CONVOLUTIONS, FIRST}
    expect(page.get_by_text("One run per trained model")).to_be_visible()
    for column in ("started", "test/accuracy", "test/errors", "test/loss", "training.epochs"):
        expect(page.get_by_role("columnheader", name=column).first).to_be_visible()
    accuracy = runs.by_name[FIRST].data.metrics["test/accuracy"]
    expect(page.get_by_role("gridcell", name=f"{accuracy:g}", exact=True).first).to_be_visible()


def test_the_columns_fit_the_page(page: Page, runs: Runs) -> None:
    ui.open_runs(page, runs.address)
    expect(ui.column(page, "params.`training.epochs`")).to_have_count(3)
    assert ui.hidden_width(page) == 0
    for texts in (ui.headers(page), ui.column(page, STARTED), ui.column(page, "metrics.`test/loss`")):
        assert ui.cut_texts(texts) == []


def test_the_list_shows_when_each_run_started(page: Page, runs: Runs) -> None:
    ui.open_runs(page, runs.address)
    starts = {run.data.tags["started"] for run in runs.by_name.values()}
    assert len(starts) == 3
    expect(ui.column(page, STARTED)).to_have_count(3)
    assert set(ui.column(page, STARTED).all_inner_texts()) == starts


def test_runs_of_the_same_name_are_told_apart(page: Page, many_runs: str) -> None:
    ui.open_runs(page, many_runs)
    ui.search_runs(page, "attributes.run_name = 'smoke-mlp-seed-7'", 10)
    ui.expect_runs(page, ["smoke-mlp-seed-7"] * 10)
    starts = ui.column(page, STARTED).all_inner_texts()
    assert len(set(starts)) == 10, starts


def test_a_list_of_500_runs_scrolls(page: Page, many_runs: str) -> None:
    ui.open_runs(page, many_runs)
    for loaded in (200, 300, 400, 500, 503):
        ui.load_more_runs(page)
        expect(page.get_by_text(f"{loaded} matching runs")).to_be_visible()
    page.locator(".ag-body-viewport").evaluate("box => box.scrollTo(0, box.scrollHeight)")
    oldest = page.get_by_role("row").and_(page.locator("[row-index='502']"))
    expect(oldest.get_by_role("link")).to_have_text("smoke-mlp-seed-0")
    assert ui.hidden_width(page) == 0
    oldest.get_by_role("link").click()
    expect(page.get_by_role("heading", name="smoke-mlp-seed-0")).to_be_visible()


def test_runs_are_sorted_by_test_accuracy(page: Page, runs: Runs) -> None:
    ui.open_runs(page, runs.address)
    ui.sort_runs(page, "test/accuracy")
    accuracy = {name: run.data.metrics["test/accuracy"] for name, run in runs.by_name.items()}
    assert len(set(accuracy.values())) == 3
    ui.expect_runs(page, sorted(accuracy, key=lambda name: -accuracy[name]))


def test_a_filter_selects_runs(page: Page, runs: Runs) -> None:
    ui.open_runs(page, runs.address)
    ui.search_runs(page, "params.\"model.name\" = 'cnn'", 1)
    ui.expect_runs(page, [CONVOLUTIONS])
    ui.search_runs(page, 'metrics."test/accuracy" > 2', 0)
    ui.expect_runs(page, [])


def test_a_runs_page_has_its_results_and_the_commands_that_reproduce_it(page: Page, runs: Runs) -> None:
    ui.open_runs(page, runs.address)
    ui.open_run(page, ADAMW)
    description, run = ui.read_description(page), runs.by_name[ADAMW]
    rows = description.locator("table").first.get_by_role("row")
    expect(rows.filter(has_text="test accuracy")).to_contain_text(f"{run.data.metrics['test/accuracy']:.2%}")
    expect(rows.filter(has_text="errors")).to_contain_text(f"{run.data.metrics['test/errors']:.0f} of 500 images")
    commands = description.locator("pre").first
    expect(commands).to_contain_text(f"git checkout {run.data.tags['git.commit']}")
    for change in ("recipe=notebook", "dataset=digits", "model.name=mlp", "optimizer.name=adamw", "training.epochs=2"):
        expect(commands).to_contain_text(change)


def test_the_address_that_a_run_prints_opens_its_page(page: Page, runs: Runs) -> None:
    log = runs.project.succeed("dvc", "repro", "-f", "-s", "evaluate")
    printed = re.search(r"The run is at http://127\.0\.0\.1:5000(/#/\S+)", log)
    assert printed, log
    page.goto(runs.address.split("/#/")[0] + printed[1])
    ui.close_assistant(page)
    expect(page.get_by_role("heading", name=ADAMW)).to_be_visible()
    expect(page.get_by_role("link", name="Runs").first).to_be_visible()
    expect(page.get_by_text("Evaluation runs")).to_have_count(0)


def test_a_runs_curves_are_drawn_in_groups(page: Page, runs: Runs) -> None:
    ui.open_runs(page, runs.address)
    ui.open_run(page, FIRST)
    ui.open_tab(page, "Model metrics")
    groups = [re.compile(rf"^{name}\s*\(\d+\)") for name in ("test", "train", "val", "work", "Model metrics")]
    expect(ui.chart_groups(page)).to_have_text(groups)
    for metric in ("train/loss", "val/accuracy"):
        points = runs.client.get_metric_history(runs.by_name[FIRST].info.run_id, metric)
        assert [point.step for point in points] == [1, 2]
        curve = ui.find_curve(page, metric)
        expect(curve).to_have_attribute("d", re.compile(r"^M[\d.]+,[\d.]+L[\d.]+,[\d.]+$"))
        box = curve.bounding_box()
        assert box is not None
        assert min(box["width"], box["height"]) > 100
    ui.open_tab(page, "System metrics")
    expect(page.get_by_text("cpu_utilization_percentage").first).to_be_visible()
    expect(page.locator(".trace path").first).to_be_attached()  # a line, or a bar if there is a single value


def test_artifacts_are_displayed(page: Page, runs: Runs) -> None:
    ui.open_runs(page, runs.address)
    ui.open_run(page, CONVOLUTIONS)
    ui.open_artifact(page, "model_summary.txt")
    expect(page.get_by_text("Total params")).to_be_visible()
    expect(page.get_by_text("Conv2D").first).to_be_visible()
    ui.open_artifact(page, "model_card.md")
    expect(page.get_by_role("heading", name="Model card")).to_contain_text("cnn on digits")
    ui.open_artifact(page, "plots/confusion_matrix.png")
    assert ui.wait_for_images(page.get_by_role("img", name="confusion_matrix.png")) == 1


def test_the_report_is_displayed_as_an_artifact(page: Page, runs: Runs) -> None:
    asked: list[str] = []
    ui.open_runs(page, runs.address)
    ui.open_run(page, FIRST)
    page.on("request", lambda request: asked.append(request.url) if request.frame != page.main_frame else None)
    ui.open_artifact(page, "report.html")
    report = ui.framed_page(page)
    expect(report.get_by_role("heading", level=1)).to_have_text("smoke: mlp on digits, seed 1")
    errors = int(runs.by_name[FIRST].data.metrics["test/errors"])
    assert ui.wait_for_images(report.locator("img")) == 4 + min(errors, 40)
    assert [url for url in asked if not url.startswith(("blob:", "data:"))] == []


def test_two_runs_are_compared_side_by_side(page: Page, runs: Runs) -> None:
    ui.open_runs(page, runs.address)
    ui.compare_runs(page, [FIRST, CONVOLUTIONS])
    for name in (FIRST, CONVOLUTIONS):
        expect(page.get_by_role("cell", name=name, exact=True)).to_be_visible()
    rows = ui.show_differences(page)
    expect(rows.filter(has_text="model.name")).to_have_text("model.namemlpcnn")
    expect(rows.filter(has_text="dataset.name")).to_have_count(0)


def test_the_champion_is_in_the_registry(page: Page, runs: Runs) -> None:
    ui.open_runs(page, runs.address)
    ui.open_registered_model(page, NAME)
    expect(page.get_by_role("row").filter(has_text="Version 1")).to_contain_text("@ champion")
