"""The page of `make serve`, used like a person who draws on it."""

from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from tests.browser import ui
from tests.commands.serve.test_picture import canvas, png

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]


@pytest.fixture
def faults(page: Page) -> list[str]:
    """Console messages and errors of the browser."""
    found: list[str] = []
    page.on("console", lambda message: found.append(message.text))
    page.on("pageerror", lambda error: found.append(str(error)))
    return found


def bar(page: Page, digit: int) -> Locator:
    """The row of a digit's probability."""
    return page.get_by_role("listitem").nth(digit)


@pytest.mark.parametrize("digit", ui.DIGITS)
def test_drawn_digits_are_classified(page: Page, drawing: str, faults: list[str], digit: int) -> None:
    page.goto(drawing)
    expect(page.get_by_role("status")).to_have_text("Nothing drawn yet.")
    ui.draw(page, ui.DIGITS[digit])
    expect(page.get_by_role("status")).to_have_text(f"Prediction: {digit}")
    expect(bar(page, digit)).to_have_class("best")
    shares = [float(text.split()[-2]) for text in page.get_by_role("listitem").all_inner_texts()]
    assert sum(shares) == pytest.approx(100, abs=0.1)
    assert shares.index(max(shares)) == digit
    width = bar(page, digit).locator(".rail > div").evaluate("bar => bar.clientWidth / bar.parentElement.clientWidth")
    assert width == pytest.approx(max(shares) / 100, abs=0.02)
    assert faults == []


def test_probabilities_update_while_drawing(page: Page, drawing: str) -> None:
    page.goto(drawing)
    expect(page.locator("#about")).to_contain_text("version 1")
    asked: list[str] = []
    page.on("requestfinished", lambda request: asked.append(request.url))
    box = page.locator("#drawing").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 100, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 100, box["y"] + 200, steps=20)
    expect(page.get_by_role("status")).to_have_text("Prediction: 1")  # before the pen is lifted
    page.mouse.up()
    assert set(asked) == {f"{drawing}/read"}
    assert len(asked) > 1


def test_clear_resets_the_page(page: Page, drawing: str) -> None:
    page.goto(drawing)
    ui.draw(page, ui.DIGITS[0])
    expect(page.get_by_role("status")).to_have_text("Prediction: 0")
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_role("status")).to_have_text("Nothing drawn yet.")
    ui.draw(page, ui.DIGITS[1])
    expect(page.get_by_role("status")).to_have_text("Prediction: 1")
    page.keyboard.press("Escape")
    expect(page.get_by_role("status")).to_have_text("Nothing drawn yet.")
    assert "".join(page.locator("li > :last-child").all_inner_texts()) == ""


def test_a_png_is_opened(page: Page, drawing: str, tmp_path: Path) -> None:
    page.goto(drawing)
    scan = 255 - canvas(60, 120, 160, 24)
    (tmp_path / "one.png").write_bytes(png(scan))
    page.get_by_label("Open a PNG").set_input_files(tmp_path / "one.png")
    expect(page.get_by_role("status")).to_have_text("Prediction: 1")
    Image.fromarray(scan).save(tmp_path / "one.gif")
    page.get_by_label("Open a PNG").set_input_files(tmp_path / "one.gif")
    expect(page.get_by_role("status")).to_have_text("the file is not a valid PNG.")


@pytest.mark.parametrize("page", [{"viewport": ui.PHONE, "color_scheme": "dark"}], indirect=True)
def test_the_page_fits_a_phone_in_dark_mode(page: Page, drawing: str) -> None:
    page.goto(drawing)
    ui.draw(page, ui.DIGITS[7])
    expect(page.get_by_role("status")).to_have_text("Prediction: 7")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 24, 39)"
    expect(page.locator("#about")).to_contain_text("version 1 of mnist (test accuracy 9")
