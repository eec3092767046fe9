"""Sources of a dataset's files, and verified downloads from them."""

import gzip
import sys
import time
import zlib
from collections.abc import Iterable
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path

import requests
import urllib3
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from pipeline.core.config import RemoteFile
from pipeline.core.errors import PipelineError, first_line, without_secrets
from pipeline.core.files import replacing, sha256
from pipeline.core.sources import is_address

ATTEMPTS = 4
TIMEOUT = (5.0, 20.0)  # seconds to connect, and between two chunks of a response
BACK_OFF = 0.5  # seconds before the second attempt; doubles with each further one
CHUNK = 1 << 16
DIGITS = 16  # a Content-Length with this many digits or more is ignored
SERVER_ERROR = 500  # and above: may be temporary
GZIP = b"\x1f\x8b"  # the first bytes of a gzip file
UNTRUSTED = "its certificate is not trusted: set REQUESTS_CA_BUNDLE to the file of its certificate authority"


class SourceError(Exception):
    """The source does not have the file intact; the message says why."""


class InterruptedDownloadError(Exception):
    """The download was interrupted, and another request may complete it."""


def fetch_file(file: RemoteFile, destination: Path, sources: Iterable[str]) -> str:
    """Fetch `file` to `destination` from the first source that has it intact, and return that source.

    Sends no request if `destination` is already intact. Raises PipelineError if no source has the file intact:
    the message lists the reason for each, and says how to continue without a network.
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
                    copy(Path(source), file.name, temporary, file.size)
                check_intact(temporary, file.sha256)
            return source
        except SourceError as error:
            reasons.append(f"  {source}: {error}")
            print(without_secrets(f"fetch: {file.name}: {source}: {error}; trying the next source"))
    raise PipelineError(
        "\n".join(
            [
                f"no source has {file.name} intact:",
                *reasons,
                "Without a network, use a folder with the four files: DATASET_MIRROR=/path/to/folder dvc repro; "
                "or the dataset that needs no download: dvc exp run -S dataset=digits",
            ]
        )
    )


def copy(folder: Path, name: str, destination: Path, size: int) -> None:
    """Copy the first `size` + 1 bytes of a file. Raises SourceError if the folder or the file cannot be read."""
    try:
        if not folder.is_dir():
            raise SourceError("no such folder")
        if not (folder / name).is_file():
            raise SourceError(f"the folder has no {name}")
        with (folder / name).open("rb") as file:
            content = file.read(size + 1)
    except PermissionError:
        raise SourceError(f"no permission to read {name}") from None
    except OSError as error:
        raise SourceError(f"{name} cannot be read ({error.strerror})") from None
    destination.write_bytes(content)


def download(url: str, destination: Path, size: int) -> None:
    """Download `url`, with a progress bar on a terminal; resume or restart an interrupted download.

    Raises SourceError if the server answers with a permanent error, if it sends more than `size` bytes, or after
    ATTEMPTS attempts.
    """
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(BACK_OFF * 2 ** (attempt - 1))
        try:
            return download_rest(url, destination, size)
        except (InterruptedDownloadError, requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
            reason = describe(error)
        except OSError as error:
            if error.errno is not None:  # of the destination
                raise
            raise SourceError(first_line(error)) from None  # of Requests, about its settings
    raise SourceError(f"{reason} ({ATTEMPTS} attempts)")


def download_rest(url: str, destination: Path, size: int) -> None:
    """Download the part of `url` that `destination` lacks, up to `size` bytes in total.

    Raises InterruptedDownloadError if a retry may succeed, else SourceError.
    """
    have = destination.stat().st_size if destination.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            destination.unlink(missing_ok=True)  # longer than the source's file: start again
            raise InterruptedDownloadError("answered 416 to a request to resume")
        if answer.status_code == HTTPStatus.TOO_MANY_REQUESTS or answer.status_code >= SERVER_ERROR:
            raise InterruptedDownloadError(f"answered {answer.status_code} {answer.reason}")
        if not answer.ok:
            raise SourceError(f"answered {answer.status_code} {answer.reason}")
        resumed = answer.status_code == HTTPStatus.PARTIAL_CONTENT
        length, have = answer.headers.get("Content-Length", ""), have if resumed else 0
        encoded = "Content-Encoding" in answer.headers  # of the file itself, or of its transfer
        limit = size + size // 100 + CHUNK if encoded else size
        total = int(length) + have if length.isdecimal() and len(length) < DIGITS else None
        shown = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with (
            Progress(*shown, disable=not sys.stdout.isatty()) as progress,
            destination.open("ab" if resumed else "wb") as file,
        ):
            task = progress.add_task(destination.name, total=total, completed=have)
            for chunk in answer.raw.stream(CHUNK, decode_content=False):
                have += len(chunk)
                if have > limit:
                    raise SourceError(f"sends more than the file's {size:,} bytes")
                progress.advance(task, file.write(chunk))
    if encoded:
        decode(destination, size)


def decode(path: Path, size: int) -> None:
    """Replace a gzip file that contains a gzip file of at most `size` bytes by its content.

    Servers declare the encoding `gzip` for a `.gz` file, and others compress it again for the transfer.
    """
    with suppress(OSError, EOFError, zlib.error), gzip.open(path) as stream:
        content = stream.read(size + 1)
        if content.startswith(GZIP) and len(content) <= size:
            path.write_bytes(content)


def describe(error: Exception) -> str:
    """Short reason for a failed request, without the nested messages of the library."""
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
        return "timed out"
    if isinstance(error, urllib3.exceptions.ProtocolError):
        return "the connection was interrupted"
    if isinstance(error, requests.exceptions.SSLError):
        return UNTRUSTED if "CERTIFICATE_VERIFY_FAILED" in str(error) else "its TLS is not usable"
    if isinstance(error, requests.ConnectionError):
        return "cannot be reached"
    return str(error)


def check_intact(path: Path, expected: str) -> None:
    """Raise SourceError, with a diagnosis, unless the file's SHA-256 is the expected one."""
    found = sha256(path)
    if found == expected:
        return
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        raise SourceError("answered with an HTML page instead of the file")
    if start and not start.startswith(GZIP):
        raise SourceError("the file is not gzip")
    try:
        with gzip.open(path) as stream:
            while stream.read(CHUNK):
                pass
    except EOFError:
        raise SourceError(f"the file is truncated at {path.stat().st_size:,} bytes") from None
    except (OSError, zlib.error) as error:
        raise SourceError(f"the file is damaged ({error})") from None
    raise SourceError(f"SHA-256 {found[:12]}… instead of {expected[:12]}…: a different or modified file")
