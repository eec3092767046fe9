"""Charts of sweeps with settings of every type."""

import re
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.study import Study
from PIL import Image

from pipeline.sweep.charts import save_charts
from pipeline.sweep.space import Sweep, suggest
from pipeline.sweep.summary import Table

SPACE: dict[str, Any] = {
    "a": {"low": 0.001, "high": 1.0, "log": True},
    "b": {"choices": [1, 2, 3]},
    "c": {"choices": [[16, 32], [8], None, True, "text", 0.5]},
    "d": {"low": 1, "high": 9, "step": 2, "when": {"b": [2, 3]}},
}
PER_OBJECTIVE = ["history", "slice", "parallel_coordinates", "importances"]


def study_of(sweep: Sweep, values: list[tuple[float, ...] | None]) -> Study:
    """A study whose trials have these values, None for a pruned one."""
    study = optuna.create_study(directions=sweep.directions, sampler=optuna.samplers.RandomSampler(seed=1))
    for number, each in enumerate(values):
        trial = study.ask()
        suggest(trial, sweep)
        if len(sweep.objectives) == 1:
            trial.report(0.1 * number, 1)
        study.tell(trial, each, None if each else optuna.trial.TrialState.PRUNED)
    return study


def sweep_of(*objectives: str) -> Sweep:
    """A sweep with these objectives."""
    return Sweep.model_validate({"objectives": [*objectives], "trials": 9, "space": SPACE})


def draw(sweep: Sweep, values: list[tuple[float, ...] | None], folder: Path) -> tuple[str, list[str]]:
    """The page, and the names of the charts."""
    tables = [Table("best", ["trial", "settings"], [["1", "<b>"]])]
    page, *pictures = save_charts(study_of(sweep, values), sweep, folder, "Sweep s", tables)
    for path in pictures:
        with Image.open(path) as picture:
            picture.load()
            assert min(picture.size) > 300
    return page.read_text(encoding="utf-8"), [path.stem for path in pictures]


@pytest.mark.parametrize(
    "values",
    [
        [(0.5,)],
        [(0.5,), None],
        [(0.5,), (0.5,)],
        [(0.5,)] * 12,
        [(0.0,), (1.0,), (0.3,), None, (0.4,), (0.7,), (0.2,), (0.6,), (0.1,), None, (0.9,)],
    ],
)
def test_every_search_has_charts(values: list[tuple[float, ...] | None], tmp_path: Path) -> None:
    page, names = draw(sweep_of("val_accuracy"), values, tmp_path)
    enough = sum(value is not None for value in values) >= 5
    assert names == [*PER_OBJECTIVE[: 3 + enough], "epochs"]
    assert "&lt;b&gt;" in page
    assert not re.search(r'<(script|link|img)[^>]* (src|href)="http', page), "it needs no network"
    assert page.count('class="plotly-graph-div"') == len(names)


def test_several_objectives_have_a_pareto_front(tmp_path: Path) -> None:
    values: list[tuple[float, ...] | None] = [(0.1 * n, 1.0 / (n + 1)) for n in range(9)]
    _, names = draw(sweep_of("val_accuracy", "parameters"), values, tmp_path)
    each = [f"{name}_{objective}" for objective in ("val_accuracy", "parameters") for name in PER_OBJECTIVE]
    assert names == ["pareto", *each]


def test_of_four_objectives_there_is_no_picture_of_the_front(tmp_path: Path) -> None:
    values: list[tuple[float, ...] | None] = [(0.1 * n, 1.0, 2.0, 3.0) for n in range(3)]
    _, names = draw(sweep_of("val_accuracy", "val_loss", "parameters", "fit_seconds"), values, tmp_path)
    assert len(names) == 12
