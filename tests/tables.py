"""MLflow's tables, copied from a database that it made before: making them takes forty migrations, and two seconds."""

import sqlite3
from pathlib import Path

import mlflow.store.db.utils
import sqlalchemy
from filelock import FileLock

make_tables = mlflow.store.db.utils._initialize_tables


def copy_tables(folder: Path) -> None:
    """Have MLflow fill this process's new SQLite databases from one in `folder`, which the first to need it makes."""
    tables = folder / "tables.db"

    def fill(engine: sqlalchemy.Engine) -> None:
        if engine.dialect.name != "sqlite":
            make_tables(engine)
            return
        with FileLock(folder / "tables.lock"):
            if not tables.exists():
                make_tables(sqlalchemy.create_engine(f"sqlite:///{folder}/new.db"))
                (folder / "new.db").rename(tables)
        connection = engine.raw_connection()
        try:
            sqlite3.connect(tables).backup(connection.driver_connection)
        finally:
            connection.close()

    mlflow.store.db.utils._initialize_tables = fill
