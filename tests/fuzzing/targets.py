"""What the fuzzers call: each function takes the bytes of one file, and fails unless they are accepted or refused."""

import base64
import functools
import gzip
import io
import json
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image

from pipeline.commands.gate.report import parse_report
from pipeline.commands.gate.results import Results, configuration_of, gate_of, recipe_of, seed_of, with_record
from pipeline.commands.serve.payload import images_in
from pipeline.commands.serve.picture import read_picture
from pipeline.core.config import Config
from pipeline.core.dataset import Split, load_split, save_split
from pipeline.core.errors import PipelineError
from pipeline.core.files import parse_yaml
from pipeline.core.records import DataStatistics, Evaluation, Metrics, Record, TrainingRun
from pipeline.core.validation import load_config
from pipeline.registry.classifier import BadImages, check_images
from pipeline.repository.dvc import code_of, is_consistent, outputs, read_lock
from pipeline.repository.reading import read_yaml
from pipeline.stages.compose.composition import to_yaml
from pipeline.stages.fetch.packaged import idx_bytes
from pipeline.stages.preprocess.idx import read_idx
from pipeline.tracking.events import Event
from pipeline.tracking.outbox import CHECKSUM, RunAddress, keep_event, read_event
from tests.commands.gate.test_report import ERRORS, as_bytes, metrics
from tests.commands.serve.test_picture import canvas, png
from tests.conftest import CONF, ROOT, compose_ours
from tests.fuzzing.folder import make_folder
from tests.fuzzing.inputs import accepted

FOLDER = make_folder()
IMAGES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
LABELS = np.array([9, 0], np.uint8)


class Target(NamedTuple):
    """A parser under test, intact files of its format, and words that have a meaning in it."""

    parse: Callable[[bytes], bool]  # returns whether the parser accepts the file
    intact: list[bytes]
    words: list[bytes]


def file_with(name: str, content: bytes) -> Path:
    """A file with this content."""
    path = FOLDER / name
    path.write_bytes(content)
    return path


def read_packed(content: bytes) -> bool:
    """A gzipped IDX file. The oracle is NumPy, on what Python's gzip unpacks."""
    path = file_with("images.gz", content)
    found = accepted(lambda: read_idx(path, 3), str(path))
    if found is not None:
        unpacked = gzip.decompress(content)
        sizes = np.frombuffer(unpacked, ">u4", 3, offset=4)
        assert unpacked[:4] == b"\0\0\x08\3"
        np.testing.assert_array_equal(found, np.frombuffer(unpacked, np.uint8, offset=16).reshape(sizes))
    return found is not None


def read_unpacked(content: bytes) -> bool:
    """The content of such a file, in which a fuzzer could not change a byte otherwise."""
    return read_packed(gzip.compress(content, 1, mtime=0))


def read_split(content: bytes) -> bool:
    """A .npz file of images and labels. The oracle is NumPy's own reader."""
    path = file_with("train.npz", content)
    found = accepted(lambda: load_split(path), str(path))
    if found is not None:
        with zipfile.ZipFile(io.BytesIO(content)) as entries:
            for name, array in found._asdict().items():
                np.testing.assert_array_equal(
                    array, np.load(io.BytesIO(entries.read(f"{name}.npy")), allow_pickle=False)
                )
        assert len(found.images) == len(found.labels)
        assert (found.images.dtype.name, found.labels.dtype.name, found.images.ndim) == ("uint8", "uint8", 3)
    return found is not None


def read_composed(content: bytes) -> bool:
    """composed.yaml, as each command reads it. The oracle is PyYAML's loader in Python."""
    path = file_with("composed.yaml", content)
    found = accepted(lambda: load_config(path), str(path))
    if found is not None:
        with suppress(yaml.YAMLError):  # libyaml accepts more tabs
            assert found == Config.model_validate(yaml.load(content, yaml.SafeLoader))
    return found is not None


