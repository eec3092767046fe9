"""Atomic file writes, file digests, and YAML parsing."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

UNFINISHED = ".writing-"  # prefix of temporary folders; git and DVC ignore them
# Limits of a YAML file: its length in bytes, the levels of nesting, and the times that aliases may expand its length.
LARGEST, DEEPEST, EXPANSION = 1 << 18, 100, 10
NUMBER = re.compile(r"[-+.]?\d[\w.:+-]*$")
MISREAD = re.compile(r"[-+]?(0[0-9_]*[1-9_][0-9_]*|[0-9_]+(:[0-9_]+)+(\.[0-9_]*)?)")  # 010 is 8, and 1:30 is 90
LONGEST_NUMBER = 1000  # digits
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace `path` atomically: yield a temporary path with the same name, and move it there if the block succeeds.

    Readers see the old file or the new one. A full disk, a kill or a power failure leaves the old one. What a killed
    process left beside `path` is removed. Raises OSError if `path` is a device or a pipe.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(path.parent)
    with temporary_folder(path.parent) as folder:
        temporary = folder / path.name
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Create a folder that this process locks, so that others can tell it from one that a killed process left."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=parent))
        with suppress(FileNotFoundError):  # another process removed it before it was locked
            descriptor = os.open(folder, os.O_RDONLY)
            with suppress(OSError):  # some network drives have no locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if folder.exists():
                break
            os.close(descriptor)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def remove_unfinished(parent: Path) -> None:
    """Remove the temporary folders of killed processes."""
    for folder in parent.glob(f"{UNFINISHED}*"):
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails if a living process holds the lock
                shutil.rmtree(folder)
            finally:
                os.close(descriptor)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk, if the file system supports it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # which some network drives return
            raise
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str, mode: int = 0o666) -> None:
    """Write `text` to `path` atomically in UTF-8, with the permissions `mode` minus the process's umask."""
    with replacing(path) as temporary:
        temporary.touch(mode)
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON that diffs line by line; a list of numbers is one line."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    text = re.sub(
        r"\[\n[^\[\]{}\"]*\]", lambda numbers: " ".join(numbers[0].split()).replace("[ ", "[").replace(" ]", "]"), text
    )
    write_text(path, text + "\n")


def zip_entry(name: str) -> zipfile.ZipInfo:
    """A zip entry with fixed metadata, so that archives have the same bytes on every platform."""
    entry = zipfile.ZipInfo(name)
    entry.create_system = 3
    return entry


def parse_yaml(text: str | bytes) -> Any:
    """Parse YAML like `yaml.safe_load`, but with libyaml if PyYAML has it, which takes a seventh of the time.

    Raises yaml.YAMLError for everything that is not valid, and for what `check_yaml` refuses.
    """
    try:
        check_yaml(text)
        return yaml.load(text, LOADER)  # noqa: S506 (both loaders are safe)
    except yaml.YAMLError:
        raise
    except Exception as error:  # PyYAML raises many kinds for a value that its tag does not allow, such as a 13th month
        raise yaml.YAMLError(f"a value is invalid: {error}") from None


def check_yaml(text: str | bytes) -> None:
    """Raise yaml.YAMLError for a text that takes more memory or time than its length suggests.

    Nesting overflows libyaml's stack, which ends the process. Aliases of aliases expand to any size ("billion laughs").
    PyYAML's time for a number is quadratic in its digits. Numbers that YAML 1.1 reads as others are refused, too.
    """
    if len(text) > LARGEST:
        raise yaml.YAMLError(f"it is larger than {LARGEST >> 10} KiB")
    sizes: dict[str, int] = {}  # characters of each anchored value, with its aliases expanded
    started: list[tuple[str | None, int]] = []  # collections around this place: their anchors, and what precedes them
    size, most = 0, max(LARGEST >> 4, EXPANSION * len(text))
    for event in yaml.parse(text, LOADER):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise yaml.YAMLError(f"the alias *{event.anchor} is inside its own anchor, or has none")
            size += sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            if len(event.value) > LONGEST_NUMBER and event.implicit != (False, True) and NUMBER.match(event.value):
                raise yaml.YAMLError(f"a number has more than {LONGEST_NUMBER:,} digits")
            if event.implicit[0] and MISREAD.fullmatch(event.value):
                raise yaml.YAMLError(
                    f"YAML reads {event.value} as another number, octal or in base 60: write it in decimal without "
                    "leading zeros, or in quotes"
                )
            size += len(event.value) + 1
            sizes |= {event.anchor: len(event.value) + 1} if event.anchor else {}
        elif isinstance(event, yaml.CollectionStartEvent):
            started.append((event.anchor, size))
            size += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = started.pop()
            sizes |= {anchor: size - before} if anchor else {}
        if len(started) > DEEPEST or size > most:
            raise yaml.YAMLError(f"it is nested too deeply, or its aliases repeat more than {most:,} characters")


def parse_json(text: str | bytes) -> Any:
    """Parse JSON. Raises ValueError if it is not valid or an object has a key twice, of which one would be lost."""
    return json.loads(text, object_pairs_hook=_without_duplicates)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("an object has a key twice")
    return dict(pairs)


def md5(path: Path) -> str:
    """MD5 of a file in hexadecimal, as DVC records it in dvc.lock."""
    return _digest(path, "md5")


def sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    return _digest(path, "sha256")


def text_digest(text: str) -> str:
    """The first 16 hexadecimal digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
