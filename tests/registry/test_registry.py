"""Move aliases in a real registry, including concurrent moves."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.core.errors import PipelineError
from pipeline.registry.model_files import SERVED_DIGEST, digest
from pipeline.registry.registry import Aliases, Registry, open_registry
from pipeline.tracking.store import Store, open_store
from pipeline.tracking.tags import DVC_HASH


class RacingClient(MlflowClient):  # type: ignore[misc]
    """A client that competes with another machine, which moves aliases right after this client writes one."""

    def __init__(self, uri: str, alias: str, moves: dict[str, str]) -> None:
        super().__init__(uri)
        self.alias, self.moves = alias, moves

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        super().set_registered_model_alias(name, alias, version)
        if alias == self.alias:
            for other, number in self.moves.items():
                super().set_registered_model_alias(name, other, number)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path)


def with_versions(store: Store, count: int) -> Registry:
    """A registered model with this number of versions, none of which is the champion."""
    registry = Registry(store, "mnist")
    registry.create("about")
    for _ in range(count):
        registry.client.create_model_version("mnist", "file:///nowhere")
    return registry


def aliases(registry: Registry) -> dict[str, int]:
    return {name: int(number) for name, number in registry.client.get_registered_model("mnist").aliases.items()}


def test_champion_and_previous_move_together(store: Store) -> None:
    registry = Registry(store, "mnist")
    assert registry.aliases() is None
    registry = with_versions(store, 3)
    registry.create("it is there already")
    assert registry.aliases() == Aliases(None, None)
    for number, expected in (("1", Aliases("1", None)), ("3", Aliases("3", "1")), ("2", Aliases("2", "3"))):
        now = registry.aliases()
        assert now is not None
        assert registry.move(now, number)
        assert registry.aliases() == expected


class KilledClient(MlflowClient):  # type: ignore[misc]
    """A client whose process is killed before it makes another version the champion."""

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        if alias == "champion":
            raise KeyboardInterrupt
        super().set_registered_model_alias(name, alias, version)


def test_an_interrupted_move_has_no_effect(store: Store) -> None:
    registry = with_versions(store, 3)
    for number in ("1", "2"):
        now = registry.aliases()
        assert now is not None
        registry.move(now, number)
    registry.client = KilledClient(store.uri)
    with pytest.raises(KeyboardInterrupt):
        registry.move(Aliases("2", "1"), "3")
    assert aliases(registry) == {"champion": 2, "previous": 2}
    assert registry.aliases() == Aliases("2", "1")


def test_a_later_concurrent_champion_wins(store: Store) -> None:
    registry = with_versions(store, 3)
    assert registry.move(Aliases(None, None), "1")
    registry.client = RacingClient(store.uri, "champion", {"previous": "2", "champion": "3"})
    assert not registry.move(Aliases("1", None), "2")
    assert aliases(registry) == {"champion": 3, "previous": 2}


def test_the_later_champion_is_not_previous_as_well(store: Store) -> None:
    registry = with_versions(store, 3)
    assert registry.move(Aliases(None, None), "1")
    registry.client = RacingClient(store.uri, "champion", {"previous": "2"})  # its own champion is not written yet
    assert registry.move(Aliases("1", None), "2")
    assert aliases(registry) == {"champion": 2, "previous": 1}


def test_an_mlflow_error_becomes_one_line(store: Store, tmp_path: Path) -> None:
    with (
        pytest.raises(PipelineError, match=r"the MLflow store sqlite:.*mlflow\.db failed: Model Version"),
        open_registry(store, "mnist", tmp_path) as registry,
    ):
        registry.version("1")


class Forbidding(BaseHTTPRequestHandler):
    """An artifact server that answers every request with 403."""

    def do_GET(self) -> None:
        self.send_error(403)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def forbidding() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Forbidding) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_temporarily_unavailable_files_are_not_considered_lost(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forbidding: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    registry = with_versions(store, 0)
    for number, address in enumerate(("http://127.0.0.1:9", forbidding)):
        source, tags = f"{address}/api/2.0/mlflow-artifacts/artifacts/served", {DVC_HASH: f"md5 {number}"}
        registry.client.create_model_version("mnist", source, tags=tags)
        with (
            pytest.raises(PipelineError, match=r"mlflow\.db failed: .*(Max retries exceeded|403)"),
            open_registry(store, "mnist", tmp_path) as opened,
        ):
            opened.find(f"md5 {number}")


def test_versions_with_missing_or_changed_files_are_not_found(store: Store, tmp_path: Path) -> None:
    registry, folder = with_versions(store, 0), tmp_path / "files"
    folder.mkdir()
    (folder / "MLmodel").write_text("a", encoding="utf-8")
    tags = {DVC_HASH: "md5", SERVED_DIGEST: digest(folder)}
    deleted = registry.client.create_logged_model("0").model_id
    for source in (folder.as_uri(), "file:///nowhere", f"models:/{deleted}"):
        registry.client.create_model_version("mnist", source, tags=tags)
    registry.client.delete_logged_model(deleted)
    found = registry.find("md5")
    assert found is not None
    assert int(found.version) == 1
    (folder / "MLmodel").write_text("b", encoding="utf-8")
    assert registry.find("md5") is None
