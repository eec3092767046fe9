import contextlib
import hashlib
from pathlib import Path

import numpy as np

from pipeline.core.dataset import Split, load_split, save_split
from pipeline.core.errors import PipelineError


def test_a_split_round_trips_and_has_the_same_bytes_everywhere(tmp_path: Path) -> None:
    """The MD5, which dvc.lock records, does not depend on the version of Python that wrote the file."""
    split = Split(np.arange(48, dtype=np.uint8).reshape(3, 4, 4), np.array([3, 1, 2], np.uint8))
    save_split(tmp_path / "a.npz", split)
    whole = (tmp_path / "a.npz").read_bytes()
    for place in range(0, len(whole), 5):
        (tmp_path / "b.npz").write_bytes(whole[:place] + bytes([whole[place] ^ 0x5B]) + whole[place + 1 :])
        with contextlib.suppress(PipelineError):
            load_split(tmp_path / "b.npz")
    for mine, theirs in zip(load_split(tmp_path / "a.npz"), split, strict=True):
        np.testing.assert_array_equal(mine, theirs)
        assert mine.dtype == np.uint8
    content = (tmp_path / "a.npz").read_bytes()
    assert hashlib.md5(content, usedforsecurity=False).hexdigest() == "55a0f9587488f7101b00fb1c8596bf35"
