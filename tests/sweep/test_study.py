"""Optuna's study of a sweep: which of its trials count, and with what it was started."""

import random
from pathlib import Path

import optuna
import pytest
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from pipeline.core.errors import PipelineError
from pipeline.sweep.database import retry
from pipeline.sweep.space import Sweep
from pipeline.sweep.study import (
    DIGEST,
    REASON,
    SURPLUS,
    TRAINS,
    agree,
    best,
    counted,
    equal_trial,
    is_surplus,
    left_to_start,
    lost,
    open_study,
    started_with,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # Optuna's, about what is experimental, and about heartbeats
FILE = {"objectives": ["val_accuracy"], "trials": 3, "space": {"x": {"low": 0.0, "high": 1.0}}}
SWEEP = Sweep.model_validate(FILE)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """An empty study."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return open_study("s", SWEEP, tmp_path)


def test_other_objectives_are_refused(study: Study, tmp_path: Path) -> None:
    other = Sweep.model_validate(FILE | {"objectives": ["val_loss"]})
    with pytest.raises(PipelineError, match="the study s was started with other objectives"):
        open_study("s", other, tmp_path)


def test_a_study_notes_with_what_it_was_started(study: Study, tmp_path: Path) -> None:
    assert started_with("s", tmp_path) is None
    agree(study, SWEEP, {"seed": 1}, "digest")
    agree(study, SWEEP, {"seed": 1}, "digest")
    assert started_with("s", tmp_path) == {"seed": 1}
    assert started_with("t", tmp_path) is None
    assert started_with("s", tmp_path / "new") is None
    assert not (tmp_path / "new").exists()
    with pytest.raises(PipelineError, match="conf/ or requirements"):
        agree(study, SWEEP, {"seed": 1}, "other")
    with pytest.raises(PipelineError, match="another machine started the study with another params"):
        agree(study, SWEEP, {"seed": 2}, "digest")
    with pytest.raises(PipelineError, match="another space"):
        agree(study, SWEEP.model_copy(update={"settings": {"seed": 3}}), {"seed": 1}, "digest")


def test_what_counts(study: Study) -> None:
    """Trials that were started again, and those that several machines started too many, do not."""
    first, second, third = (study.ask() for _ in range(3))
    assert left_to_start(study, SWEEP) == 0
    surplus = study.ask()
    assert [is_surplus(study, SWEEP, trial.number) for trial in (first, second, third, surplus)] == [0, 0, 0, 1]
    surplus.set_user_attr(SURPLUS, True)
    surplus.set_user_attr(REASON, "another machine")
    study.tell(surplus, state=TrialState.FAIL)
    failed = study.tell(first, state=TrialState.FAIL)
    assert [trial.number for trial in lost(study)] == [0]
    retry(study, failed)
    assert lost(study) == []
    assert left_to_start(study, SWEEP) == 1
    again = study.ask()
    assert again.number == 4
    assert not is_surplus(study, SWEEP, again.number)
    assert left_to_start(study, SWEEP) == 0
    second.set_user_attr(REASON, "it diverged")
    study.tell(second, state=TrialState.FAIL)
    assert lost(study) == []
    study.tell(third, 0.5)
    study.tell(again, 0.7)
    assert [trial.number for trial in counted(study.trials)] == [1, 2, 4]
    assert left_to_start(study, SWEEP) == 0


def test_a_lost_trial_that_two_machines_queue_again_counts_once(study: Study) -> None:
    failed = study.tell(study.ask(), state=TrialState.FAIL)
    retry(study, failed)
    retry(study, failed)
    first, second = study.ask(), study.ask()
    assert [is_surplus(study, SWEEP, trial.number) for trial in (first, second)] == [False, True]
    assert left_to_start(study, SWEEP) == 2
    assert [trial.number for trial in counted(study.trials)] == [1]
    study.tell(second, 0.5)  # its machine had not looked
    retry(study, study.tell(first, state=TrialState.FAIL))
    study.tell(study.ask(), 0.7)
    assert len(counted(study.trials)) == 1


def number_of(trial: FrozenTrial | None) -> int | None:
    """The number of a trial."""
    return None if trial is None else trial.number


def test_one_of_two_equal_trials_waits_for_the_other(study: Study) -> None:
    """And for one that does not know its configuration yet, because it may be the same."""
    first, second = study.ask(), study.ask()
    second.set_user_attr(DIGEST, "same")
    assert number_of(equal_trial(study, 1)) == 0, "it may become equal"
    first.set_user_attr(DIGEST, "other")
    assert equal_trial(study, 0) is None
    assert equal_trial(study, 1) is None
    third = study.ask()
    third.set_user_attr(DIGEST, "same")
    assert number_of(equal_trial(study, 2)) == 1
    assert equal_trial(study, 1) is None
    study.tell(second, state=TrialState.FAIL)
    assert equal_trial(study, 2) is None
    study.tell(third, 0.5)
    study.ask().set_user_attr(DIGEST, "same")
    assert number_of(equal_trial(study, 3)) == 2


def test_a_trial_that_was_queued_earlier_and_starts_later_waits(study: Study) -> None:
    study.enqueue_trial({"x": 0.5}, user_attrs={DIGEST: "same"})
    later = study.trials[0]
    study._storage.set_trial_state_values(later._trial_id, TrialState.RUNNING)  # as if it were another machine's
    other = study.ask()
    other.set_user_attr(DIGEST, "same")
    other.set_user_attr(TRAINS, 1)
    assert number_of(equal_trial(study, 0)) == 1
    other.set_user_attr(TRAINS, 7)  # of the trial as which it was started before
    assert equal_trial(study, 0) is None
    assert number_of(equal_trial(study, 1)) == 0


def test_the_front_is_that_of_optuna(tmp_path: Path) -> None:
    sweep = Sweep.model_validate(FILE | {"objectives": ["val_accuracy", "parameters", "fit_seconds"]})
    study, rng = open_study("s", sweep, tmp_path), random.Random(1)
    for number in range(40):
        trial = study.ask()
        trial.set_user_attr(DIGEST, str(number))
        study.tell(trial, [rng.randint(0, 5) for _ in range(3)])
    assert sorted(trial.number for trial in best(study, sweep)) == [trial.number for trial in study.best_trials]


def test_a_configuration_that_was_trained_twice_stays_in_the_front(tmp_path: Path) -> None:
    sweep = Sweep.model_validate(FILE | {"objectives": ["val_accuracy", "fit_seconds"]})
    study = open_study("s", sweep, tmp_path)
    for digest, values in (("same", (0.9, 10.0)), ("same", (0.9, 9.0)), ("other", (0.8, 12.0))):
        trial = study.ask()
        trial.set_user_attr(DIGEST, digest)
        study.tell(trial, values)
    assert [trial.number for trial in best(study, sweep)] == [0]


def test_the_front_starts_with_the_best_by_the_first_objective(tmp_path: Path) -> None:
    sweep = Sweep.model_validate(FILE | {"objectives": ["val_accuracy", "parameters"]})
    study = open_study("s", sweep, tmp_path)
    for number, values in enumerate([(0.3, 10.0), (0.5, 20.0), (0.9, 30.0), (0.8, 40.0), (0.9, 30.0)]):
        trial = study.ask()
        trial.set_user_attr(DIGEST, str(values))
        if number == 4:
            trial.set_user_attr("same_as", 2)
        study.tell(trial, values)
    assert [trial.number for trial in best(study, sweep)] == [2, 1, 0]
