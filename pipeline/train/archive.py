"""Saving a network so that the same weights give the same bytes."""

import json
import zipfile
from pathlib import Path

import keras

from pipeline.files import replacing

EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date that a zip archive can hold


def save_network(path: Path, network: keras.Model) -> None:
    """Write a `.keras` archive without the date of saving, which Keras writes into its metadata and its entries.

    DVC then sees that a training with the same outcome changed nothing.
    """
    with replacing(path) as temporary:
        dated = temporary.with_name("dated.keras")
        network.save(dated)
        with zipfile.ZipFile(dated) as source, zipfile.ZipFile(temporary, "w") as target:
            for name in sorted(source.namelist()):
                content = source.read(name)
                if name == "metadata.json":
                    metadata = json.loads(content)
                    content = json.dumps(metadata | {"date_saved": "1980-01-01@00:00:00"}).encode()
                target.writestr(zipfile.ZipInfo(name, EPOCH), content)
