import base64
import io
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import keras
import mlflow.keras
import numpy as np
import pandas as pd  # type: ignore[import-untyped]  # a table, as MLflow's server makes of CSV
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from PIL import Image

from pipeline.core.errors import PipelineError
from pipeline.registry.classifier import BATCH, NETWORK, ORIENTATION, BadImages, DigitClassifier, check_images
from pipeline.registry.conversion import convert
from pipeline.registry.servable import TOLERANCE, check_conversion, log_servable
from pipeline.registry.serving import load_registered
from pipeline.stages.train.archive import save_network
from pipeline.stages.train.network import build_network
from tests.commands.serve.conftest import SHAPE, Registered
from tests.conftest import CONF, configured

REFUSED = {
    "mixed_bfloat16": "its conversion to ONNX failed",
    "mixed_float16": "its probabilities in ONNX and in Keras differ by up to .*, and",
}
IMAGES = np.random.default_rng(1).integers(0, 256, (BATCH + 7, *SHAPE), dtype=np.uint8)


MODELS = [{"name": path.stem} for path in sorted((CONF / "model").glob("*.yaml"))]


SHIFTED = {
    "convolutions": [8],
    "kernels": [3],
    "members": 2,
    "test_time_shift": 1,
}  # small, because conversion time grows with the number of layers


@pytest.mark.parametrize("model", [*MODELS, {"name": "convnet", **SHIFTED}])
def test_every_model_predicts_as_in_keras(model: dict[str, object], tmp_path: Path) -> None:
    network = build_network(configured(tmp_path, model=model).model, SHAPE, 10)
    save_network(tmp_path / "model.keras", network)
    converted = convert(tmp_path / "model.keras", tmp_path, IMAGES)
    check_conversion(converted)
    served = DigitClassifier(converted.folder / NETWORK).predict(IMAGES)
    assert served.shape == (BATCH + 7, 10)
    np.testing.assert_allclose(served, network.predict(IMAGES, verbose=0), atol=TOLERANCE)


