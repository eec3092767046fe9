from pathlib import Path

import pytest

from pipeline.core import device, machine
from pipeline.core.device import choose_precision, use_device
from pipeline.core.errors import PipelineError


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
def test_auto_precision_depends_on_the_processor(
    monkeypatch: pytest.MonkeyPatch, configured: str, where: str, has_bfloat16: bool, precision: str
) -> None:
    monkeypatch.setattr(device, "computes_bfloat16", lambda: has_bfloat16)
    assert choose_precision(configured, where) == precision


def test_an_unknown_device_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVICE", "tpu")
    with pytest.raises(PipelineError, match=r"^DEVICE=tpu: must be one of auto, cpu, gpu$"):
        use_device()


@pytest.mark.parametrize(
    ("flags", "has_bfloat16", "vectors"),
    [
        ("fpu avx2 avx512f avx512_bf16", True, "AVX-512 with bfloat16"),
        ("fpu avx2 avx512f amx_bf16", True, "AVX-512"),
        ("fpu avx2 avx512f", False, "AVX-512"),
        ("fpu avx2", False, "AVX2"),
        ("fpu", False, None),
    ],
)
def test_the_processors_flags_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, has_bfloat16: bool, vectors: str | None
) -> None:
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    machine.CPUINFO.write_text(f"processor\t: 0\nmodel name\t: One\nflags\t\t: {flags}\n", encoding="utf-8")
    assert machine.computes_bfloat16() is has_bfloat16
    assert machine.describe_machine().startswith(f"One ({vectors}), " if vectors else "One, ")


def test_without_cpuinfo_bfloat16_is_not_assumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "none")
    assert machine.computes_bfloat16() is False
