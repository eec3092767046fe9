"""Trials whose process has died."""

import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from pipeline.sweep import database
from pipeline.sweep.lost import LostTrials
from pipeline.sweep.study import REASON, open_study
from tests.sweep.test_study import SWEEP

pytestmark = pytest.mark.filterwarnings("ignore")  # Optuna's, about what is experimental, and about heartbeats


def test_a_trial_that_never_gave_a_sign_of_life_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process was killed before the first one. It does not matter how many others begin to watch it meanwhile."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    monkeypatch.setattr(database, "HEARTBEAT", 1)
    monkeypatch.setattr(database, "GRACE", 1)
    study = open_study("s", SWEEP, tmp_path)
    study.ask()
    end = time.monotonic() + 60
    while study.trials[0].state == TrialState.RUNNING:
        assert LostTrials(study, tmp_path / "lock").start_again()
        assert time.monotonic() < end
        time.sleep(0.1)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.WAITING]
    assert not LostTrials(study, tmp_path / "lock").start_again(), "nothing runs, and nothing is lost"


def test_a_trial_that_failed_is_not_started_again(tmp_path: Path) -> None:
    study = open_study("s", SWEEP, tmp_path)
    trial = study.ask()
    trial.set_user_attr(REASON, "it diverged")
    study.tell(trial, state=TrialState.FAIL)
    assert not LostTrials(study, tmp_path / "lock").start_again()
