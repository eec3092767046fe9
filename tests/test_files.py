import json
from pathlib import Path

from pipeline.files import write_json


def test_a_list_of_numbers_is_a_line_and_texts_stay_as_they_are(tmp_path: Path) -> None:
    value = {"recall": [0.5, 1.0], "patch": "-a[ 1,  2 ]\n+a[\n  3 ]\n", "empty": [], "names": ["a", "b"]}
    write_json(tmp_path / "value.json", value)
    text = (tmp_path / "value.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert '"recall": [0.5, 1.0],\n' in text