def compose_params(content: bytes) -> bool:
    """params.yaml. What composes is written as text, and read again as the same values."""
    path = file_with("params.yaml", content)
    found = accepted(lambda: compose_ours(path), str(path))
    if found is not None:
        assert Config.model_validate(parse_yaml(to_yaml(found))).model_dump(by_alias=True) == found
    return found is not None


def read_dvc_lock(content: bytes) -> bool:
    """dvc.lock of a base revision."""
    found = accepted(lambda: read_lock(lambda _: content, "here"), "dvc.lock")
    if found is not None:
        assert json.dumps([code_of(found), is_consistent(found)], sort_keys=True)
        assert isinstance(outputs(found), dict)
    return found is not None


def judge_composed(content: bytes) -> bool:
    """composed.yaml and a recipe's record of seed noise of a base revision."""
    values = accepted(lambda: read_yaml(lambda _: content, Path("composed.yaml"), "here"), "composed.yaml")
    if values is not None:
        report = parse_report(as_bytes(metrics()), ERRORS.encode(), "here")
        results = Results("here", [report], values, {})
        assert all(map(str, (recipe_of(results), configuration_of(results), seed_of(results))))
        gate_of(results)
        accepted(lambda: with_record(results, lambda _: content, "here"), "conf/recipe/")
    return values is not None


def read_evaluation(content: bytes) -> bool:
    """reports/evaluation.json beside an intact reports/errors.csv, which lists two images of ten."""
    found = accepted(lambda: parse_report(content, ERRORS.encode(), "here"), "reports/evaluation.json")
    if found is not None:
        test = json.loads(content)["test"]
        assert (test["errors"], test["images"], test["per_class"]["images"]) == (2, 10, [5, 5])
        assert [test["accuracy"], *test["per_class"]["recall"]] == pytest.approx([0.8] * 3, abs=1e-5)
        assert 0 <= found.metrics.test.loss < 1e39
    return found is not None


def read_errors(content: bytes) -> bool:
    """reports/errors.csv beside an intact reports/evaluation.json."""
    found = accepted(lambda: parse_report(as_bytes(metrics()), content, "here"), "reports/")
    if found is not None:
        rows = [line.replace('"', "").split(",") for line in content.decode().splitlines()[1:]]
        assert found.wrong == {int(row[0]): (int(row[1]), int(row[2])) for row in rows}
        assert sorted(label for label, _ in found.wrong.values()) == [0, 1]
        assert all(0 <= float(row[3]) <= 1 for row in rows)
    return found is not None


RECORDS: dict[str, type[Record]] = {
    "run.json": TrainingRun,
    "statistics.json": DataStatistics,
    "evaluation.json": Evaluation,
    "metrics.json": Metrics,
}


def read_records(content: bytes) -> bool:
    """Each JSON file that stages exchange. What is read is written, and read again as the same values."""
    accepting = 0
    for name, record in RECORDS.items():
        path = file_with(name, content)
        found = accepted(functools.partial(record.read, path), str(path))
        if found is not None:
            accepting += 1
            found.write(path)
            assert record.read(path) == found
    return accepting > 0


def read_drawing(content: bytes) -> bool:
    """A picture for /read. The oracle for the result is the format of MNIST."""
    found = accepted(lambda: read_picture(content), "")
    if found is not None:
        Image.open(io.BytesIO(content)).load()
        assert (found.shape, found.dtype.name, int(found.max())) == ((28, 28), "uint8", 255)
    return found is not None


def read_request(content: bytes) -> bool:
    """A body for /invocations, of a model for images of 2×3 pixels. The oracle is NumPy."""

    def read() -> Any:
        try:
            return check_images(images_in(content), (2, 3))
        except BadImages as error:
            raise PipelineError(error.message) from None
        except RecursionError:  # the server answers it
            raise PipelineError("the request body is nested too deeply") from None

    found = accepted(read, "")
    if found is not None:
        assert (found.dtype, found.shape[1:]) == (np.uint8, (2, 3))
        payload = json.loads(content)
        (value,) = (payload[key] for key in payload if key != "signature_name")
        value = value["images" if "images" in value else "data"] if isinstance(value, dict) else value
        if all(isinstance(item, list) for item in value):
            assert found.ravel().tolist() == np.array(value, int).ravel().tolist()
    return found is not None


