"""Optuna's side of a sweep: its database, and which trials count."""

from pathlib import Path

import optuna
import pytest
from optuna.study import Study
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from pipeline.core.errors import PipelineError
from pipeline.sweep.space import Sweep
from pipeline.sweep.study import (
    REASON,
    SURPLUS,
    agree,
    best,
    counted,
    database_errors,
    is_surplus,
    left_to_start,
    lost,
    open_study,
    retry,
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


@pytest.mark.parametrize("name", ["a%20b", "a?b", "{x}", "a#b ü", "100%", "a'b", "%(x)s"])
def test_the_study_is_in_its_folder_whatever_its_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    open_study("s", SWEEP, tmp_path / name).ask()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert [path.name for path in (tmp_path / name).iterdir()] == ["study.db"]
    assert len(open_study("s", SWEEP, tmp_path / name).trials) == 1


def test_an_empty_variable_is_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEP_STORAGE", "")
    assert started_with("s", tmp_path / "new") is None
    open_study("s", SWEEP, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["study.db"]


@pytest.mark.parametrize(
    "address",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "nonsense",
        "postgresql+psycopg2://me:se{cret}pw@127.0.0.1:1/x",
        "mysql:///x",
        "postgresql+psycopg2://me:s@cret:cretport@host/db",
        "sqlite:///file:foo?mode=memory&uri=true",
    ],
)
def test_a_database_that_cannot_be_used(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEP_STORAGE", address)
    with pytest.raises(PipelineError, match=r"the sweep's database .* cannot be used") as error:
        open_study("s", SWEEP, tmp_path)
    assert "cret" not in str(error.value)


def test_the_database_of_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    address = f"sqlite:///{tmp_path}/mlflow.db"
    MlflowClient(address).search_experiments()
    monkeypatch.setenv("SWEEP_STORAGE", address)
    with pytest.raises(PipelineError, match="cannot be used"):
        open_study("s", SWEEP, tmp_path)


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


def test_errors_of_other_databases_are_not_blamed_on_the_study() -> None:
    with pytest.raises(PipelineError, match=r"^the MLflow store fails$"), database_errors():
        fail(PipelineError("the MLflow store fails"))
    with pytest.raises(PipelineError, match=r"the sweep's database in \.sweeps fails"), database_errors():
        fail(AssertionError("Should not reach."))
    with pytest.raises(KeyError), database_errors():
        raise KeyError("a bug")


def fail(error: Exception) -> None:
    """Raise an error that follows from one of a database."""
    try:
        raise OperationalError("SELECT", {}, Exception("locked"))
    except OperationalError:
        raise error from None


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


def test_the_front_starts_with_the_best_by_the_first_objective(tmp_path: Path) -> None:
    sweep = Sweep.model_validate(FILE | {"objectives": ["val_accuracy", "parameters"]})
    study = open_study("s", sweep, tmp_path)
    for number, values in enumerate([(0.3, 10.0), (0.5, 20.0), (0.9, 30.0), (0.8, 40.0), (0.9, 30.0)]):
        trial = study.ask()
        trial.set_user_attr("digest", str(values))
        if number == 4:
            trial.set_user_attr("same_as", 2)
        study.tell(trial, values)
    assert [trial.number for trial in best(study, sweep)] == [2, 1, 0]
