"""Reproducible archives of networks: the same weights give the same bytes."""

import re
import zipfile
from pathlib import Path

import keras

from pipeline.core.files import replacing, zip_entry


def save_network(path: Path, network: keras.Model) -> None:
    """Write a `.keras` archive without dates and memory addresses, which differ each time Keras saves a network.

    DVC then detects no change after a training run with the same result. Custom initializers, regularizers and
    constraints are left out: inference does not need them, and Keras could not load them.
    """
    for layer in network._flatten_layers():
        forget_foreign(layer)
    with replacing(path) as temporary:
        dated = temporary.with_name("dated.keras")
        network.save(dated)
        with zipfile.ZipFile(dated) as source, zipfile.ZipFile(temporary, "w") as target:
            for name in sorted(source.namelist()):
                content = source.read(name)
                if name.endswith(".json"):
                    content = normalize(content.decode()).encode()
                target.writestr(zip_entry(name), content)


def forget_foreign(layer: keras.layers.Layer) -> None:
    """Remove custom initializers, regularizers and constraints, which only training needs, from a trained layer."""
    blanks = {
        keras.initializers.Initializer: keras.initializers.Zeros(),
        keras.regularizers.Regularizer: None,
        keras.constraints.Constraint: None,
    }
    for name, part in list(vars(layer).items()):
        for kind, blank in blanks.items():
            if isinstance(part, kind) and not is_keras(part):
                setattr(layer, name, blank)


def is_keras(part: object) -> bool:
    """Whether this is a built-in Keras object. Only those can be loaded from a saved network."""
    return type(part).__module__.partition(".")[0] == "keras"


def normalize(text: str) -> str:
    """Fix the date in Keras's JSON, and number shared objects in order instead of by their memory address."""
    text = re.sub(r'("date_saved": )"[^"]*"', r'\1"1980-01-01@00:00:00"', text)
    numbers: dict[str, int] = {}
    return re.sub(
        r'("shared_object_id": )(\d+)', lambda found: f"{found[1]}{numbers.setdefault(found[2], len(numbers))}", text
    )
