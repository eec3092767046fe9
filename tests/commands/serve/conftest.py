"""A registered model of an untrained network."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pytest
from mlflow import MlflowClient
from numpy.typing import NDArray

from pipeline.registry.conversion import convert
from pipeline.registry.model_files import SERVED_DIGEST
from pipeline.registry.servable import log_servable
from pipeline.stages.train.archive import save_network
from pipeline.stages.train.network import build_network
from pipeline.tracking.store import Store, experiment_id, open_store
from tests.conftest import ROOT, configured

SHAPE = (28, 28)


class Registered(NamedTuple):
    """A store with one registered model, some images, and the probabilities that Keras computes for them."""

    store: Store
    name: str
    images: NDArray[np.uint8]
    probabilities: NDArray[np.float32]

    @property
    def root(self) -> Path:
        """The project folder."""
        return self.store.artifacts.parent

    @property
    def files(self) -> Path:
        """The folder with the files of the model version."""
        version = MlflowClient(self.store.uri).get_model_version_by_alias(self.name, "champion")
        return next(self.store.artifacts.glob(f"models/{version.source.rpartition('/')[2]}/artifacts"))


@pytest.fixture(scope="session")
def registered_once(tmp_path_factory: pytest.TempPathFactory) -> Registered:
    """An untrained network of the default recipe, registered as `numbers`."""
    tmp_path = tmp_path_factory.mktemp("registered")
    keras.utils.set_random_seed(1)
    network, file = build_network(configured(tmp_path).model, SHAPE, 10), tmp_path / "model.keras"
    save_network(file, network)
    (tmp_path / "pipeline").symlink_to(ROOT / "pipeline")
    store = open_store(tmp_path)
    client = MlflowClient(store.uri)
    run = client.create_run(experiment_id(store, "numbers"))
    images = np.random.default_rng(1).integers(0, 256, (5, *SHAPE), dtype=np.uint8)
    servable = log_servable(client, run.info.run_id, convert(file, tmp_path, images), {})
    client.create_registered_model("numbers")
    tags = {SERVED_DIGEST: servable.digest, "test.accuracy": "0.5"}
    version = client.create_model_version("numbers", servable.source, run.info.run_id, tags, model_id=servable.model_id)
    client.set_registered_model_alias("numbers", "champion", version.version)
    return Registered(store, "numbers", images, network.predict(images, verbose=0))


@pytest.fixture
def registered(registered_once: Registered, tmp_path: Path) -> Iterator[Registered]:
    """`registered_once`, with files that a test may change: they are restored afterwards."""
    files = registered_once.files
    open_store(registered_once.root)  # MLflow's client forgets the address after every test
    shutil.copytree(files, tmp_path / "kept")
    yield registered_once
    shutil.rmtree(files, ignore_errors=True)
    shutil.copytree(tmp_path / "kept", files)
