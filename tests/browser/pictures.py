"""Take the pictures of the documentation (`make pictures`): MLflow, a report, a sweep and the drawing page.

Shows the runs and the champion of MLFLOW_TRACKING_URI, or else of mlflow.db, reports/report.html, and a page of
.sweeps/: train and promote the models to show beforehand.
"""

import argparse
import io
import os
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, ViewportSize, expect, sync_playwright

from pipeline.core import paths
from tests.browser import ui
from tests.conftest import ROOT, SETTINGS

DOCS = ROOT / "docs"
PAPER = ViewportSize(width=860, height=520)  # of the drawing page
LIMIT = 150_000  # bytes
COLORS = (128, 96, 64, 48, 32)
CURVES = "^(train|val|test)/(loss|accuracy)$"
FIRST_CURVES = ("test/accuracy", "test/loss", "train/accuracy", "train/loss")  # the charts that fit on the picture


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(prog="python -m tests.browser.pictures", description=__doc__)
    parser.add_argument("--run", help="name of the run whose page is shown (default: the first in the list)")
    parser.add_argument("--sweep", default="mlp", help="name of the sweep whose charts are shown (default: mlp)")
    parser.add_argument("--into", type=Path, default=DOCS, help="folder to write to (default: docs/)")
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
        if (charts := ROOT / ".sweeps" / arguments.sweep / "sweep.html").exists():
            picture_sweep(page, charts, arguments.into / "sweep.png")
        else:
            print(f"pictures: sweep.png was not updated: run `make sweep NAME={arguments.sweep}` first")
        try:
            with ui.serve(ROOT, Path(folder) / "log", ui.DRAWING, **settings) as address:
                picture_drawing(page, address, arguments.into / "serve.png")
        except AssertionError as error:  # the server exited and printed the reason
            sys.exit(f"pictures: serve.png was not updated: {str(error).strip()}")


def picture_runs(page: Page, address: str, path: Path) -> None:
    """Take the picture of the run list and its charts."""
    ui.open_runs(page, address)
    ui.close_notice(page)
    ui.show_runs(page, "charts")
    ui.search_charts(page, CURVES)
    for metric in FIRST_CURVES:
        expect(page.get_by_text(f"({metric})").first).to_be_visible()  # the legend appears with the curve
    save_picture(page, path)


def picture_run(page: Page, address: str, name: str | None, path: Path) -> None:
    """Take the picture of a run's page, at the address that `evaluate` prints, with its description expanded."""
    rows = page.get_by_role("row").filter(has_text=name) if name else page.locator("[row-index='0']")
    run = rows.get_by_role("link").first.get_attribute("href")
    page.goto(f"{address.partition('#')[0]}{run}?workflowType=machine_learning")
    ui.read_description(page)
    expect(page.get_by_role("heading", name="Registered models")).to_be_visible()
    save_picture(page, path)


def picture_report(page: Page, path: Path) -> None:
    """Take the picture of the top of the report."""
    page.goto((ROOT / paths.REPORT).as_uri())
    ui.wait_for_images(page.locator("img"))
    save_picture(page, path)


def picture_sweep(page: Page, charts: Path, path: Path) -> None:
    """Take the picture of a sweep's first charts, without the tables above."""
    page.goto(charts.as_uri())
    expect(page.locator(".plotly-graph-div svg.main-svg").first).to_be_visible()
    page.evaluate("document.querySelector('.plotly-graph-div').closest('section').scrollIntoView()")
    save_picture(page, path)


def picture_drawing(page: Page, address: str, path: Path) -> None:
    """Take the picture of the page of `make serve` with a drawn and classified digit."""
    page.set_viewport_size(PAPER)
    page.goto(address)
    ui.draw(page, ui.DIGITS[3])
    expect(page.get_by_role("status")).to_have_text("Prediction: 3")
    save_picture(page, path)


def save_picture(page: Page, path: Path) -> None:
    """Save a screenshot with as many colors as the size limit allows."""
    seen = Image.open(io.BytesIO(page.screenshot(animations="disabled"))).convert("RGB")
    for colors in COLORS:
        content = io.BytesIO()
        seen.quantize(colors).save(content, "PNG", optimize=True)
        if content.tell() <= LIMIT:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.getvalue())
            print(f"{path}: {content.tell():,} bytes, {colors} colors")
            return
    sys.exit(f"{path} exceeds {LIMIT:,} bytes even with {COLORS[-1]} colors: show less on the page")


if __name__ == "__main__":
    main()
