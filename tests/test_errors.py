import pytest

from pipeline.errors import PipelineError, without_secrets


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
        ("postgresql://me:s3/c?r#e@t@host/db", "postgresql://***@host/db"),
        ("sqlite:////home/me/mlflow.db", "sqlite:////home/me/mlflow.db"),
        ("write to me@host", "write to me@host"),
    ],
)
def test_addresses_are_shown_without_passwords(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
    assert str(PipelineError(text)) == shown
