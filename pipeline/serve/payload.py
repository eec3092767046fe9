"""JSON request bodies in the formats of MLflow's and TensorFlow Serving's clients."""

import json
import re
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

SPLIT = "dataframe_split"
FORMATS = ("inputs", "instances", SPLIT)
NUMBER = re.compile(r"\d+$")  # at the end of a column's name, such as pixel12


def images_in(body: bytes) -> Any:
    """Return the images of a request as nested lists, strings and dictionaries; the model checks them.

    Raises MlflowException with status 400 for anything but a JSON object with one of the formats' keys.
    """
    try:
        payload = json.loads(body)
    except ValueError as error:  # invalid JSON or UTF-8
        raise bad_request(f"the request body is not JSON: {error}") from None
    if not isinstance(payload, dict) or len(payload) != 1 or not payload.keys() <= set(FORMATS):
        found = ", ".join(map(repr, payload)) if isinstance(payload, dict) else type(payload).__name__
        raise bad_request(f"expected a JSON object with one of the keys {', '.join(FORMATS)}, got {found or 'none'}")
    (name, value), *_ = payload.items()
    return rows_of(value) if name == SPLIT else value


def rows_of(frame: Any) -> Any:
    """Return the rows of a data frame in pandas's `split` format. Its columns are pixels, row by row."""
    columns, rows = (frame.get("columns"), frame.get("data")) if isinstance(frame, dict) else (None, None)
    if not isinstance(columns, list | None) or not isinstance(rows, list) or not all(isinstance(r, list) for r in rows):
        raise bad_request(f"{SPLIT} must be an object with the keys columns and data, which are lists")
    numbers = [int(found[0]) for column in columns or [] if (found := NUMBER.search(str(column)))]
    if numbers != sorted(numbers):
        raise bad_request(f"the columns of {SPLIT} are not in the order of the pixels")
    if columns is not None and any(len(row) != len(columns) for row in rows):
        raise bad_request(f"{SPLIT} has rows with another number of values than its {len(columns)} columns")
    return rows


def bad_request(message: str) -> MlflowException:
    """Return an exception that the server answers with status 400."""
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)
