from urllib.parse import unquote

import pytest

from pipeline.core.errors import PipelineError, without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:s3cret@host:5000/x", "http://***@host:5000/x"),
        ("postgresql+psycopg2://me:s3c%40ret@host/db fails", "postgresql+psycopg2://***@host/db fails"),
        ("https://s3cret@github.com/a/b.git", "https://***@github.com/a/b.git"),
        ("mysql://host/db?user=me&password=s3cret&ssl=1", "mysql://host/db?user=me&password=***&ssl=1"),
        ("https://host/x?X-Amz-Signature=s3cret", "https://host/x?X-Amz-Signature=***"),
        ("a 'http://me:s3cret@one' and http://you:s3cret@two", "a 'http://***@one' and http://***@two"),
        ("http://host/a@b", "http://host/a@b"),
        ("mysql://h/db?user=u&pass=s3cret&auth=s3cret", "mysql://h/db?user=u&pass=***&auth=***"),
        ("postgresql://me:s3/c?r#e@t@host/db", "postgresql://***@host/db"),
        ("sqlite:////home/me/mlflow.db", "sqlite:////home/me/mlflow.db"),
        ("write to me@host", "write to me@host"),
    ],
)
def test_passwords_in_urls_are_masked(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
    assert str(PipelineError(text)) == shown


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://u:it's-s3cret@h/db",
        "postgresql://u:it%27s-s3cret@h/db",
        "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3Ds3cret",
        "HTTPS://bob:s3cret@host/m",
    ],
)
@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_URI", "DATASET_MIRROR"])
def test_secrets_from_the_environment_are_masked(monkeypatch: pytest.MonkeyPatch, address: str, variable: str) -> None:
    monkeypatch.setenv(variable, address)
    for variant in (address, unquote(address), address.replace("//", "/")):
        assert "s3cret" not in without_secrets(f"cannot reach {variant}: no such host")
