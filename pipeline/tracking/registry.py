"""MLflow's model registry: versions of a model, and the aliases `champion` and `previous` that point to two of them.

An alias belongs to one version by construction, and moving it is one write, so that there is never more than one
champion, and none only before the first. What is not one write is moving both: see `Registry.move`.
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

from pipeline.errors import PipelineError, first_line
from pipeline.tracking.model_files import DIGEST as SERVED
from pipeline.tracking.model_files import digest, download
from pipeline.tracking.store import RELATIVE, Store
from pipeline.tracking.tags import DVC_HASH

CHAMPION, PREVIOUS = "champion", "previous"
BEFORE = "previous.before"  # of the registered model: the version that was `previous` before the latest move


class Aliases(NamedTuple):
    """The numbers of the versions that are champion, and were before; None where there is none."""

    champion: str | None
    previous: str | None


class Registry:
    """One registered model in a store that answers; any method may raise MlflowException or RequestException."""

    def __init__(self, store: Store, name: str) -> None:
        self.client = MlflowClient(store.uri)
        self.name = name

    def aliases(self) -> Aliases | None:
        """Who is champion and who was before; None if there is no such model.

        After a move that was interrupted half-way the answer is what it was before.
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
        """Make a version the champion, and the champion of `now` the previous one. Returns whether it is afterwards.

        A kill between the writes leaves the old champion in place as both; `aliases` then finds in a tag what was
        `previous`. Where nobody could be kept from moving aliases at the same time, on a server, the last one wins.
        """
        self.client.set_registered_model_tag(self.name, BEFORE, now.previous or "")
        if now.champion is not None:
            self.client.set_registered_model_alias(self.name, PREVIOUS, now.champion)
        self.client.set_registered_model_alias(self.name, CHAMPION, champion)
        after = self.client.get_registered_model(self.name).aliases
        if str(after[CHAMPION]) != champion:
            return False
        if now.champion is not None and str(after.get(PREVIOUS)) == champion:  # somebody's move came between the two
            self.client.set_registered_model_alias(self.name, PREVIOUS, now.champion)
        return True

    def leaving(self, now: Aliases, md5: str) -> Aliases:
        """The same, but for a champion with the network of an MD5, whose files are lost: nobody goes back to that."""
        lost = now.champion is not None and self.version(now.champion).tags.get(DVC_HASH) == md5
        return Aliases(now.previous, now.previous) if lost else now

    def find(self, md5: str) -> ModelVersion | None:
        """The newest version of the network with an MD5 whose files are still those that were registered."""
        query = f"name = '{self.name}' and tags.`{DVC_HASH}` = '{md5}'"
        found = sorted(self.client.search_model_versions(query), key=lambda version: int(version.version), reverse=True)
        return next((version for version in found if is_intact(version)), None)

    def version(self, number: str) -> ModelVersion:
        """A version by its number."""
        return self.client.get_model_version(self.name, number)

    def create(self, about: str) -> None:
        """Make the registered model, with a description, where there is none yet."""
        try:
            self.client.create_registered_model(self.name, {"dataset": self.name}, about)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise

    def add(self, source: str, model_id: str, run_id: str, tags: Mapping[str, str], description: str) -> str:
        """Register a model that is logged to a run as a new version, tags and all at once, and return its number."""
        version = self.client.create_model_version(
            self.name, source, run_id, dict(tags), description=description, model_id=model_id
        )
        return str(version.version)

    def describe(self, number: str, tags: Mapping[str, str], description: str) -> None:
        """Say anew what there is to know of a version."""
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
    """Whether the files of a version are there, and those that were registered.

    Where they cannot be had at the moment the error rises: they are not lost.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            return digest(download(version.source, folder)) == version.tags.get(SERVED)
        except MlflowException as error:
            if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                return False
            raise


@contextmanager
def open_registry(store: Store, name: str, root: Path) -> Iterator[Registry]:
    """A registered model that nobody else on this machine changes while the block runs.

    Raises PipelineError for whatever MLflow raises inside, or a server that does not give a file.
    """
    database = Path(store.uri.removeprefix(RELATIVE)) if store.uri.startswith(RELATIVE) else root / "mlflow.db"
    try:
        with FileLock(f"{database}.promotion.lock"):
            yield Registry(store, name)
    except (MlflowException, requests.RequestException) as error:
        raise PipelineError(f"the MLflow store {store.uri} does not do it: {first_line(error)}") from None
