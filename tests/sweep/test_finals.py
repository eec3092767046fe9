"""Finals: which trainings they consist of, and how their results are compared."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from pipeline.core.dataset import Split, save_split
from pipeline.sweep.finals import CURRENT, open_finals, results
from pipeline.sweep.search import FINALIST, SEED, Search, pair_of
from pipeline.sweep.space import Sweep
from pipeline.sweep.study import open_study
from pipeline.sweep.trial import VALIDATION

pytestmark = pytest.mark.filterwarnings("ignore")  # Optuna's, about what is experimental, and about heartbeats
IMAGES = 1000


def search_of(folder: Path, seed: int = 1, **changes: Any) -> Search:
    """A search with three complete trials, whose configurations depend only on `x`; the current one has x = 0."""
    values: dict[str, Any] = {"objectives": ["val_accuracy"], "trials": 3, "space": {"x": {"low": 0.0, "high": 1.0}}}
    sweep = Sweep.model_validate(values | changes)

    def config(chosen: dict[str, Any]) -> Any:
        content = {"x": chosen.get("x", 0.0)}
        return SimpleNamespace(seed=seed, model_dump=lambda **_: content)

    nothing: Any = None
    settings: Any = SimpleNamespace(config=config, current=config({}))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = open_study("s", sweep, folder)
    digits = Split(np.zeros((IMAGES, 2, 2), np.uint8), np.zeros(IMAGES, np.uint8))
    save_split(folder / VALIDATION, digits)
    alone, stopped = threading.Lock(), threading.Event()
    return Search(sweep, settings, study, folder, nothing, nothing, nothing, alone, stopped)


def add(search: Search, x: float, value: float) -> None:
    """Add a complete trial."""
    trial = search.study.ask()
    trial.set_user_attr("settings", {"x": x})
    trial.set_user_attr("digest", "current" if x == 0 else str(x))
    search.study.tell(trial, value)


def play(finals: Search, accuracies: dict[tuple[str, int], float | None]) -> None:
    """Complete trainings of the finals with these values; those with None fail."""
    while True:
        waiting = finals.study.get_trials(states=(TrialState.WAITING,))
        if not waiting:
            return
        trial = finals.study.ask()
        name = trial.suggest_categorical(FINALIST, [*(finals.finalists or {})])
        seed = trial.suggest_int(SEED, 0, 2**31 - 1)
        value = accuracies[name, seed]
        if value is None:
            finals.study.tell(trial, state=TrialState.FAIL)
        else:
            count = round((1 - value) * IMAGES) if finals.sweep.objectives[0] == "val_accuracy" else 10
            trial.set_user_attr("wrong", [*range(count)])
            finals.study.tell(trial, value)


@pytest.mark.parametrize("seed", [1, 99_999, 20_260_101, 2**31 - 2])
def test_every_finalist_has_the_same_seeds(seed: int, tmp_path: Path) -> None:
    search = search_of(tmp_path, seed)
    for number in range(1, 4):
        add(search, number / 10, 0.9)
    for _ in range(2):  # a second command queues nothing twice
        finals = open_finals(search)
        pairs = [pair_of(trial) for trial in finals.study.trials]
        seeds = [(seed + number) % 2**31 for number in range(1, 4)]
        assert sorted(pairs) == sorted((name, each) for name in finals.finalists or {} for each in seeds)


def test_a_finalist_without_all_seeds_is_not_compared(tmp_path: Path) -> None:
    search = search_of(tmp_path)
    add(search, 0.1, 0.95)
    add(search, 0.2, 0.94)
    finals = open_finals(search)
    play(
        finals,
        {(CURRENT, seed): 0.9 for seed in (2, 3, 4)}
        | {("trial 0", 2): 0.99, ("trial 0", 3): None, ("trial 0", 4): None}
        | {("trial 1", 2): 0.93, ("trial 1", 3): 0.95, ("trial 1", 4): 0.94},
    )
    found = results(finals)
    assert [(each.name, len(each.values)) for each in found] == [("trial 1", 3), (CURRENT, 3)]
    assert found[1].p_worse < 0.05


def test_finals_without_a_complete_finalist(tmp_path: Path) -> None:
    search = search_of(tmp_path)
    add(search, 0.1, 0.95)
    finals = open_finals(search)
    play(finals, {(name, seed): None for name in (CURRENT, "trial 0") for seed in (2, 3, 4)})
    assert results(finals) == []


def test_losses_are_compared_as_losses(tmp_path: Path) -> None:
    search = search_of(tmp_path, objectives=["val_loss"])
    add(search, 0.1, 0.1)
    finals = open_finals(search)
    values: dict[tuple[str, int], float | None] = {(CURRENT, 2): 0.5, (CURRENT, 3): 0.51, (CURRENT, 4): 0.49}
    play(finals, values | {("trial 0", 2): 0.1, ("trial 0", 3): 0.11, ("trial 0", 4): 0.09})
    first, second = results(finals)
    assert (first.name, second.name) == ("trial 0", CURRENT)
    assert second.p_worse < 1e-4
