"""Functions that drive the pages in a browser, for the tests and the README's pictures.

MLflow's UI is a single-page application: every function waits for visible content, never for a fixed time.
"""

import math
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
PATIENCE = 60_000  # milliseconds; long, because other processes share the two cores
DESK, PHONE = {"width": 1400, "height": 1000}, {"width": 390, "height": 844}
UI, DRAWING = ("pipeline.commands.runs", "ui"), ("pipeline.commands.serve",)  # what `make ui` and `make serve` run
MODES = {"table": "TABLE", "charts": "CHART"}  # of the run list


def find_browser() -> str:
    """Return the path of the system's Chromium or Chrome."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise FileNotFoundError(f"none of {', '.join(BROWSERS)} is installed: apt-get install chromium")
    return found


def launch(playwright: Playwright) -> Browser:
    """Start the browser headless, and without its sandbox, which root cannot use."""
    return playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])


def open_context(browser: Browser, **options: object) -> BrowserContext:
    """Open a fresh browser context, without cookies or settings from earlier visits."""
    context = browser.new_context(**{"viewport": DESK, "locale": "en-GB", **options})  # type: ignore[arg-type]
    context.set_default_timeout(PATIENCE)
    context.set_default_navigation_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    return context


@contextmanager
def serve(project: Path, log: Path, arguments: tuple[str, ...] = UI, **settings: str) -> Iterator[str]:
    """Serve a project's runs like `make ui`, or its model like `make serve`, while the block runs.

    Yields the address that the server prints.
    """
    command = [sys.executable, "-m", *arguments, "--port", str(free_port())]
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
    """Wait for the address, which is printed once the server responds; for a remote store it is the store's own."""
    while True:
        ended, printed = server.poll() is not None, log.read_text(encoding="utf-8")
        if found := re.search(r"^(?:The runs are|Draw a digit) at (\S+)$", printed, re.MULTILINE):
            return found[1]
        if ended:
            raise AssertionError(printed)
        time.sleep(0.1)


# The run list.


def open_runs(page: Page, address: str) -> None:
    """Open the run list, and close the assistant, which MLflow opens on the first visit."""
    page.goto(address)
    close_assistant(page)
    expect(page.get_by_role("heading", name="Runs")).to_be_visible()
    expect(run_links(page).first).to_be_visible()


def close_assistant(page: Page) -> None:
    """Close the assistant, which covers a quarter of the page on the first visit.

    No setting of MLflow 3.17's server prevents that: the page opens it at localhost and 127.0.0.1.
    """
    page.locator("[data-component-id='mlflow.assistant.chat_panel.close']").click()
    expect(page.get_by_role("button", name="MLflow Assistant")).to_be_visible()


def run_links(page: Page) -> Locator:
    """The links in the run list, in arbitrary order, because CSS positions the rows."""
    return page.get_by_role("row").get_by_role("link").filter(has_text="seed")


def expect_runs(page: Page, names: list[str]) -> None:
    """Wait until the list holds exactly these runs, in this order from top to bottom."""
    expect(run_links(page)).to_have_count(len(names))
    for index, name in enumerate(names):
        row = page.get_by_role("row").and_(page.locator(f"[row-index='{index}']"))
        expect(row.get_by_role("link").filter(has_text="seed")).to_have_text(name)


def hidden_width(page: Page) -> int:
    """The number of pixels by which the columns of the run list are wider than the list."""
    grid = page.locator(".ag-center-cols-viewport")
    return int(grid.evaluate("grid => grid.scrollWidth - grid.clientWidth"))


def cut_texts(texts: Locator) -> list[str]:
    """The texts in headers or cells of the run list that do not fit their column."""
    found: list[str] = texts.evaluate_all(
        """texts => texts.filter(text => {
            const range = document.createRange();
            range.selectNodeContents(text);
            const column = text.closest(".ag-header-cell, .ag-cell");
            const end = column.getBoundingClientRect().right - parseFloat(getComputedStyle(column).paddingRight);
            return range.getBoundingClientRect().right > end;
        }).map(text => text.textContent)"""
    )
    return found


def headers(page: Page) -> Locator:
    """The column headers of the run list."""
    return page.locator(".ag-header-cell [data-testid^=sort-header-]")


def column(page: Page, name: str) -> Locator:
    """The cells of a column of the run list, in arbitrary order."""
    return page.locator(f".ag-cell[col-id='{name}']")


def load_more_runs(page: Page) -> None:
    """Scroll to the end of the run list, and load the next hundred runs."""
    button = page.get_by_role("button", name="Load more")
    box = page.locator(".ag-body-viewport")
    box.evaluate("box => box.scrollTo(0, box.scrollHeight)")
    button.click()


def sort_runs(page: Page, column: str) -> None:
    """Sort the run list by a column in descending order."""
    page.get_by_role("button", name="Sort:").click()
    page.get_by_placeholder("Search", exact=True).fill(column)
    page.get_by_role("menuitemcheckbox").get_by_text(column, exact=True).click()
    expect(page.get_by_text(f"Sort: {column}")).to_be_visible()


def search_runs(page: Page, query: str, matches: int) -> None:
    """Enter a query in the search box, and wait until `matches` runs are left."""
    box = page.get_by_placeholder("metrics.rmse")
    box.fill(query)
    box.press("Enter")
    expect(page.get_by_text(f"{matches} matching run")).to_be_visible()


