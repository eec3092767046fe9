"""MLflow's tables, copied from an existing database: creating them takes forty migrations and two seconds."""

import sqlite3
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
                make_tables(sqlalchemy.create_engine(f"sqlite:///{folder}/new.db"))
                (folder / "new.db").rename(tables)
        connection = engine.raw_connection()
        try:
            assert isinstance(connection.driver_connection, sqlite3.Connection)
            sqlite3.connect(tables).backup(connection.driver_connection)
        finally:
            connection.close()

    mlflow.store.db.utils._initialize_tables = fill
