import pytest

from pipeline import device
from pipeline.device import choose_precision


@pytest.mark.parametrize(
    ("configured", "where", "has_bfloat16", "precision"),
    [
        ("auto", "cpu", True, "mixed_bfloat16"),
        ("auto", "cpu", False, "float32"),
        ("auto", "gpu", True, "float32"),
        ("float32", "cpu", True, "float32"),
        ("mixed_bfloat16", "cpu", False, "mixed_bfloat16"),
    ],
)
def test_auto_is_what_the_processor_has(
    monkeypatch: pytest.MonkeyPatch, configured: str, where: str, has_bfloat16: bool, precision: str
) -> None:
    monkeypatch.setattr(device, "computes_bfloat16", lambda: has_bfloat16)
    assert choose_precision(configured, where) == precision
