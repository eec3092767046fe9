"""Saving a network so that the same weights give the same bytes."""

import re
import zipfile
from pathlib import Path

import keras

from pipeline.files import replacing

EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date that a zip archive can hold


def save_network(path: Path, network: keras.Model) -> None:
    """Write a `.keras` archive without what differs from one saving to the next: dates, and addresses in memory.

    DVC then sees that a training with the same outcome changed nothing.
    """
    with replacing(path) as temporary:
        dated = temporary.with_name("dated.keras")
        network.save(dated)
        with zipfile.ZipFile(dated) as source, zipfile.ZipFile(temporary, "w") as target:
            for name in sorted(source.namelist()):
                content = source.read(name)
                if name.endswith(".json"):
                    content = normalise(content.decode()).encode()
                target.writestr(zipfile.ZipInfo(name, EPOCH), content)


def normalise(text: str) -> str:
    """Keras's JSON with a fixed date, and with shared objects numbered in order instead of by their address."""
    text = re.sub(r'("date_saved": )"[^"]*"', r'\1"1980-01-01@00:00:00"', text)
    numbers: dict[str, int] = {}
    return re.sub(
        r'("shared_object_id": )(\d+)', lambda found: f"{found[1]}{numbers.setdefault(found[2], len(numbers))}", text
    )