def without_checksum(kept: bytes) -> Event:
    """The content of a kept event."""
    return {key: value for key, value in json.loads(kept).items() if key != CHECKSUM}


def read_kept(content: bytes) -> bool:
    """An event that MLflow did not accept. What is read is what was kept, as its checksum says."""
    path = file_with("event-000000.json", content)

    def read() -> Event:
        try:
            return read_event(path)[0]
        except ValueError as error:  # a message of put_away names the file
            raise PipelineError(f"{path}: {error}") from None

    found = accepted(read, str(path))
    assert found is None or found in map(without_checksum, KEPT) or CHECKSUM not in json.loads(content)
    return found is not None


def read_state(content: bytes) -> bool:
    """A checkpoint of a killed training. What is read is what was written, as zip's checksums say."""
    path = file_with("epoch-00001.npz", content)

    from pipeline.stages.train.checkpoint import read_arrays  # imports Keras, which takes seconds

    def read() -> tuple[str, list[NDArray[Any]]]:
        try:
            return read_arrays(path)
        except ValueError as error:  # a message of forget_damaged names the file
            raise PipelineError(f"{path}: {error}") from None

    found = accepted(read, str(path))
    if found is not None:
        with np.load(io.BytesIO(content)) as arrays:
            assert found[0] == str(arrays["text"])
            for mine, name in zip(found[1], (name for name in arrays.files if name != "text"), strict=True):
                np.testing.assert_array_equal(mine, arrays[name])
    return found is not None


def archive(split: Split) -> bytes:
    """The file of a split."""
    path = FOLDER / "split.npz"
    save_split(path, split)
    return path.read_bytes()


def requests() -> list[bytes]:
    """Bodies in each format of clients."""
    image = [[1, 2, 3], [4, 5, 255]]
    picture = base64.b64encode(png(np.array(image, np.uint8))).decode()
    flat = {"columns": [f"1x{column}" for column in range(6)], "data": [[1, 2, 3, 4, 5, 255]]}
    bodies: list[Any] = [{"inputs": [image]}, {"instances": [{"b64": picture}, picture]}, {"dataframe_split": flat}]
    return [json.dumps(body).encode() for body in [*bodies, {"inputs": {"images": [image]}}]]


def kept_events() -> list[bytes]:
    """Events that are kept for an MLflow server."""
    run = RunAddress("http://127.0.0.1:5000", "0123", None, FOLDER)
    keep_event(run, {"kind": "metrics", "values": {"loss": 0.5}, "step": 3, "timestamp": 7}, None)
    keep_event(run, {"kind": "text", "name": "note.txt", "content": "é\n"}, None)
    return [path.read_bytes() for path in sorted(run.outbox.glob("event-*"))]


def state() -> bytes:
    """A checkpoint of a small network."""
    content = io.BytesIO()
    values: dict[str, Any] = {
        str(index): array for index, array in enumerate((np.ones((2, 3), np.float32), np.int64(7)))
    }
    np.savez(content, allow_pickle=False, text=np.array('[{"epoch": 1.0}]'), **values)
    return content.getvalue()


def run_record() -> bytes:
    """models/run.json."""
    about = dict.fromkeys(("run_id", "model_md5", "device", "backend", "precision", "machine", "versions"), "x")
    figures = {"parameters": 1, "epochs": 2, "fit_seconds": 1.5, "peak_memory_mib": 5, "devices": 1}
    provenance = {"commit": "", "patch": "", "overrides": ["a=1"]}
    return as_bytes(about | figures | {"environment": "x", "provenance": provenance, "seconds": {"a": 1.0}})


