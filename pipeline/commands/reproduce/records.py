"""Compare JSON records, such as reports/evaluation.json, field by field."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from pipeline.core.errors import shown
from pipeline.core.files import parse_json

# Sections and fields that differ between two runs of the same commit, and the reasons. docs/outputs.md lists them, too.
LEFT_OUT = {"mlflow": "IDs of the MLflow run", "fit_seconds": "time", "fit_s": "time"}
# Fields that follow from the configuration and the data, and are equal on every machine.
EXACT = {"name", "test_md5", "images", "parameters", "params"}
SHOWN = 5  # names in a message

Field = tuple[str, ...]


class Differences(NamedTuple):
    """The fields of two records that differ, and whether another processor may explain it."""

    fields: list[Field]
    explicable: bool

    def __str__(self) -> str:
        names = [".".join(field) for field in self.fields]
        return shown(", ".join(names[:SHOWN])) + f" and {len(names) - SHOWN} more" * (len(names) > SHOWN)


def compare_records(promised: bytes, found: bytes) -> Differences:
    """The fields that differ. Raises ValueError if a record is not a JSON object."""
    before, after = fields_of(promised), fields_of(found)
    differing = sorted(name for name in before | after if before.get(name) != after.get(name))
    in_both = before.keys() & after.keys()
    return Differences(differing, all(name in in_both and name[-1] not in EXACT for name in differing))


def fields_of(content: bytes) -> dict[Field, str]:
    """The fields of a record, each value as JSON: so 1, 1.0 and true are different."""
    try:
        record = parse_json(content)
        if not isinstance(record, dict):
            raise ValueError("it is not an object")
        return dict(_fields(record, ()))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _fields(value: Any, name: Field) -> Iterator[tuple[Field, str]]:
    if isinstance(value, dict) and value:
        for key, part in value.items():
            if key not in LEFT_OUT:
                yield from _fields(part, (*name, key))
    else:
        yield name, json.dumps(value)