def show_runs(page: Page, mode: str) -> None:
    """Switch the run list to `table` or `charts`."""
    page.locator(f"label:has(input[name=runs-view-mode][value={MODES[mode]}])").click()


def close_notice(page: Page) -> None:
    """Close the notice that the columns of the run list are a shared view."""
    page.get_by_role("button", name="Hide banner").click()


def compare_runs(page: Page, names: list[str]) -> None:
    """Select runs in the list and compare them."""
    for name in names:
        row = page.get_by_role("row").filter(has=page.get_by_role("link", name=name, exact=True))
        row.get_by_role("checkbox", name="toggle row selection").check()
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("heading", name=f"Comparing {len(names)} Runs")).to_be_visible()


def show_differences(page: Page) -> Locator:
    """Show only the parameters in which the compared runs differ, and return the rows of the table."""
    page.get_by_text("Show diff only").first.click()
    return page.get_by_role("row")


# A run's page.


def open_run(page: Page, name: str) -> None:
    """Follow a run's name from the run list to its page."""
    run_links(page).get_by_text(name, exact=True).click()
    expect(page.get_by_role("heading", name=name)).to_be_visible()


def read_description(page: Page) -> Locator:
    """Expand the description at the top of a run's page."""
    page.get_by_text("Show more").click()
    expect(page.get_by_text("Show less")).to_be_visible()
    return page.get_by_role("main")


def open_tab(page: Page, name: str) -> None:
    """Open a tab of a run's page."""
    page.get_by_role("tab", name=name).click()
    expect(page.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")


def chart_groups(page: Page) -> Locator:
    """The headings of the chart groups from top to bottom, each with its number of charts."""
    return page.get_by_test_id("experiment-view-compare-runs-section-header")


def find_curve(page: Page, metric: str) -> Locator:
    """Search for the chart of a metric, and return its curve."""
    search_charts(page, f"^{metric}$")
    expect(page.get_by_text(f"({metric})")).to_have_count(1)  # the legend
    return page.locator("path.js-line").first  # the second belongs to the legend or the range selector


def search_charts(page: Page, pattern: str) -> None:
    """Show only the charts whose metric matches a regular expression."""
    page.get_by_placeholder("Search metric charts").fill(pattern)


def open_artifact(page: Page, path: str) -> None:
    """Open an artifact in the viewer, expanding its parent folders."""
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
    """Open a registered model's page from any page, through the list of models."""
    page.get_by_role("link", name="Model registry").click()
    page.get_by_role("dialog").get_by_role("button", name="Close").click()  # MLflow's one-time announcement
    page.get_by_role("row").get_by_role("link", name=name, exact=True).click()
    expect(page.get_by_role("heading", name=name)).to_be_visible()


# The drawing page.

Stroke = list[tuple[float, float]]


def arc(center: tuple[float, float], radii: tuple[float, float], start: float, end: float) -> Stroke:
    """An arc of an ellipse in fractions of the canvas's sides; angles in degrees, clockwise from the right."""
    angles = (math.radians(start + (end - start) * step / 24) for step in range(25))
    return [(center[0] + radii[0] * math.cos(angle), center[1] + radii[1] * math.sin(angle)) for angle in angles]


DIGITS: dict[int, list[Stroke]] = {
    0: [arc((0.5, 0.5), (0.17, 0.28), -90, 270)],
    1: [[(0.52, 0.2), (0.48, 0.8)]],
    2: [[*arc((0.5, 0.37), (0.17, 0.16), 190, 400), (0.3, 0.78), (0.72, 0.78)]],
    3: [arc((0.47, 0.35), (0.17, 0.15), 200, 450), arc((0.47, 0.65), (0.19, 0.16), -90, 150)],
    4: [[(0.38, 0.2), (0.3, 0.52), (0.68, 0.52)], [(0.65, 0.22), (0.6, 0.82)]],
    5: [[(0.68, 0.2), (0.4, 0.2), (0.37, 0.45), *arc((0.48, 0.61), (0.19, 0.18), -110, 140)]],
    6: [[(0.6, 0.18), (0.45, 0.34), *arc((0.5, 0.64), (0.15, 0.16), 200, 560)]],
    7: [[(0.3, 0.24), (0.7, 0.24), (0.56, 0.5), (0.46, 0.82)]],
    8: [arc((0.5, 0.35), (0.14, 0.14), 90, 450), arc((0.5, 0.66), (0.17, 0.16), -90, 270)],
    9: [arc((0.5, 0.38), (0.15, 0.15), 0, 360), [(0.65, 0.38), (0.62, 0.6), (0.56, 0.82)]],
}


def draw(page: Page, strokes: list[Stroke]) -> None:
    """Draw strokes on the page one after another, and wait for the final prediction.

    Coordinates are fractions of the canvas's sides.
    """
    box = page.locator("#drawing").bounding_box()
    assert box is not None
    for stroke in strokes:
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
        page.mouse.move(*places[0])
        page.mouse.down()
        for place in places[1:]:
            page.mouse.move(*place, steps=3)
        page.mouse.up()
    expect(page.get_by_role("list", name="Probabilities")).to_have_attribute("aria-busy", "false")


# Any page.


def wait_for_images(images: Locator) -> int:
    """Wait until every image has content, and return the number of images."""
    expect(images.first).to_be_attached()
    for image in images.all():
        expect(image).to_have_js_property("complete", True)
        assert image.evaluate("image => image.naturalWidth") > 0, image.evaluate("image => image.outerHTML")[:200]
    return images.count()
