"""MLflow's model registry: the versions of a model, and the aliases `champion` and `previous` of two of them.

An alias belongs to exactly one version, and moving it is one write. There is never more than one champion, and no
champion only before the first promotion. Moving both aliases takes more than one write: see `Registry.move`.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import requests
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, RESOURCE_DOES_NOT_EXIST, ErrorCode

from pipeline.core.errors import PipelineError, first_line
from pipeline.registry.model_files import SERVED_DIGEST, digest, download
from pipeline.tracking.store import RELATIVE, Store
from pipeline.tracking.tags import CHAMPION, DVC_HASH, PREVIOUS

BEFORE = "previous.before"  # tag of the registered model: the version that was `previous` before the latest move


class Aliases(NamedTuple):
    """The version numbers of the champion and the previous champion; None if there is none."""

    champion: str | None
    previous: str | None


class Registry:
    """One registered model in a reachable store. Any method may raise MlflowException or RequestException."""

    def __init__(self, store: Store, name: str) -> None:
        self.client = MlflowClient(store.uri)
        self.name = name

    def aliases(self) -> Aliases | None:
        """The champion and the previous champion; None if the registered model does not exist.

        After an interrupted move, these are the versions from before the move.
        """
        try:
            model = self.client.get_registered_model(self.name)
        except MlflowException as error:
            if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                return None
            raise
        champion, previous = (model.aliases.get(alias) for alias in (CHAMPION, PREVIOUS))
        if champion is not None and champion == previous:
            previous = model.tags.get(BEFORE) or None
        return Aliases(champion and str(champion), previous and str(previous))

    def move(self, now: Aliases, champion: str) -> bool:
        """Make a version the champion, and the champion of `now` the previous one. Returns whether that succeeded.

        If the process is killed between the writes, the old champion has both aliases, and `aliases` reads the former
        `previous` from a tag. On a server, where nothing prevents concurrent moves, the last one wins.
        """
        self.client.set_registered_model_tag(self.name, BEFORE, now.previous or "")
        if now.champion is not None:
            self.client.set_registered_model_alias(self.name, PREVIOUS, now.champion)
        self.client.set_registered_model_alias(self.name, CHAMPION, champion)
        after = self.client.get_registered_model(self.name).aliases
        if str(after[CHAMPION]) != champion:
            return False
        if now.champion is not None and str(after.get(PREVIOUS)) == champion:  # a concurrent move came in between
            self.client.set_registered_model_alias(self.name, PREVIOUS, now.champion)
        return True

    def leaving(self, now: Aliases, md5: str) -> Aliases:
        """The aliases to move from: a champion with this MD5 has lost its files and must not become `previous`."""
        lost = now.champion is not None and self.version(now.champion).tags.get(DVC_HASH) == md5
        return Aliases(now.previous, now.previous) if lost else now

    def find(self, md5: str) -> ModelVersion | None:
        """The newest version of the network with this MD5 whose files are unchanged since its registration."""
        query = f"name = '{self.name}' and tags.`{DVC_HASH}` = '{md5}'"
        found = sorted(self.client.search_model_versions(query), key=lambda version: int(version.version), reverse=True)
        return next((version for version in found if is_intact(version)), None)

    def version(self, number: str) -> ModelVersion:
        """A version by its number."""
        return self.client.get_model_version(self.name, number)

    def create(self, about: str) -> None:
        """Create the registered model with a description, unless it exists."""
        try:
            self.client.create_registered_model(self.name, {"dataset": self.name}, about)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise

    def add(self, source: str, model_id: str, run_id: str, tags: Mapping[str, str], description: str) -> str:
        """Register a run's logged model as a new version, with its tags in the same write, and return its number."""
        version = self.client.create_model_version(
            self.name, source, run_id, dict(tags), description=description, model_id=model_id
        )
        return str(version.version)

    def describe(self, number: str, tags: Mapping[str, str], description: str) -> None:
        """Replace the description of a version, and set its tags."""
        self.client.update_model_version(self.name, number, description)
        for key, value in tags.items():
            self.client.set_model_version_tag(self.name, number, key, value)

    def knows_run(self, run_id: str) -> bool:
        """Whether the store has a run that is not deleted."""
        try:
            return bool(self.client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                return False
            raise


def is_intact(version: ModelVersion) -> bool:
    """Whether the files of a version exist and are those that were registered.

    Raises MLflow's error if they are temporarily unavailable, because such files are not lost.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            return digest(download(version.source, folder)) == version.tags.get(SERVED_DIGEST)
        except MlflowException as error:
            if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                return False
            raise


@contextmanager
def open_registry(store: Store, name: str, root: Path) -> Iterator[Registry]:
    """Open a registered model that no other process on this machine changes inside the block.

    Raises PipelineError for any MLflow error inside the block, and if a server does not return a file.
    """
    database = Path(store.uri.removeprefix(RELATIVE)) if store.uri.startswith(RELATIVE) else root / "mlflow.db"
    try:
        with FileLock(f"{database}.promotion.lock"):
            yield Registry(store, name)
    except (MlflowException, requests.RequestException) as error:
        if "error code 403" in str(error):
            raise PipelineError(
                f"the MLflow server {store.uri} does not let this user promote models: ask its administrator for the "
                f"permission EDIT on the registered model {name!r}"
            ) from None
        raise PipelineError(f"the MLflow store {store.uri} failed: {first_line(error)}") from None
