"""Driving the pages in a browser: what the tests and the README's pictures have in common.

A page of MLflow's is an application: everything here waits for what a person would see, never for a fixed time.
"""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, BrowserContext, FrameLocator, Locator, Page, Playwright, expect

from tests.conftest import environment, free_port, kill_all

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 60_000  # milliseconds: two cores that others share
DESK, PHONE = {"width": 1400, "height": 1000}, {"width": 390, "height": 844}
MODES = {"table": "TABLE", "charts": "CHART"}  # of the run list


def find_browser() -> str:
    """The path of the system's own Chromium or Chrome."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise FileNotFoundError(f"none of {', '.join(BROWSERS)} is installed: apt-get install chromium")
    return found


def launch(playwright: Playwright) -> Browser:
    """Start it without a window; without its sandbox, which root may not have."""
    return playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])


def open_context(browser: Browser, **options: object) -> BrowserContext:
    """A browser in which nobody has been before: no cookies, no settings kept from earlier visits."""
    context = browser.new_context(**{"viewport": DESK, "locale": "en-GB", **options})  # type: ignore[arg-type]
    context.set_default_timeout(PATIENCE)
    context.set_default_navigation_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    return context


@contextmanager
def serve_ui(project: Path, log: Path, **settings: str) -> Iterator[str]:
    """Serve a project's runs as `make ui` does while the block runs; gives the address that it prints."""
    port = free_port()
    command = [sys.executable, "-m", "pipeline.tracking", "ui", "--port", str(port)]
    with log.open("w", encoding="utf-8") as output:
        server = subprocess.Popen(
            command,
            cwd=project,
            env=environment(settings),
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    try:
        yield _printed_address(server, log)
    finally:
        kill_all(server)


def _printed_address(server: "subprocess.Popen[str]", log: Path) -> str:
    """The address that is printed as soon as the server answers; of a store on a server, its own."""
    while True:
        ended, printed = server.poll() is not None, log.read_text(encoding="utf-8")
        if found := re.search(r"^The runs are at (\S+)$", printed, re.MULTILINE):
            return found[1]
        if ended:
            raise AssertionError(printed)
        time.sleep(0.1)


# The run list.


def open_runs(page: Page, address: str) -> None:
    """Open the run list, and close the assistant that MLflow shows everybody once."""
    page.goto(address)
    close_assistant(page)
    expect(page.get_by_role("heading", name="Runs")).to_be_visible()
    expect(run_links(page).first).to_be_visible()


def close_assistant(page: Page) -> None:
    """Close the assistant, which covers a third of the page on the first visit."""
    page.locator("[data-component-id='mlflow.assistant.chat_panel.close']").click()
    expect(page.get_by_role("button", name="MLflow Assistant")).to_be_visible()


def run_links(page: Page) -> Locator:
    """The names in the run list, in no order: each row is moved to where it belongs."""
    return page.get_by_role("row").get_by_role("link").filter(has_text="seed")


def expect_runs(page: Page, names: list[str]) -> None:
    """Wait until these runs are in the list, in this order from the top down, and no others."""
    expect(run_links(page)).to_have_count(len(names))
    for index, name in enumerate(names):
        row = page.get_by_role("row").and_(page.locator(f"[row-index='{index}']"))
        expect(row.get_by_role("link").filter(has_text="seed")).to_have_text(name)


def sort_runs(page: Page, column: str) -> None:
    """Sort the run list by a column, the highest value first."""
    page.get_by_role("button", name="Sort:").click()
    page.get_by_placeholder("Search", exact=True).fill(column)
    page.get_by_role("menuitemcheckbox").get_by_text(column, exact=True).click()
    expect(page.get_by_text(f"Sort: {column}")).to_be_visible()


def search_runs(page: Page, query: str, matches: int) -> None:
    """Type a query into the search box, and wait until so many runs are left."""
    box = page.get_by_placeholder("metrics.rmse")
    box.fill(query)
    box.press("Enter")
    expect(page.get_by_text(f"{matches} matching run")).to_be_visible()


def show_runs(page: Page, mode: str) -> None:
    """Switch the run list to `table` or `charts`."""
    page.locator(f"label:has(input[name=runs-view-mode][value={MODES[mode]}])").click()


def close_notice(page: Page) -> None:
    """Close what the run list says about its columns being a shared view."""
    page.get_by_role("button", name="Hide banner").click()


def compare_runs(page: Page, names: list[str]) -> None:
    """Tick runs in the list and compare them."""
    for name in names:
        row = page.get_by_role("row").filter(has=page.get_by_role("link", name=name, exact=True))
        row.get_by_role("checkbox", name="toggle row selection").check()
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("heading", name=f"Comparing {len(names)} Runs")).to_be_visible()


def show_differences(page: Page) -> Locator:
    """Leave the parameters in which compared runs differ; the rows of their table."""
    page.get_by_text("Show diff only").first.click()
    return page.get_by_role("row")


# A run's page.


def open_run(page: Page, name: str) -> None:
    """Follow a run's name from the run list to its page."""
    run_links(page).get_by_text(name, exact=True).click()
    expect(page.get_by_role("heading", name=name)).to_be_visible()


def read_description(page: Page) -> Locator:
    """Unfold the description at the top of a run's page."""
    page.get_by_text("Show more").click()
    expect(page.get_by_text("Show less")).to_be_visible()
    return page.get_by_role("main")


def open_tab(page: Page, name: str) -> None:
    """Open a tab of a run's page."""
    page.get_by_role("tab", name=name).click()
    expect(page.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")


def chart_groups(page: Page) -> Locator:
    """The headings of the groups of charts, from the top down, each with its number of charts."""
    return page.get_by_test_id("experiment-view-compare-runs-section-header")


def find_curve(page: Page, metric: str) -> Locator:
    """Search the charts for a metric's, and return the line that is drawn in it."""
    search_charts(page, f"^{metric}$")
    expect(page.get_by_text(f"({metric})")).to_have_count(1)  # the legend
    return page.locator("path.js-line").first  # the second is the legend's or the range's


def search_charts(page: Page, pattern: str) -> None:
    """Leave the charts whose metric matches a regular expression."""
    page.get_by_placeholder("Search metric charts").fill(pattern)


def open_artifact(page: Page, path: str) -> None:
    """Open an artifact in the viewer, unfolding the folders on the way."""
    if not page.url.endswith("/artifacts"):
        open_tab(page, "Artifacts")
    for part in path.split("/"):
        page.get_by_text(part, exact=True).first.click()
    expect(page.get_by_text(f"/artifacts/{path}")).to_be_visible()


def framed_page(page: Page) -> FrameLocator:
    """The HTML page that the artifact viewer shows."""
    return page.frame_locator("iframe.mlflow-html-iframe")


# The model registry.


def open_registered_model(page: Page, name: str) -> None:
    """Open a registered model's page from any other, by way of the list of them."""
    page.get_by_role("link", name="Model registry").click()
    page.get_by_role("dialog").get_by_role("button", name="Close").click()  # what MLflow announces, once
    page.get_by_role("row").get_by_role("link", name=name, exact=True).click()
    expect(page.get_by_role("heading", name=name)).to_be_visible()


# Any page.


def wait_for_images(images: Locator) -> int:
    """Wait until every image has content; how many there are."""
    expect(images.first).to_be_attached()
    for image in images.all():
        expect(image).to_have_js_property("complete", True)
        assert image.evaluate("image => image.naturalWidth") > 0, image.evaluate("image => image.outerHTML")[:200]
    return images.count()
