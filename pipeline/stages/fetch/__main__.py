"""Fetch the dataset's four files to data/raw, and check each against its SHA-256.

Sources in this order: DATASET_MIRROR (a folder or a URL), ../shared/NAME beside the project, the public mirrors.
"""

import os

from pipeline.core import paths
from pipeline.core.config import PackagedDataset
from pipeline.core.errors import without_secrets
from pipeline.core.files import remove_unfinished, replacing
from pipeline.core.process.stage import run_stage
from pipeline.core.sources import places
from pipeline.core.validation import load_config
from pipeline.stages.fetch.packaged import packaged_files
from pipeline.stages.fetch.sources import fetch_file


def run() -> None:
    """Fetch the dataset's files to data/raw."""
    dataset = load_config(stage="fetch").dataset
    remove_unfinished(paths.RAW)  # an intact file is not written again
    if isinstance(dataset, PackagedDataset):
        for role, content in packaged_files(dataset).items():
            with replacing(paths.RAW_FILES[role]) as temporary:
                temporary.write_bytes(content)
        print(f"fetched {dataset.name} from the scikit-learn package")
        return
    sources = places(dataset, paths.project_root(), os.environ.get("DATASET_MIRROR"))
    for role, destination in paths.RAW_FILES.items():
        file = getattr(dataset.files, role)
        print(without_secrets(f"fetched {file.name}: {fetch_file(file, destination, sources)}"))


if __name__ == "__main__":
    run_stage("fetch", __doc__, run)
