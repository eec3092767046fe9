"""The files of a logged model: fetched, and known by a digest that nobody can change without its being seen."""

import hashlib
import shutil
from pathlib import Path

import mlflow.artifacts

from pipeline.files import sha256

DIGEST = "served.sha256"  # the tag of a registered version that has the digest
SIGNED = ("MLmodel", "data", "code")  # what decides an answer; cards and examples lie beside it


def download(source: str, folder: str) -> Path:
    """The files of a model in the current store, below `folder`.

    Without what Python compiled of its code where it was loaded before: nothing says what that holds.
    """
    files = Path(mlflow.artifacts.download_artifacts(source, dst_path=folder))
    for cache in [*files.rglob("__pycache__")]:
        shutil.rmtree(cache)
    return files


def digest(folder: Path) -> str:
    """The SHA-256 over all files of a downloaded model that decide an answer, their names included."""
    files = (file for name in SIGNED for file in sorted([folder / name, *(folder / name).rglob("*")]))
    listing = "".join(f"{sha256(file)}  {file.relative_to(folder).as_posix()}\n" for file in files if file.is_file())
    return hashlib.sha256(listing.encode()).hexdigest()
