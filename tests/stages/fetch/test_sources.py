import contextlib
import gzip
import hashlib
import random
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.core.config import IdxDataset, RemoteFile
from pipeline.core.errors import PipelineError
from pipeline.core.sources import places
from pipeline.stages.fetch import sources
from pipeline.stages.fetch.sources import fetch_file
from tests.conftest import configured

CONTENT = gzip.compress(random.Random(0).randbytes(300_000), 1, mtime=0)
FILE = RemoteFile(name="images.gz", sha256=hashlib.sha256(CONTENT).hexdigest(), size=len(CONTENT))
HTML = b"<!DOCTYPE html><html><body>Sign in to the hotel's network</body></html>"

Answer = Callable[[BaseHTTPRequestHandler], None]


class Mirror:
    """An HTTP server that gives one answer of a list per request, in order, and then repeats the last one."""

    def __init__(self, *answers: Answer) -> None:
        self.requests: list[str | None] = []
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = answers[min(len(mirror.requests), len(answers) - 1)]
                mirror.requests.append(self.headers.get("Range"))
                answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/mnist/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def mirror() -> Iterator[Callable[..., Mirror]]:
    mirrors: list[Mirror] = []

    def start(*answers: Answer) -> Mirror:
        mirrors.append(Mirror(*answers))
        return mirrors[-1]

    yield start
    for one in mirrors:
        one.close()


@pytest.fixture(autouse=True)
def _short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BACK_OFF", 0.01)
    monkeypatch.setattr(sources, "TIMEOUT", (1.0, 0.3))


def send(content: bytes, status: int = 200, promised: int | None = None) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(promised or len(content)))
        request.end_headers()
        request.wfile.write(content)

    return answer


def resume(request: BaseHTTPRequestHandler) -> None:
    start = int(request.headers["Range"].removeprefix("bytes=").rstrip("-"))
    send(CONTENT[start:], 206)(request)


