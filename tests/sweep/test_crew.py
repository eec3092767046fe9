"""Workers of one command, with trials that train nothing."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from pipeline.core.errors import PipelineError
from pipeline.sweep import lost
from pipeline.sweep.crew import Crew
from pipeline.sweep.search import Search
from pipeline.sweep.shares import Share
from pipeline.sweep.space import Sweep
from pipeline.sweep.study import counted, open_study
from pipeline.sweep.trial import Interrupted

pytestmark = pytest.mark.filterwarnings("ignore")  # Optuna's, about what is experimental
ALL = Share(frozenset(), None, None)
Objective = Callable[[Search, optuna.Trial], float]


class Simple(Search):
    """A search with another objective."""

    objective: Objective

    def trial(self, trial: optuna.Trial, share: Share) -> tuple[float, ...]:
        return (type(self).objective(self, trial),)


def search_of(folder: Path, objective: Objective, trials: int = 3) -> Search:
    """A search with this objective."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    file = {"objectives": ["val_accuracy"], "trials": trials, "space": {"x": {"low": 0.0, "high": 1.0}}}
    sweep, nothing = Sweep.model_validate(file), None
    held: Any = nothing
    kind = type("Own", (Simple,), {"objective": staticmethod(objective)})
    alone, stopped = threading.Lock(), threading.Event()
    found: Search = kind(sweep, held, open_study("s", sweep, folder), folder, held, held, held, alone, stopped)
    return found


@pytest.mark.parametrize("moment", ["report", "end"])
def test_a_trial_that_others_took_for_dead_is_started_again(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process was suspended, or its database did not answer."""
    monkeypatch.setattr(lost, "GRACE", 0)
    numbers: list[int] = []

    def objective(search: Search, trial: optuna.Trial) -> float:
        numbers.append(trial.number)
        if len(numbers) == 2:
            search.study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            if moment == "report":
                trial.report(0.5, 1)
        return 0.5

    search = search_of(tmp_path, objective)
    Crew(search, None, lambda _: None).run([ALL])
    assert numbers == [0, 1, 2, 3]
    assert [trial.state for trial in counted(search.study.trials)] == [TrialState.COMPLETE] * 3


def test_an_error_of_one_worker_stops_the_others_at_once(tmp_path: Path) -> None:
    def objective(search: Search, trial: optuna.Trial) -> float:
        if trial.number == 1:
            raise Interrupted("MLflow does not answer")
        if not search.stopped.wait(20):
            return 0.5
        raise Interrupted("interrupted")

    start = time.monotonic()
    with pytest.raises(PipelineError, match="MLflow does not answer"):
        Crew(search_of(tmp_path, objective), None, lambda _: None).run([ALL, ALL])
    assert time.monotonic() - start < 15, "the first worker would wait for 20 s"


def test_when_the_time_is_over_no_trial_starts_but_all_end(tmp_path: Path) -> None:
    """So that all commands see the same trials when they choose the finalists."""

    def objective(search: Search, trial: optuna.Trial) -> float:
        time.sleep(2.0 * (trial.number == 0))
        return 0.5

    search = search_of(tmp_path, objective, trials=1000)
    other = threading.Thread(target=Crew(search, time.monotonic() + 0.1, lambda _: None).run, args=([ALL],))
    other.start()
    time.sleep(1)
    Crew(search_of(tmp_path, objective, trials=1000), time.monotonic(), lambda _: None).run([ALL])
    assert [trial.state for trial in search.study.trials] == [TrialState.COMPLETE]
    other.join()
