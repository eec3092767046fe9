"""`make pictures`: the README's pictures: the MLflow UI, the report and the page to draw on, as the tests look at them.

Shows the runs and the champion of MLFLOW_TRACKING_URI, else of mlflow.db, and reports/report.html: train and promote
what the pictures should show.
"""

import argparse
import io
import os
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, ViewportSize, expect, sync_playwright

from pipeline import paths
from tests.browser import ui
from tests.conftest import ROOT, SETTINGS

DOCS = ROOT / "docs"
PAPER = ViewportSize(width=860, height=520)  # of the page to draw on
LIMIT = 150_000  # bytes
COLOURS = (128, 96, 64, 48, 32)
CURVES = "^(train|val|test)/(loss|accuracy)$"
FIRST_CURVES = ("test/accuracy", "test/loss", "train/accuracy", "train/loss")  # what fits on the picture


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(prog="python -m tests.browser.pictures", description=__doc__)
    parser.add_argument("--run", help="the name of the run whose page is shown (default: the first in the list)")
    parser.add_argument("--into", type=Path, default=DOCS, help="the folder to write to (default: docs/)")
    arguments = parser.parse_args()
    settings = {name: os.environ[name] for name in SETTINGS if name in os.environ}
    if not (ROOT / paths.REPORT).exists():
        sys.exit(f"{paths.REPORT} does not exist: run `dvc repro` first")
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        page = ui.open_context(ui.launch(playwright)).new_page()
        with ui.serve(ROOT, Path(folder) / "log", ui.UI, **settings) as address:
            picture_runs(page, address, arguments.into / "mlflow.png")
            picture_run(page, address, arguments.run, arguments.into / "run.png")
        picture_report(page, arguments.into / "report.png")
        try:
            with ui.serve(ROOT, Path(folder) / "log", ui.DRAWING, **settings) as address:
                picture_drawing(page, address, arguments.into / "serve.png")
        except AssertionError as error:  # the server has ended, with its reason
            sys.exit(f"pictures: serve.png is as it was: {str(error).strip()}")


def picture_runs(page: Page, address: str, path: Path) -> None:
    """The list of runs beside their curves."""
    ui.open_runs(page, address)
    ui.close_notice(page)
    ui.show_runs(page, "charts")
    ui.search_charts(page, CURVES)
    for metric in FIRST_CURVES:
        expect(page.get_by_text(f"({metric})").first).to_be_visible()  # the legend comes with the curve
    save_picture(page, path)


def picture_run(page: Page, address: str, name: str | None, path: Path) -> None:
    """A run's page as the address opens it that the run prints, its description unfolded."""
    rows = page.get_by_role("row").filter(has_text=name) if name else page.locator("[row-index='0']")
    run = rows.get_by_role("link").first.get_attribute("href")
    page.goto(f"{address.partition('#')[0]}{run}?workflowType=machine_learning")
    ui.read_description(page)
    expect(page.get_by_role("heading", name="Registered models")).to_be_visible()
    save_picture(page, path)


def picture_report(page: Page, path: Path) -> None:
    """The top of the report."""
    page.goto((ROOT / paths.REPORT).as_uri())
    ui.wait_for_images(page.locator("img"))
    save_picture(page, path)


def picture_drawing(page: Page, address: str, path: Path) -> None:
    """The page of `make serve` with a digit drawn and read."""
    page.set_viewport_size(PAPER)
    page.goto(address)
    ui.draw(page, ui.DIGITS[3])
    expect(page.get_by_role("status")).to_have_text("It reads a 3.")
    save_picture(page, path)


def save_picture(page: Page, path: Path) -> None:
    """Save what is seen in as many colours as the limit of bytes allows."""
    seen = Image.open(io.BytesIO(page.screenshot(animations="disabled"))).convert("RGB")
    for colours in COLOURS:
        content = io.BytesIO()
        seen.quantize(colours).save(content, "PNG", optimize=True)
        if content.tell() <= LIMIT:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.getvalue())
            print(f"{path}: {content.tell():,} bytes, {colours} colours")
            return
    sys.exit(f"{path} takes more than {LIMIT:,} bytes in {COLOURS[-1]} colours: show less")


if __name__ == "__main__":
    main()
