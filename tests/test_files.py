import json
import os
from pathlib import Path

from pipeline.files import replacing, write_json


def test_a_list_of_numbers_is_a_line_and_texts_stay_as_they_are(tmp_path: Path) -> None:
    value = {"recall": [0.5, 1.0], "patch": "-a[ 1,  2 ]\n+a[\n  3 ]\n", "empty": [], "names": ["a", "b"]}
    write_json(tmp_path / "value.json", value)
    text = (tmp_path / "value.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert '"recall": [0.5, 1.0],\n' in text


def test_a_file_that_is_replaced_is_another_file_and_the_old_one_stays_whole(tmp_path: Path) -> None:
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