def test_a_network_with_other_predictions_is_not_logged(
    registered: Registered, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    client = MlflowClient(registered.store.uri)
    run = client.create_run("0").info.run_id
    noisy = keras.Sequential([keras.Input(SHAPE, dtype="uint8"), keras.layers.Flatten(), keras.layers.Dense(10)])
    noisy.add(keras.layers.Lambda(lambda values: values))
    noisy.save(tmp_path / "noisy.keras")
    (tmp_path / "noisy").mkdir()
    with pytest.raises(PipelineError, match=r"noisy\.keras cannot be served: its conversion to ONNX failed \(.*unsafe"):
        convert(tmp_path / "noisy.keras", tmp_path / "noisy", IMAGES[:2])
    for precision, message in REFUSED.items():
        keras.config.set_dtype_policy(precision)
        try:
            save_network(tmp_path / "half.keras", build_network(configured(tmp_path).model, SHAPE, 10))
        finally:
            keras.config.set_dtype_policy("float32")
        (tmp_path / precision).mkdir()
        with pytest.raises(PipelineError, match=rf"half\.keras cannot be served: {message}"):
            log_servable(client, run, convert(tmp_path / "half.keras", tmp_path / precision, IMAGES[:50]), {})
    assert "Error" not in capfd.readouterr().err, "the error is a single line"
    assert not client.get_run(run).outputs.model_outputs


def test_a_registered_model_takes_raw_images_and_loads_in_keras(registered: Registered) -> None:
    before = [entry for entry in sys.path if not Path(entry or ".").exists()]
    served = load_registered(registered.store, registered.name, "champion")
    assert (served.image_shape, served.version) == (SHAPE, "1")
    assert [entry for entry in sys.path if not Path(entry or ".").exists()] == before, (
        "sys.path has no missing folder in which code could be planted"
    )
    np.testing.assert_allclose(served.model.predict(registered.images), registered.probabilities, atol=TOLERANCE)
    network = mlflow.keras.load_model(str(registered.files))
    np.testing.assert_array_equal(network.predict(registered.images, verbose=0), registered.probabilities)


@pytest.mark.parametrize(
    "name", ["data/network/model.onnx", "data/network/model.keras", "code/classifier.py", "MLmodel"]
)
def test_a_tampered_file_is_rejected_before_it_is_loaded(registered: Registered, name: str) -> None:
    path = registered.files / name
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(
        PipelineError, match="the files of version 1 of numbers are not those that were registered: their"
    ):
        load_registered(registered.store, registered.name, "champion")


def test_an_added_file_is_detected(registered: Registered) -> None:
    (registered.files / "code" / "numpy.py").write_text("raise SystemExit('executed')\n", encoding="utf-8")
    with pytest.raises(PipelineError, match="are not those that were registered"):
        load_registered(registered.store, registered.name, "champion")


def test_mlflow_rejects_a_tampered_network(registered: Registered) -> None:
    path = registered.files / "data" / "network" / "model.onnx"
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(MlflowException, match=r"model\.onnx is not the file that was logged: its SHA-256 is"):
        mlflow.pyfunc.load_model(str(registered.files))


def test_a_missing_model_is_a_one_line_error(registered: Registered) -> None:
    with pytest.raises(PipelineError, match="has no model 'numbers' with the alias 'previous'"):
        load_registered(registered.store, "numbers", "previous")
    with pytest.raises(PipelineError, match=r"has no model 'other' with the alias 'champion'.*`make promote`"):
        load_registered(registered.store, "other", "champion")
    for file in sorted(registered.files.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    with pytest.raises(PipelineError, match="version 1 of numbers"):
        load_registered(registered.store, "numbers", "champion")


def test_no_logged_file_is_a_pickle(registered: Registered) -> None:
    files = [file for file in registered.files.rglob("*") if file.is_file()]
    files = [file for file in files if file.parent.name != "__pycache__"]  # another test loaded it
    assert {file.suffix for file in files} <= {"", ".json", ".txt", ".yaml", ".py", ".onnx", ".keras"}
    assert not [file for file in files if file.read_bytes().startswith(b"\x80")]


PICTURE = Image.fromarray(np.array([[0, 255], [1, 2]], np.uint8))


def encoded(picture: Image.Image, form: str = "PNG", **options: Any) -> str:
    """A picture in base64."""
    content = io.BytesIO()
    picture.save(content, form, **options)
    return base64.b64encode(content.getvalue()).decode()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def damaged(width: int = 2, height: int = 2, extra: bytes = b"", color: int = 0, bits: int = 8) -> str:
    """A PNG with valid checksums, and with a header or a chunk that is wrong, in base64."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0\0\1" * 2))
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + header + pixels + extra + chunk(b"IEND", b"")).decode()


DAMAGED = damaged(extra=chunk(b"iCCP", b""))
TURNED = Image.Exif()
TURNED[ORIENTATION] = 6


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([[0, 255], [1, 2]], "expected images of shape (N, 2, 2), got shape (2, 2)"),
        ([], "expected images of shape (N, 2, 2), got shape (0,)"),
        (np.zeros((0, 2, 2), np.uint8), "expected images of shape (N, 2, 2), got shape (0, 2, 2)"),
        ([[[1, 2, 3], [4, 5, 6]]], "expected images of shape (N, 2, 2), got shape (1, 2, 3)"),
        ("seven", "expected images of shape (N, 2, 2), got shape ()"),
        (None, "expected images of shape (N, 2, 2), got shape ()"),
        ({"images": []}, "expected images of shape (N, 2, 2), got shape (0,)"),
        ({"pixels": [[[0, 1], [2, 3]]]}, "expected the input 'images', got 'pixels'"),
        ({"images": [[[0, 1], [2, 3]]], "other": 1}, "expected the input 'images', got 'images', 'other'"),
        ({"x" * 10_000: []}, "expected the input 'images', got 'xxxx"),
        ({}, "expected the input 'images', got no input"),
        ([[[True, False], [True, False]], [[0, 1], [2, 3]]], "pixels must be integers from 0 to 255, got bool"),
        ([["x" * 12_000, *([0] * 6000)]], "expected images of shape (N, 2, 2), got shape (1, 6001)"),
        ([["x" * 12_000, *([0] * 3)]], "pixels must be integers from 0 to 255, got str"),
        ([{"images": [[0, 1], [2, 3]], "b64": encoded(PICTURE)}], "image 0 is not a PNG or JPEG picture"),
        ([encoded(PICTURE)] * 4001, "a request can contain at most 4,000 pictures, got 4,001"),
        (["A" * (1 << 17)], "image 0 is not a PNG or JPEG picture in base64 of at most 65,536 bytes"),
        ([DAMAGED], "image 0 is not a PNG or JPEG picture in base64"),
        # Their pixels are damaged: decoding them would be another error, and would take memory.
        ([damaged(13_300, 13_300, bits=1)], "image 0 has 13300×13300 pixels, expected 2×2"),
        ([{"b64": damaged(65_535, 65_535)}], "image 0 has 65535×65535 pixels, expected 2×2"),
        ([damaged(bits=16)], "image 0 has a palette, transparency or 16 bits (mode I;16)"),
        ([encoded(PICTURE.convert("P"))], "image 0 has a palette, transparency or 16 bits (mode P)"),
        ([encoded(PICTURE, "JPEG", exif=TURNED)], "image 0 has an EXIF orientation: rotate its pixels instead"),
        ([[0, 1, 2]], "expected images of shape (N, 2, 2), got shape (1, 3)"),
        ([[0, 1, 2, 0.5]], "pixels must be integers from 0 to 255, got float"),
        ([[0, 1, 2, 300]], "0 to 255, but image 0 has 300 in row 1, column 1"),
        (["seven"], "image 0 is not a PNG or JPEG picture in base64"),
        ([encoded(PICTURE), "aGVsbG8="], "image 1 is not a PNG or JPEG picture in base64"),
        ([{"b64": 3}], "image 0 is not a PNG or JPEG picture in base64"),
        ([encoded(PICTURE)[:64]], "image 0 is not a PNG or JPEG picture in base64"),
        ([encoded(PICTURE, "GIF")], "image 0 is not a PNG or JPEG picture in base64"),
        ([encoded(PICTURE.resize((3, 2)))], "image 0 has 3×2 pixels, expected 2×2"),
        ([encoded(PICTURE.convert("RGBA"))], "image 0 has a palette, transparency or 16 bits (mode RGBA)"),
        ([encoded(Image.new("I;16", (2, 2)))], "image 0 has a palette, transparency or 16 bits (mode I;16)"),
        ([[[1, 2], [3]]], "the rows or images differ in length: send images of shape (N, 2, 2)"),
        ([[[1, 2], [3, None]]], "pixels must be integers from 0 to 255, got NoneType"),
        ([[[1, 2], [3, 10**30]]], "pixels must be integers from 0 to 255, got object"),
        ([[[0.0, 1.0], [0.5, 0.25]]], "pixels must be integers from 0 to 255, got float"),
        (np.zeros((1, 2, 2)), "pixels must be integers from 0 to 255, got float64"),
        ([[["1", "2"], ["3", "4"]]], "pixels must be integers from 0 to 255, got str"),
        ([[[True, False], [True, False]]], "pixels must be integers from 0 to 255, got bool"),
        ([[[0, 1], [2, 3]], [[0, 1], [256, 3]]], "0 to 255, but image 1 has 256 in row 1, column 0"),
        ([[[0, -1], [2, 3]]], "0 to 255, but image 0 has -1 in row 0, column 1"),
    ],
)
def test_invalid_images_are_rejected_with_reason_and_position(data: object, message: str) -> None:
    with pytest.raises(BadImages) as refused:
        check_images(data, (2, 2))
    assert message in refused.value.message
    assert refused.value.get_http_status_code() == 400


def test_integers_of_any_type_are_accepted() -> None:
    expected = np.array([[[0, 255], [1, 2]]], np.uint8)
    flat = expected.reshape(1, 4)
    for data in (
        *(expected, expected.tolist(), expected.astype(np.int64), expected.astype(np.uint16)),
        *(expected[..., None], expected[..., None].tolist(), flat, flat.tolist(), pd.DataFrame(flat)),
        *({"images": expected.tolist()}, {"images": flat}, [{"images": expected[0].tolist()}]),
    ):
        images = check_images(data, (2, 2))
        assert images.dtype == np.uint8
        np.testing.assert_array_equal(images, expected)


def test_pictures_in_base64_are_decoded() -> None:
    expected = np.array([[[0, 255], [1, 2]]], np.uint8)
    text = encoded(PICTURE)
    for item in (text, {"b64": text}, {"images": text}, {"images": {"b64": text}}, encoded(PICTURE.convert("RGB"))):
        np.testing.assert_array_equal(check_images([item], (2, 2)), expected)
    gray = Image.new("L", (2, 2), 200)
    np.testing.assert_array_equal(check_images([encoded(gray, "JPEG")], (2, 2)), np.full((1, 2, 2), 200))
