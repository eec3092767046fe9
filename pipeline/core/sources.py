"""Where the files of a dataset can come from."""

import re
from pathlib import Path

from pipeline.core.config import IdxDataset

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def places(dataset: IdxDataset, root: Path, mirror: str | None) -> list[str]:
    """Folders and URLs to try, in order: DATASET_MIRROR, ../shared/NAME beside the project, the public mirrors."""
    beside = root.parent / "shared" / dataset.name
    local = [str(beside)] if beside.is_dir() else []
    if mirror and not is_address(mirror):
        mirror = str(root / mirror)  # not relative to the temporary folder that DVC may run this in
    return [*([mirror] if mirror else []), *local, *dataset.mirrors]


def is_address(source: str) -> bool:
    """Whether a source is a URL, not a folder."""
    return ADDRESS.match(source) is not None
