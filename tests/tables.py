"""MLflow's tables, copied from an existing database: creating them takes forty migrations and two seconds."""

import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow.store.db.utils
import sqlalchemy
from filelock import FileLock

make_tables = mlflow.store.db.utils._initialize_tables


def copy_tables(folder: Path) -> None:
    """Make MLflow fill this process's new SQLite databases from one in `folder`, which its first user creates."""
    tables = folder / "tables.db"

    def fill(engine: sqlalchemy.Engine) -> None:
        if engine.dialect.name != "sqlite" or sqlalchemy.inspect(engine).get_table_names():
            make_tables(engine)
            return
        with FileLock(folder / "tables.lock"):
            if not tables.exists():
                new = sqlalchemy.create_engine(f"sqlite:///{folder}/new.db")
                make_tables(new)
                new.dispose()
                (folder / "new.db").rename(tables)
        with closing(sqlite3.connect(tables)) as source, closing(engine.raw_connection()) as target:
            assert isinstance(target.driver_connection, sqlite3.Connection)
            source.backup(target.driver_connection)

    mlflow.store.db.utils._initialize_tables = fill
