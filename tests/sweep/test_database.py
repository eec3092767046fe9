"""The database of a sweep: where it is, and what is said if it fails."""

from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from pipeline.core.errors import PipelineError
from pipeline.sweep.database import database_errors
from pipeline.sweep.study import open_study, started_with
from tests.sweep.test_study import SWEEP

pytestmark = pytest.mark.filterwarnings("ignore")  # Optuna's, about what is experimental, and about heartbeats


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