def hang(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    threading.Event().wait(0.6)


def test_a_file_is_downloaded(tmp_path: Path, mirror: Callable[..., Mirror]) -> None:
    good = mirror(send(CONTENT))
    assert fetch_file(FILE, tmp_path / "raw" / "a.gz", [good.url]) == good.url
    assert [path.name for path in (tmp_path / "raw").iterdir()] == ["a.gz"]
    assert (tmp_path / "raw" / "a.gz").read_bytes() == CONTENT


def endless(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    with contextlib.suppress(OSError):  # the client has disconnected
        while True:
            request.wfile.write(bytes(1 << 16))


def boast(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", "many")
    request.end_headers()
    request.wfile.write(CONTENT)


def test_an_endless_response_does_not_fill_the_disk(tmp_path: Path, mirror: Callable[..., Mirror]) -> None:
    bad, longer = mirror(endless), mirror(send(CONTENT + b"more"))
    with pytest.raises(PipelineError, match=rf"(?s)sends more than the file's {len(CONTENT):,} bytes.*sends more than"):
        fetch_file(FILE, tmp_path / "a.gz", [bad.url, longer.url])
    assert len(bad.requests) == 1, "no retry"
    assert not (tmp_path / "a.gz").exists()


def test_a_content_length_that_is_not_a_number_is_ignored(tmp_path: Path, mirror: Callable[..., Mirror]) -> None:
    odd = mirror(boast)
    assert fetch_file(FILE, tmp_path / "a.gz", [odd.url]) == odd.url
    assert (tmp_path / "a.gz").read_bytes() == CONTENT


def refuse_ranges(request: BaseHTTPRequestHandler) -> None:
    send(b"", 416)(request)


def boast_without_end(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", "9" * 5000)
    request.end_headers()


def point_to(place: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", place)
        request.end_headers()

    return answer


@pytest.mark.parametrize(
    "answer",
    [refuse_ranges, boast_without_end, point_to("http://a..b/"), point_to("http://[::1/"), point_to("ftp://x/")],
)
def test_an_invalid_response_falls_back_to_the_next_source(
    tmp_path: Path, mirror: Callable[..., Mirror], answer: Answer
) -> None:
    bad, good = mirror(answer), mirror(send(CONTENT))
    assert fetch_file(FILE, tmp_path / "a.gz", ["s3://bucket/x", bad.url, good.url]) == good.url


def test_the_password_of_a_mirror_is_not_shown(
    tmp_path: Path, mirror: Callable[..., Mirror], capsys: pytest.CaptureFixture[str]
) -> None:
    address = mirror(send(b"", 404)).url.replace("://", "://me:hunter2@")
    with pytest.raises(PipelineError) as error:
        fetch_file(FILE, tmp_path / "a.gz", [f"{address}?token=hunter2"])
    output = f"{error.value} {capsys.readouterr()}"
    assert "hunter2" not in output
    assert "answered 404" in output


def test_an_intact_file_is_not_downloaded_again(tmp_path: Path, mirror: Callable[..., Mirror]) -> None:
    good = mirror(send(CONTENT))
    (tmp_path / "a.gz").write_bytes(CONTENT)
    assert fetch_file(FILE, tmp_path / "a.gz", [good.url]) == "already there"
    assert good.requests == []


def test_a_damaged_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(CONTENT[:-1])
    (tmp_path / "images.gz").write_bytes(CONTENT)
    fetch_file(FILE, tmp_path / "a.gz", [str(tmp_path)])
    assert (tmp_path / "a.gz").read_bytes() == CONTENT


def test_an_interrupted_download_is_resumed(tmp_path: Path, mirror: Callable[..., Mirror]) -> None:
    cutting = mirror(send(CONTENT[:200_000], promised=len(CONTENT)), resume)
    fetch_file(FILE, tmp_path / "a.gz", [cutting.url])
    assert (tmp_path / "a.gz").read_bytes() == CONTENT
    assert cutting.requests == [None, "bytes=200000-"]


def test_a_download_restarts_if_the_server_cannot_resume(tmp_path: Path, mirror: Callable[..., Mirror]) -> None:
    cutting = mirror(send(CONTENT[:200_000], promised=len(CONTENT)), send(CONTENT))
    fetch_file(FILE, tmp_path / "a.gz", [cutting.url])
    assert (tmp_path / "a.gz").read_bytes() == CONTENT
    assert cutting.requests == [None, "bytes=200000-"]


def test_a_busy_server_is_retried(tmp_path: Path, mirror: Callable[..., Mirror]) -> None:
    busy = mirror(send(b"", 503), send(b"", 429), send(CONTENT))
    fetch_file(FILE, tmp_path / "a.gz", [busy.url])
    assert len(busy.requests) == 3


@pytest.mark.parametrize(
    ("answer", "reason", "requests"),
    [
        (send(HTML), "answered with an HTML page instead of the file", 1),
        (send(CONTENT[:1000]), "the file is truncated at 1,000 bytes", 1),
        (send(CONTENT[:-8] + bytes(4) + CONTENT[-4:]), "the file is damaged", 1),
        (send(gzip.compress(b"other", mtime=0)), "a different or modified file", 1),
        (send(b"plain"), "the file is not gzip", 1),
        (send(b"", 404), "answered 404 Not Found", 1),
        (send(b"", 500), "answered 500 Internal Server Error (4 attempts)", 4),
        (send(CONTENT[:1000], promised=len(CONTENT)), "the connection was interrupted (4 attempts)", 4),
        (hang, "(4 attempts)", 4),
    ],
)
def test_a_failed_source_is_reported_and_the_next_is_tried(
    tmp_path: Path,
    mirror: Callable[..., Mirror],
    capsys: pytest.CaptureFixture[str],
    answer: Answer,
    reason: str,
    requests: int,
) -> None:
    bad, good = mirror(answer), mirror(send(CONTENT))
    assert fetch_file(FILE, tmp_path / "a.gz", [bad.url, good.url]) == good.url
    assert (tmp_path / "a.gz").read_bytes() == CONTENT
    printed = capsys.readouterr().out
    assert bad.url in printed
    assert reason in printed
    assert len(bad.requests) == requests


def test_if_all_sources_fail_each_is_listed_and_the_old_file_stays(
    tmp_path: Path, mirror: Callable[..., Mirror]
) -> None:
    lying, missing = mirror(send(HTML)), tmp_path / "nowhere"
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.gz").write_bytes(b"what was there")
    unreachable = "http://127.0.0.1:9/"
    with pytest.raises(PipelineError) as error:
        fetch_file(FILE, tmp_path / "a.gz", [str(missing), str(tmp_path / "empty"), lying.url, unreachable])
    message = str(error.value)
    assert f"{missing}: no such folder" in message
    assert f"{tmp_path / 'empty'}: the folder has no images.gz" in message
    assert f"{lying.url}: answered with an HTML page" in message
    assert f"{unreachable}: cannot be reached" in message
    assert "DATASET_MIRROR=" in message
    assert "dvc exp run -S dataset=digits" in message
    assert (tmp_path / "a.gz").read_bytes() == b"what was there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gz", "empty"]


def test_local_sources_come_first(tmp_path: Path) -> None:
    dataset = configured(tmp_path, recipe="baseline").dataset
    assert isinstance(dataset, IdxDataset)
    root = tmp_path / "project"
    assert places(dataset, root, None) == dataset.mirrors
    assert len(dataset.mirrors) >= 2
    (tmp_path / "shared" / "mnist").mkdir(parents=True)
    assert places(dataset, root, "/m") == ["/m", str(tmp_path / "shared" / "mnist"), *dataset.mirrors]
    assert places(dataset, root, "m")[0] == str(root / "m"), "also in the temporary folders of DVC"
    assert places(dataset, root, "https://m")[0] == "https://m"


def test_settings_of_a_source_that_are_wrong_do_not_affect_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "lost.pem"))
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / FILE.name).write_bytes(CONTENT)
    sources = ["https://127.0.0.1:9/", str(tmp_path / ("x" * 300)), str(tmp_path / "local")]
    assert fetch_file(FILE, tmp_path / "images.gz", sources) == sources[-1]
    assert "lost.pem; trying the next source" in capsys.readouterr().out
