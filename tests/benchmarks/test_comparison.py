import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.text import Annotation, Text

from benchmarks.comparison import draw, picture, rows, table
from benchmarks.recipes import operations
from tests.conftest import ROOT, configured


def figure(*values: float) -> dict[str, Any]:
    ordered = sorted(values)
    measured = {
        "median": ordered[len(ordered) // 2],
        "min": ordered[0],
        "max": ordered[-1],
        "n": len(ordered),
        "unit": "",
    }
    return measured if len(values) == 1 else measured | {"mean": sum(values) / len(values), "std": 0.001}


TOLD: dict[str, Any] = {
    "recipes": {
        "machine": "a machine",
        "figures": {
            "notebook_accuracy": figure(0.98, 0.984),
            "notebook_fit_seconds": figure(50, 70),
            "notebook_peak_mib": figure(900, 1100),
            "script_notebook_accuracy": figure(0.985),
            "script_notebook_fit_seconds": figure(90),
            "script_notebook_peak_mib": figure(1300),
            "fast_accuracy": figure(0.986, 0.987),
            "fast_fit_seconds": figure(5, 6),
            "fast_peak_mib": figure(700, 800),
        },
    }
}


def test_rows_are_sorted_by_seconds_of_fitting() -> None:
    titles = [(row.title, row.is_recipe) for row in rows(TOLD)]
    assert titles == [("`fast`", True), ("`notebook`", True), ("the notebook as a plain Keras script", False)]


def test_the_table_has_mean_spread_and_number() -> None:
    lines = table(TOLD).splitlines()
    assert lines[2] == "| `fast` | 98.65 ± 0.10 % | 98.60 to 98.70 | 2 | 6 (5 to 6) | 800 MiB |"
    assert lines[4].startswith(
        "| the notebook as a plain Keras script | 98.50 % | 98.50 to 98.50 | 1 | 90 (90 to 90) |"
    )


def test_the_picture_names_every_row(tmp_path: Path) -> None:
    draw(TOLD, tmp_path / "accuracy.svg")
    text = (tmp_path / "accuracy.svg").read_text(encoding="utf-8")
    draw(TOLD, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text(encoding="utf-8") == text
    for title in ("fast", "notebook", "the notebook as a plain", "Keras script", "a machine"):
        assert f"<!-- {title} -->" in text


def test_every_name_lies_within_the_axes_and_the_title_within_the_picture() -> None:
    figure = picture(json.loads((ROOT / "docs" / "bench.json").read_text(encoding="utf-8")))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    names = [text for text in axes.texts if isinstance(text, Annotation)]
    assert len(names) > 5
    for name in names:
        box, room = name.get_window_extent(), axes.get_window_extent()
        assert room.x0 < box.x0 < box.x1 < room.x1, name.get_text()
        assert room.y0 < box.y0 < box.y1 < room.y1, name.get_text()
    title = axes.get_title(loc="left")
    (drawn,) = [text for text in axes.get_children() if isinstance(text, Text) and text.get_text() == title]
    assert drawn.get_window_extent().x1 < figure.bbox.x1


def test_names_overlap_neither_each_other_nor_points() -> None:
    figure = picture(json.loads((ROOT / "docs" / "bench.json").read_text(encoding="utf-8")))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    names = [text.get_window_extent() for text in axes.texts if isinstance(text, Annotation)]
    points = [line.get_window_extent() for line in axes.lines]
    assert [name.count_overlaps([*names, *points]) for name in names] == [1] * len(names), "each overlaps only itself"


def test_no_picture_without_figures(tmp_path: Path) -> None:
    draw({"serving": {}}, tmp_path / "accuracy.svg")
    assert not (tmp_path / "accuracy.svg").exists()


def test_the_documentation_contains_the_measured_figures() -> None:
    measured = json.loads((ROOT / "docs" / "bench.json").read_text(encoding="utf-8"))
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert table(measured) in results
    assert measured["recipes"]["machine"] in results
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    header, _, *measured = table(measured).splitlines()
    shown = list(itertools.takewhile(lambda line: line.startswith("|"), readme[readme.index(header) + 2 :]))
    assert 0 < len(shown) <= 5
    assert set(shown) <= set(measured)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("mlp", 2 * (2 * 784 * 512 + 3 * (512 * 512 + 512 * 10))),
        ("cnn", 2 * (2 * 28 * 28 * 9 * 32 + 3 * (14 * 14 * 9 * 32 * 32 + 7 * 7 * 32 * 10))),
    ],
)
def test_operations_of_an_update(tmp_path: Path, model: str, expected: int) -> None:
    assert operations(configured(tmp_path, model=model)) == expected
