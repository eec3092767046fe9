"""Where a dataset's files may come from, and getting one file from one place, intact."""

import gzip
import re
import shutil
import time
import zlib
from collections.abc import Iterable
from http import HTTPStatus
from pathlib import Path

import requests
import urllib3
from tqdm import tqdm

from pipeline.config import IdxDataset, RemoteFile
from pipeline.errors import PipelineError, without_secrets
from pipeline.files import replacing, sha256

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
ATTEMPTS = 4
TIMEOUT = (5.0, 20.0)  # seconds to connect, and between two pieces of an answer
BACK_OFF = 0.5  # seconds before the second attempt; doubles with each further one
CHUNK = 1 << 16
DIGITS = 16  # that the length of a file has at most
SERVER_ERROR = 500  # and above: may pass


class SourceError(Exception):
    """This source does not have the file intact; the message says why."""


class InterruptedDownloadError(Exception):
    """A download that stopped on the way and may go on if asked again."""


def places(dataset: IdxDataset, root: Path, mirror: str | None) -> list[str]:
    """Folders and addresses to ask, in order: DATASET_MIRROR, ../shared/NAME beside the project, the public mirrors."""
    beside = root.parent / "shared" / dataset.name
    local = [str(beside)] if beside.is_dir() else []
    if mirror and not is_address(mirror):
        mirror = str(root / mirror)  # not below the temporary folder that DVC may run this in
    return [*([mirror] if mirror else []), *local, *dataset.mirrors]


def is_address(source: str) -> bool:
    """Whether a source is on the web, and not a folder."""
    return ADDRESS.match(source) is not None


def fetch_file(file: RemoteFile, destination: Path, sources: Iterable[str]) -> str:
    """Put `file` at `destination` from the first source that has it intact, and return that source.

    Nothing is asked for when `destination` is intact already. Raises PipelineError when no source has the file:
    it lists each with its reason and says how to go on without a network.
    """
    if destination.is_file() and sha256(destination) == file.sha256:
        return "already there"
    reasons = []
    for source in sources:
        try:
            with replacing(destination) as temporary:
                if is_address(source):
                    download(f"{source.rstrip('/')}/{file.name}", temporary, file.size)
                else:
                    copy(Path(source), file.name, temporary)
                check_intact(temporary, file.sha256)
            return source
        except SourceError as error:
            reasons.append(f"  {source}: {error}")
            tqdm.write(without_secrets(f"fetch: {file.name}: {source}: {error}; trying the next source"))
    raise PipelineError(
        "\n".join(
            [
                f"no source has {file.name} intact:",
                *reasons,
                "Without a network, name a folder that has the four files: DATASET_MIRROR=/path/to/folder dvc repro; "
                "or use the dataset that needs none: dvc exp run -S dataset=digits",
            ]
        )
    )


def copy(folder: Path, name: str, destination: Path) -> None:
    """Copy one file out of a local folder. Raises SourceError if the folder or the file is not there."""
    if not folder.is_dir():
        raise SourceError("no such folder")
    if not (folder / name).is_file():
        raise SourceError(f"the folder has no {name}")
    try:
        shutil.copyfile(folder / name, destination)
    except PermissionError:
        raise SourceError(f"{name} may not be read") from None


def download(url: str, destination: Path, size: int) -> None:
    """Download `url`, with a progress bar on a terminal; a cut download is resumed, or else started again.

    Raises SourceError when the address answers with an error that will not pass, or with more than `size` bytes, or
    after ATTEMPTS attempts.
    """
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(BACK_OFF * 2 ** (attempt - 1))
        try:
            return download_rest(url, destination, size)
        except (InterruptedDownloadError, requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
            reason = describe(error)
    raise SourceError(f"{reason} ({ATTEMPTS} attempts)")


def download_rest(url: str, destination: Path, size: int) -> None:
    """Ask for what `destination` lacks of the `size` bytes of `url`.

    Raises InterruptedDownloadError if it is worth asking again, else SourceError.
    """
    have = destination.stat().st_size if destination.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            destination.unlink(missing_ok=True)  # it is longer than the source's file: start again
            raise InterruptedDownloadError("answered 416 to a request to resume")
        if answer.status_code == HTTPStatus.TOO_MANY_REQUESTS or answer.status_code >= SERVER_ERROR:
            raise InterruptedDownloadError(f"answered {answer.status_code} {answer.reason}")
        if not answer.ok:
            raise SourceError(f"answered {answer.status_code} {answer.reason}")
        resumed = answer.status_code == HTTPStatus.PARTIAL_CONTENT
        length, have = answer.headers.get("Content-Length", ""), have if resumed else 0
        progress = tqdm(
            desc=destination.name,
            initial=have,
            total=int(length) + have if length.isdecimal() and len(length) < DIGITS else None,
            unit="B",
            unit_scale=True,
            disable=None,
        )
        with progress, destination.open("ab" if resumed else "wb") as file:
            for chunk in answer.iter_content(CHUNK):
                have += len(chunk)
                if have > size:
                    raise SourceError(f"sends more than the file's {size:,} bytes")
                progress.update(file.write(chunk))


def describe(error: Exception) -> str:
    """A short reason for a failed request, without the library's layers."""
    if isinstance(error, requests.Timeout):
        return "timed out"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection was cut half-way"
    if isinstance(error, requests.ConnectionError):
        return "cannot be reached"
    return str(error)


def check_intact(path: Path, expected: str) -> None:
    """Raise SourceError, saying how the file is broken, unless its SHA-256 is the expected one."""
    found = sha256(path)
    if found == expected:
        return
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        raise SourceError("answered with an HTML page instead of the file")
    if start and not start.startswith(b"\x1f\x8b"):
        raise SourceError("the file is not gzip")
    try:
        with gzip.open(path) as stream:
            while stream.read(CHUNK):
                pass
    except EOFError:
        raise SourceError(f"the file is cut short at {path.stat().st_size:,} bytes") from None
    except (OSError, zlib.error) as error:
        raise SourceError(f"the file is damaged ({error})") from None
    raise SourceError(f"SHA-256 {found[:12]}… instead of {expected[:12]}…: another file, or a changed one")
