"""Memory and time that hostile files take: at most MULTIPLE times their size, and a constant.

The multiple is that of Python's objects: a list, for example, takes 56 bytes in memory, and `[],` in a file three.
A gzipped IDX file may take 1.25 times what its header declares, which gzip limits to 1,032 times the size of the file.
"""

import functools
import gzip
import io
import json
import struct
import zipfile
import zlib

import numpy as np
import pytest

from pipeline.commands.serve.picture import read_picture
from pipeline.core.errors import PipelineError
from pipeline.stages.preprocess.idx import DENSEST, read_idx
from tests.commands.gate.test_report import ERRORS
from tests.commands.serve.test_picture import png
from tests.fuzzing.inputs import limited, peak_of
from tests.fuzzing.targets import TARGETS, file_with

MIB = 1 << 20
MULTIPLE, CONSTANT = 60, 4 * MIB


def laughs(start: bytes, again: str, levels: int = 30) -> bytes:
    """An alias of aliases of aliases …: "billion laughs"."""
    lines = [f"a{level + 1}: &a{level + 1} {again.format(level=level)}" for level in range(levels)]
    return b"a0: &a0 " + start + b"\n" + "\n".join(lines).encode()


def entry(header: bytes, content: bytes = b"", compression: int = zipfile.ZIP_STORED) -> bytes:
    """A .npz file whose arrays have this header."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name in ("images", "labels"):
            archive.writestr(f"{name}.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + content)
    return file.getvalue()


def header(shape: str, dtype: str = "|u1") -> bytes:
    """The header of an .npy file."""
    return f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def packed(length: int) -> bytes:
    """Zeros, packed to a thousandth."""
    return zlib.compress(bytes(length), 6)


def picture(width: int, height: int, packed: bytes, extra: bytes = b"", color: int = 0, bits: int = 8) -> bytes:
    """A PNG file."""
    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + extra + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


YAML = {
    "laughs": laughs(b"[x, x, x, x, x, x, x, x, x]", "[*a{level}, *a{level}]"),
    "scalars": laughs(b"x" * 1000, "[*a{level}, *a{level}]"),
    "merges": laughs(b"{x: 1}", "{{<<: [*a{level}, *a{level}]}}"),
    "itself": b"a: &a [*a]\n",
    "flow": b"a: " + b"[" * 200_000,
    "sequences": b"- " * 200_000 + b"a",
    "mappings": b"\n".join(b" " * level + b"a:" for level in range(1200)),
    "minutes": b"a: 1" + b":1" * 400_000,
    "digits": b"a: " + b"9" * 100_000,
    "hexadecimal": b"training: {epochs: 0x" + b"f" * 5000 + b"}",
    "key": b"? " + b"k" * 500_000 + b"\n: 1\n",
    "urls": b"seed: " + b"x://a" * 100_000,
    "large": b"a: [" + b"[]," * 1_000_000 + b"]",
    "date": b"seed: 2024-99-99\n",
    "tags": b"seed: !!int ''\nrecipe: !!timestamp x\n",
    "terminal": b'"\\e[2J\\nfast": 1\n"\\u2028": 2\n',
    "bytes": b"\xff\xfe\x00\xd8",
    "nul": b"recipe: \0",
    "binary": b"recipe: !!binary AAAA\ndataset: !!set {a, b}\n",
    "numeric keys": b"1: 2\na: 3\nnull: 4\n",
    "path": b'recipe: "../../../etc/\\0x"\n',
}
JSONS = {
    "deep": b"[" * 1_000_000,
    "closed": b'{"inputs": ' + b"[" * 990 + b"]" * 990 + b"}",
    "lists": b'{"inputs": [' + b"[]," * 100_000 + b"[]]}",
    "objects": b'{"inputs": [' + b'{"":0},' * 30_000 + b"0]}",
    "digits": b'{"inputs": ' + b"9" * 1_000_000 + b"}",
    "urls": b'{"test": {"accuracy": "' + b"x://a" * 100_000 + b'"}}',
    "keys": json.dumps({"k" * 1_000_000: 1}).encode(),
    "surrogate": b'{"\\ud800": "\\udfff"}',
}
BOMBS: dict[str, dict[str, bytes]] = {
    "npz": {
        "declared": entry(header("(1099511627776,)")),
        "floats": entry(header("(1099511627776, 8)", "<f8")),
        "negative": entry(header("(-1, -1)"), b"x"),
        "packed": entry(header("(16777216,)"), bytes(16 * MIB), zipfile.ZIP_DEFLATED),
        "nested": entry(b"(" * 9000),
        "signs": entry(b"-" * 9000),
        "pickled": entry(header("(1,)", "|O"), b"x" * 8),
        "text": entry(b"\xff" * 50),
        "scalar": entry(header("()"), b"x"),
        "missing": b"PK\5\6" + bytes(18),
    },
    **dict.fromkeys(("params", "composed", "gate_composed", "gate_lock"), YAML),
    **dict.fromkeys(("records", "gate_evaluation", "request"), JSONS),
    "gate_errors": {
        "rows": ERRORS.encode() + b"3,0,1,0.9\n" * 100_000,
        "field": ERRORS.encode() + b'"' + b"x" * 1_000_000,
        "digits": ERRORS.encode() + b"9" * 100_000 + b",0,1,0.5\n",
        "columns": ERRORS.encode() + b"1," * 100_000,
        "nul": ERRORS.encode() + b"\0,\0,\0,\0",
    },
}


@pytest.mark.parametrize(("name", "bomb"), [(name, bomb) for name, bombs in BOMBS.items() for bomb in bombs])
def test_a_hostile_file_takes_little_memory_and_time(name: str, bomb: str) -> None:
    content = BOMBS[name][bomb]
    with limited():
        peak = peak_of(lambda: TARGETS[name].parse(content))
    assert peak <= MULTIPLE * len(content) + CONSTANT, f"{peak / MIB:.1f} MiB for {len(content):,} bytes"


def idx(shape: tuple[int, int, int], length: int) -> bytes:
    """A gzipped IDX file of zeros, in parts of a mebibyte."""
    start, part = (gzip.compress(part, mtime=0) for part in (struct.pack(">4B3I", 0, 0, 8, 3, *shape), bytes(MIB)))
    return start + part * (length // MIB) + gzip.compress(bytes(length % MIB), mtime=0)


LARGE = 100 * MIB


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx((2, 3, 4), LARGE), "24 bytes, but it contains more"),
        (idx((1 << 31, 1 << 31, 1 << 31), LARGE), "bytes, but it contains less"),
        (idx((1 << 20, 10, 10), 24), "bytes, but it contains less"),
        (gzip.compress(bytes(LARGE), 1), "magic number 00000000"),
        (gzip.compress(b"", mtime=0) * 20_000 + b"x", "not an intact gzip file"),
    ],
    ids=["longer", "shorter", "short", "zeros", "members"],
)
def test_a_gzip_bomb_is_not_unpacked(content: bytes, message: str) -> None:
    path = file_with("bomb.gz", content)

    def read() -> None:
        with pytest.raises(PipelineError, match=message):
            read_idx(path, 3)

    with limited():
        assert peak_of(read) <= CONSTANT


def test_an_idx_file_takes_as_much_memory_as_its_header_declares() -> None:
    content = idx((100, 1024, 1024), LARGE)
    assert DENSEST * len(content) > LARGE
    path = file_with("dense.gz", content)
    peak = peak_of(lambda: read_idx(path, 3))
    assert peak <= 1.25 * LARGE + CONSTANT


SIDE = 4096  # the limit of a picture for /read
READ = 20  # times a picture's pixels


@functools.cache
def pictures() -> dict[str, tuple[bytes, str]]:
    """Pictures that expand to many times their size, and why each is refused."""
    zeros = packed(32 * MIB)
    return {
        "gray": (picture(SIDE, SIDE, packed((SIDE + 1) * SIDE)), "blank"),
        "colors": (picture(SIDE, SIDE, packed((4 * SIDE + 1) * SIDE), color=6), "blank"),
        "deep": (picture(SIDE, SIDE, packed((2 * SIDE + 1) * SIDE), bits=16), "blank"),
        "large": (picture(65_535, 65_535, zeros), "is 65535×65535 pixels: the limit is 4096"),
        "bits": (picture(13_300, 13_300, zeros, bits=1), "is 13300×13300 pixels: the limit is 4096 per side"),
        "small": (picture(9, 9, zeros), "blank"),
        "text": (picture(9, 9, zeros, chunk(b"zTXt", b"a\0\0" + zeros)), "blank|not a valid PNG"),
        "profile": (picture(9, 9, zeros, chunk(b"iCCP", b"a\0\0" + zeros)), "blank|not a valid PNG"),
        "unicode": (picture(9, 9, zeros, chunk(b"iTXt", b"a\0\1\0\0\0" + zeros)), "blank|not a valid PNG"),
        "short": (picture(SIDE, SIDE, packed(SIDE)), "not a valid PNG"),
        "none": (picture(0, 0, b""), "not a valid PNG"),
        "frames": (picture(9, 9, zeros, chunk(b"acTL", struct.pack(">II", 2**31, 0))), "blank|not a valid PNG"),
        "length": (png(np.eye(28, dtype=np.uint8))[:33] + b"\xff\xff\xff\xffIDAT", "not a valid PNG"),
    }


@pytest.mark.parametrize("name", pictures())
def test_a_picture_takes_a_multiple_of_its_pixels(name: str) -> None:
    """In this process, Python's and NumPy's memory; the test of the server measures Pillow's, too."""
    content, message = pictures()[name]
    assert len(content) <= MIB, "the server refuses more"

    def read() -> None:
        with pytest.raises(PipelineError, match=message):
            read_picture(content)

    with limited():
        assert peak_of(read) <= READ * SIDE**2
