import pytest

from tests.browser.ui import find_browser

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]


def test_a_missing_browser_error_says_how_to_install_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(FileNotFoundError, match="apt-get install chromium"):
        find_browser()
