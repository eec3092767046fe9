"""Artifacts of a project that was moved or copied: MLflow keeps their absolute locations in its database."""

import sqlalchemy

LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)


def relocate(database: str, artifacts: str) -> list[str]:
    """Replace the folder of another place in a project's own SQLite database by `artifacts`, the address of its own.

    Returns the addresses that were replaced: none unless the project was moved or copied.
    """
    engine = sqlalchemy.create_engine(database)
    name = artifacts.rpartition("/")[2]
    find = sqlalchemy.text("SELECT DISTINCT artifact_location FROM experiments WHERE artifact_location LIKE :ours")
    with engine.connect() as connection:
        known = connection.execute(find, {"ours": f"file://%/{name}"}).scalars().all()
    old = [location for location in known if location != artifacts]
    if old:
        with engine.begin() as connection:
            for location in old:
                for table, column in LOCATIONS:
                    replace_prefix(connection, table, column, location, artifacts)
    engine.dispose()
    return old


def replace_prefix(connection: sqlalchemy.Connection, table: str, column: str, old: str, new: str) -> None:
    """Replace a folder at the beginning of addresses."""
    below = f"substr({column}, 1, :length) = :old AND substr({column}, :length + 1, 1) IN ('', '/')"
    update = f"UPDATE {table} SET {column} = :new || substr({column}, :length + 1) WHERE {below}"  # noqa: S608
    connection.execute(sqlalchemy.text(update), {"old": old, "new": new, "length": len(old)})
