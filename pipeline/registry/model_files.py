"""Download the files of a logged model, and compute the digest that reveals a change in them."""

import hashlib
import shutil
from pathlib import Path

import mlflow.artifacts

from pipeline.core.files import sha256

SERVED_DIGEST = "served.sha256"  # tag of a registered version: the digest of its files
SIGNED = ("MLmodel", "data", "code")  # the files that determine predictions; model cards and examples do not


def download(source: str, folder: str) -> Path:
    """Download a model's files from the current store to a place below `folder`.

    Removes the bytecode that Python cached when the model was loaded before: the registered digest does not cover it.
    """
    files = Path(mlflow.artifacts.download_artifacts(source, dst_path=folder))
    for cache in [*files.rglob("__pycache__")]:
        shutil.rmtree(cache)
    return files


def digest(folder: Path) -> str:
    """The SHA-256 over the names and contents of a downloaded model's files that determine predictions."""
    files = (file for name in SIGNED for file in sorted([folder / name, *(folder / name).rglob("*")]))
    listing = "".join(f"{sha256(file)}  {file.relative_to(folder).as_posix()}\n" for file in files if file.is_file())
    return hashlib.sha256(listing.encode()).hexdigest()
