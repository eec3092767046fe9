import contextlib
import errno
import json
import os
import stat
from pathlib import Path
from unittest import mock

import pytest

from pipeline.core.files import UNFINISHED, replacing, temporary_folder, write_json


def test_a_list_of_numbers_is_one_line_and_strings_are_unchanged(tmp_path: Path) -> None:
    value = {"recall": [0.5, 1.0], "patch": "-a[ 1,  2 ]\n+a[\n  3 ]\n", "empty": [], "names": ["a", "b"]}
    write_json(tmp_path / "value.json", value)
    text = (tmp_path / "value.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert '"recall": [0.5, 1.0],\n' in text


def test_replacing_creates_a_new_file_and_open_readers_keep_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old", encoding="utf-8")
    with path.open(encoding="utf-8") as reader:  # opened before, read after
        before = os.fstat(reader.fileno()).st_ino
        with replacing(path) as temporary:
            temporary.write_text("new", encoding="utf-8")
            assert path.read_text(encoding="utf-8") == "old"
        assert reader.read() == "old"
    assert (path.read_text(encoding="utf-8"), path.stat().st_ino == before) == ("new", False)
    assert [*tmp_path.iterdir()] == [path]


def test_a_file_is_flushed_to_disk_before_it_replaces_another(tmp_path: Path) -> None:
    path, done = tmp_path / "a", []
    real_sync, real_replace = os.fsync, Path.replace

    def sync(descriptor: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        real_sync(descriptor)

    def replace(old: Path, new: Path) -> Path:
        done.append("replaced")
        return real_replace(old, new)

    with mock.patch("os.fsync", sync), mock.patch.object(Path, "replace", replace), replacing(path) as temporary:
        temporary.write_text("new", encoding="utf-8")
    assert done == ["file", "replaced", "folder"]


@pytest.mark.parametrize(("error", "fatal"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_a_drive_without_fsync_is_not_an_error(tmp_path: Path, error: int, fatal: bool) -> None:
    failing = mock.patch("os.fsync", side_effect=OSError(error, "x"))
    with failing, contextlib.suppress(OSError), replacing(tmp_path / "a") as temporary:
        temporary.write_text("new", encoding="utf-8")
    assert (tmp_path / "a").exists() != fatal


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    left = tmp_path / f"{UNFINISHED}killed"
    left.mkdir()
    (left / "a").write_text("half", encoding="utf-8")
    with temporary_folder(tmp_path) as living:
        write_json(tmp_path / "value.json", 1)
        assert {path.name for path in tmp_path.iterdir()} == {living.name, "value.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["value.json"]


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match="it is not a file"), replacing(path):
            pass
    assert (tmp_path / "pipe").is_fifo()