def statistics() -> bytes:
    """reports/data/statistics.json."""
    split = {"images": 2, "mean": 0.5, "std": 0.1, "per_class": [1, 1]}
    duplicates = dict.fromkeys(("within_train", "within_test", "test_in_train"), 0)
    splits = dict.fromkeys(("train", "validation", "test"), split)
    return as_bytes({"dataset": "tiny", **splits, "duplicates": duplicates})


SIZES = [b"\0\0\0\0", b"\0\0\0\1", b"\xff\xff\xff\xff", b"\x80\0\0\0", gzip.compress(b"", mtime=0)]
ARRAYS = [
    b"(1099511627776,)",
    b"'fortran_order': True",
    b"'<f8'",
    b"'|O'",
    b"(-1, 2)",
    b"((((((",
    b"PK\5\6",
    b"\x93NUMPY",
]
YAML_WORDS = [
    *(
        b"&a ",
        b"*a",
        b"<<: ",
        b"!!int ",
        b"!!binary ",
        b"!!timestamp ",
        b"? ",
        b"---\n",
        b"{",
        b"[",
        b"0x",
        b"1:1",
        b"~",
    ),
    *(
        b"${",
        b"}",
        b"${oc.env:HOME}",
        b"2024-99-99",
        b".nan",
        b"\0",
        b"\xff",
        b"1e400",
        b"\xc2\x85",
        b'"\\ud800"',
        b"\t",
    ),
]
JSON_WORDS = [
    *(b"NaN", b"-Infinity", b"1e999", b"1e308", b"[", b"{", b"]", b"}", b'"\\ud800"', b"null", b"true", b"-1", b"0.5"),
    *(b"9" * 400, b"\xef\xbb\xbf", b"\0", b'"images"', b'"errors": 2,', b'"b64"', b",", b'"', b"[[", b"]]"),
]
CSV_WORDS = [
    b"\r\n",
    b"\r",
    b"\xef\xbb\xbf",
    b'"',
    b"nan",
    b"1_0",
    b" ",
    b"\0",
    b"\xd9\xa3",
    b"\x0b",
    b"-",
    b"3,0,1,0.9\n",
]
PARAMS = [
    (ROOT / "params.yaml").read_bytes(),
    b"recipe: fast\nmodel: {name: cnn, filters: 16}\nseed: 3\n"
    b"training: {epochs: 7, validate_on: validation, validation_fraction: 0.1}\n",
    b"model: &m {name: mlp, dropout: 0.3, hidden_units: '${model.members}'}\noptimizer: {name: adam}\n",
]
COMPOSED = (ROOT / "composed.yaml").read_bytes()
REPORTS = [(ROOT / "reports" / name).read_bytes() for name in ("evaluation.json", "metrics.json")]
KEPT = kept_events()
TARGETS = {
    "idx": Target(read_packed, [idx_bytes(IMAGES)], SIZES),
    "unpacked_idx": Target(read_unpacked, [gzip.decompress(idx_bytes(IMAGES))], SIZES),
    "npz": Target(read_split, [archive(Split(IMAGES, LABELS))], ARRAYS),
    "params": Target(compose_params, PARAMS, YAML_WORDS),
    "composed": Target(read_composed, [COMPOSED], YAML_WORDS),
    "gate_composed": Target(judge_composed, [COMPOSED, (CONF / "recipe" / "fast.yaml").read_bytes()], YAML_WORDS),
    "gate_lock": Target(read_dvc_lock, [(ROOT / "dvc.lock").read_bytes()], YAML_WORDS),
    "gate_evaluation": Target(read_evaluation, [as_bytes(metrics())], JSON_WORDS),
    "gate_errors": Target(read_errors, [ERRORS.encode()], CSV_WORDS),
    "records": Target(read_records, [*REPORTS, run_record(), statistics()], JSON_WORDS),
    "picture": Target(read_drawing, [png(canvas(5, 8, 15, 6)), png(np.eye(9, dtype=np.uint8) * 255)], SIZES),
    "kept_event": Target(read_kept, KEPT, JSON_WORDS),
    "checkpoint": Target(read_state, [state()], ARRAYS),
    "request": Target(read_request, requests(), JSON_WORDS),
}
