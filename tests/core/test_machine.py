"""The versions that are installed and those that are pinned."""

from pathlib import Path

import pytest

from pipeline.core import machine
from pipeline.core.errors import PipelineError
from pipeline.core.machine import check_versions


@pytest.mark.parametrize(("installed", "same"), [("2.13.0", True), ("2.13.0+cpu", True), ("2.13.1", False)])
def test_a_version_with_a_local_label_is_the_pinned_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: str, same: bool
) -> None:
    (tmp_path / "requirements-torch.txt").write_text("torch==2.13.0 \\\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    monkeypatch.setenv("DVC_STAGE", "train")
    monkeypatch.setattr(machine, "find_version", lambda _: installed)
    if same:
        check_versions("train")
    else:
        with pytest.raises(PipelineError, match=r"torch 2\.13\.1 is installed, but requirements-torch\.txt pins"):
            check_versions("train")
