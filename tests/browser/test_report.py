"""The report opened from the file system: on a desktop, on a phone, in dark mode."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser import ui
from tests.browser.conftest import Runs
from tests.conftest import Project

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]


def open_report(page: Page, project: Project) -> list[str]:
    """Open the report, and return the addresses that it requests from outside the page."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    report = project.root / "reports" / "report.html"
    page.goto(report.as_uri())
    expect(page.get_by_role("heading", level=1)).to_have_text("notebook: mlp on digits, seed 1")
    ui.wait_for_images(page.locator("img"))
    return [url for url in asked if not url.startswith("data:") and url != report.as_uri()]


def brightness(page: Page, selector: str, style: str) -> float:
    """Brightness of an element's computed color, from 0 to 1."""
    color = page.locator(selector).first.evaluate(f"element => getComputedStyle(element).{style}")
    return sum(int(part) for part in re.findall(r"\d+", color)[:3]) / 3 / 255


def test_the_report_is_self_contained(page: Page, trained_runs: Project) -> None:
    assert open_report(page, trained_runs) == []
    errors = trained_runs.report("evaluation.json")["test"]["errors"]
    assert ui.wait_for_images(page.locator("img")) == 4 + min(errors, 40)
    page.get_by_text("Full configuration").click()
    expect(page.get_by_role("row", name="optimizer.name adamw")).to_be_visible()


@pytest.mark.parametrize("page", [{"viewport": ui.PHONE}], indirect=True)
def test_the_report_fits_a_phone(page: Page, trained_runs: Project) -> None:
    open_report(page, trained_runs)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for element in page.locator("section, .figures div, img").all():
        box = element.bounding_box()
        assert box is not None
        assert 0 <= box["x"] < box["x"] + box["width"] <= ui.PHONE["width"]


@pytest.mark.parametrize(
    ("page", "dark"), [({"color_scheme": "light"}, False), ({"color_scheme": "dark"}, True)], indirect=["page"]
)
def test_the_report_follows_the_color_scheme(page: Page, dark: bool, trained_runs: Project) -> None:
    open_report(page, trained_runs)
    for selector in ("body", "section"):
        paper, ink = brightness(page, selector, "backgroundColor"), brightness(page, selector, "color")
        assert (paper < 0.2 and ink > 0.8) if dark else (paper > 0.9 and ink < 0.2)
    expect(page.locator("img.chart").first).to_have_css("filter", re.compile("invert" if dark else "^none$"))


def test_the_report_agrees_with_mlflow(page: Page, runs: Runs) -> None:
    open_report(page, runs.project)
    run = runs.by_name["notebook-mlp-seed-1 (adamw)"]
    expect(page.get_by_text(f"{run.data.metrics['test/accuracy']:.2%}").first).to_be_visible()
    expect(page.get_by_role("row", name=f"MLflow run {run.info.run_id}")).to_be_visible()
    expect(page.locator("pre")).to_contain_text(f"git checkout {run.data.tags['git.commit']}")
