"""JSON request bodies in the formats of MLflow's and TensorFlow Serving's clients."""

import itertools
import re
from typing import Any

from pipeline.core.files import parse_json
from pipeline.registry.classifier import BadImages

SPLIT = "dataframe_split"
FORMATS = ("inputs", "instances", SPLIT)
SIGNATURE = ("signature_name", "serving_default")  # sent by TensorFlow Serving's clients; a model here has no others
NUMBERS = re.compile(r"\d+")
LONGEST = 40  # characters of a column's name


def images_in(body: bytes) -> Any:
    """Return the images of a request as nested lists, strings and dictionaries; the model checks them.

    Raises BadImages for anything but a JSON object with one of the formats' keys.
    """
    try:
        payload = parse_json(body)
    except ValueError as error:  # invalid JSON or UTF-8
        raise BadImages(f"the request body is not JSON: {error}") from None
    if not isinstance(payload, dict):
        raise BadImages(
            f"expected a JSON object with one of the keys {', '.join(FORMATS)}, got a {type(payload).__name__}"
        )
    found = [key for key in payload if (key, payload[key]) != SIGNATURE]
    if len(found) != 1 or found[0] not in FORMATS:
        names = ", ".join(repr(key[:LONGEST]) for key in found[: len(FORMATS)])
        raise BadImages(f"expected a JSON object with one of the keys {', '.join(FORMATS)}, got {names or 'none'}")
    value = payload[found[0]]
    return rows_of(value) if found[0] == SPLIT else value


def rows_of(frame: Any) -> Any:
    """Return the rows of a data frame in pandas's `split` format. Its columns are pixels, row by row."""
    columns, rows = (frame.get("columns"), frame.get("data")) if isinstance(frame, dict) else (None, None)
    if not isinstance(columns, list | None) or not isinstance(rows, list) or not all(isinstance(r, list) for r in rows):
        raise BadImages(f"{SPLIT} must be an object with the keys columns and data, which are lists")
    if columns is not None and not is_row_major(columns):
        raise BadImages(
            f"{SPLIT}: the columns are not numbered pixels in row order, such as pixel0, pixel1 or 1x1, 1x2"
        )
    if columns is not None and any(len(row) != len(columns) for row in rows):
        raise BadImages(f"{SPLIT} has rows with another number of values than its {len(columns)} columns")
    return rows


def is_row_major(columns: list[Any]) -> bool:
    """Whether the numbers in the columns' names, such as (1, 2) in 1x2, ascend strictly, as many in each name."""
    names = [str(column) for column in columns]
    if any(len(name) > LONGEST for name in names):
        return False
    numbers = [tuple(map(int, NUMBERS.findall(name))) for name in names]
    same = len({len(found) for found in numbers}) <= 1
    return same and all(numbers) and all(before < after for before, after in itertools.pairwise(numbers))
