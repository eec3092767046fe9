"""A real server with requests that hypothesis and schemathesis make: the right answer, or status 4xx and a reason."""

import http.client
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
import schemathesis
from hypothesis import example, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from pipeline.commands.serve import limits
from pipeline.commands.serve.picture import read_picture
from tests.commands.serve.conftest import Registered, registered_once  # noqa: F401 (a fixture)
from tests.commands.serve.test_picture import canvas, png
from tests.conftest import environment, free_port
from tests.fuzzing.inputs import FUZZING, PATIENCE, damaged
from tests.fuzzing.targets import JSON_WORDS, SIZES
from tests.fuzzing.test_memory import SIDE, pictures

JSON, PNG = "application/json", "image/png"


class Server(NamedTuple):
    """A server of a registered model: its port, its process, its output and the model's known answers."""

    port: int
    process: "subprocess.Popen[bytes]"
    log: Path
    registered: Registered

    def ask(self, path: str, body: bytes, headers: dict[str, str], patience: float = PATIENCE) -> tuple[int, Any]:
        """Send one request, and return the status and the parsed answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=patience)
        try:
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def probabilities(self, images: Any) -> Any:
        """The answer to images that are valid."""
        status, answer = self.ask("/invocations", json.dumps({"inputs": images}).encode(), {"Content-Type": JSON})
        assert status == 200, answer
        return answer["predictions"]

    def check(self) -> None:
        """Check that the server still answers correctly, and that no request left a traceback in its output."""
        answers = self.probabilities(self.registered.images.tolist())
        np.testing.assert_allclose(answers, self.registered.probabilities, atol=1e-5)
        output = self.log.read_text(encoding="utf-8")
        assert "Traceback" not in output, output[-5000:]
        assert self.process.poll() is None

    @property
    def memory(self) -> int:
        """Bytes that the server's process holds."""
        return int(psutil.Process(self.process.pid).memory_info().rss)


@pytest.fixture(scope="module")
def server(registered_once: Registered, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:  # noqa: F811
    """A server, as `make serve` starts it."""
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "pipeline.commands.serve", "--name", registered_once.name, "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=registered_once.root, env=environment({}), stdout=output, stderr=subprocess.STDOUT
        )
    try:
        while not re.search(rb"Draw a digit at http://127\.0\.0\.1:%d\n" % port, log.read_bytes()):
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.2)
        yield Server(port, process, log, registered_once)
    finally:
        process.kill()
        process.wait()


def check_refusal(status: int, answer: Any) -> None:
    """Check that an answer is a reason in one line, without the request."""
    assert 400 <= status < 500, (status, answer)
    reason = answer.get("error") or answer.get("message")
    assert reason, answer
    assert "\n" not in reason
    assert len(reason) < 500, "the response does not repeat the request"


def images_of(body: bytes) -> Any:
    """The images in a body with one plain list of images, as NumPy reads it; None for every other body."""
    try:
        (images,) = json.loads(body).values()
        array = np.array(images, np.uint8)
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError):
        return None
    return array.reshape(-1, 28, 28) if array.size and array.shape[1:] in ((28, 28), (784,), (28, 28, 1)) else None


def test_bodies_for_invocations(server: Server) -> None:
    image = np.zeros((1, 28, 28), int)
    image[0, 5:20, 14] = 255
    intact = [json.dumps({key: image.tolist()}).encode() for key in ("inputs", "instances")]

    @given(damaged(intact, JSON_WORDS))
    @example(b"[" * 100_000)
    @example(b'{"inputs": ' + b"[" * 900 + b"]" * 900 + b"}")
    @example(b'{"inputs": [[1e308, [1e308, [1e308]]]]}')
    @example(b'{"inputs": [[' + b"1e308," * 783 + b"1e308]]}")
    @example(b'{"inputs": [[' + b"9" * 4000 + b"]]}")
    @example(b'{"\\ud800": 1}')
    @example(b'{"inputs": {"\\ud800": 1}}')
    @example(b'{"inputs": ["\\ud800"]}')
    @example(b'{"inputs": "' + b"x" * 100_000 + b'"}')
    def check(body: bytes) -> None:
        status, answer = server.ask("/invocations", body, {"Content-Type": JSON})
        if status != 200:
            check_refusal(status, answer)
        elif (images := images_of(body)) is not None:
            np.testing.assert_allclose(answer["predictions"], server.probabilities(images.tolist()), atol=1e-6)

    check()
    server.check()


def test_pictures_for_read(server: Server) -> None:
    @given(damaged([png(canvas(5, 8, 15, 6)), png(np.eye(28, dtype=np.uint8) * 255)], SIZES))
    def check(body: bytes) -> None:
        status, answer = server.ask("/read", body, {"Content-Type": PNG})
        if status == 200:
            image = read_picture(body)
            assert answer["image"] == image.tolist()
            np.testing.assert_allclose([answer["probabilities"]], server.probabilities([image.tolist()]), atol=1e-6)
        else:
            check_refusal(status, answer)

    check()
    server.check()


WORDS = st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=20)
HEADERS = st.sampled_from(
    [
        *(f"Content-Length: {length}" for length in ("5", "99999", "-1", "5, 6", "x", "99999999999999999999")),
        *("Transfer-Encoding: chunked", "Transfer-Encoding: gzip, chunked", "Transfer-Encoding: x"),
        *(
            "Content-Encoding: gzip",
            f"Content-Type: {JSON}",
            f"Content-Type: {PNG}",
            "Content-Type: ",
            "Content-Type: é",
        ),
        *("Content-Type: application/json; charset=utf-16", "Host: digits.example", "Host: [", "Connection: close"),
        *("Origin: http://localhost", "Origin: null", "Expect: 100-continue", "Range: bytes=5-", "Upgrade: websocket"),
        *("X-HTTP-Method-Override: PUT", " folded", "no colon", "X: \x7f"),
    ]
)
METHODS = ("POST", "GET", "HEAD", "OPTIONS", "PUT", "BREW")
LINES = st.sampled_from(
    [
        *(f"{method} {path} HTTP/1.1" for method in METHODS for path in ("/read", "/invocations")),
        *("GET / HTTP/1.1", "GET /docs HTTP/1.1", "GET /about HTTP/1.1", "GET /ping HTTP/1.1", "GET /version HTTP/1.1"),
        *("POST http://localhost/read HTTP/1.1", "POST //read HTTP/1.1", "POST /read?x=%00 HTTP/1.0"),
        *("GET /%ff HTTP/1.1", "GET /../../etc/passwd HTTP/1.1", "CONNECT localhost:1 HTTP/1.1", "POST /read", "\0"),
    ]
)
BODIES = st.binary(max_size=50) | st.sampled_from(
    [b"5\r\nhello\r\n0\r\n\r\n", b"ffffffff\r\nhello", b"-5\r\nhello\r\n", b'{"inputs": []}', b"GET / HTTP/1.1\r\n\r\n"]
)
ANSWER = re.compile(rb"HTTP/1\.1 ([1-4]\d\d) ")


SILENT = 0.5  # the largest share of requests without an answer: 0.18 to 0.23 were measured


def test_malformed_http(server: Server) -> None:
    """A request that breaks HTTP may also be answered by closing the connection, but most are not."""
    answers: list[bytes] = []

    @settings(max_examples=10_000 if FUZZING else 100)
    @given(LINES, st.lists(HEADERS | WORDS, max_size=5), BODIES)
    @example("POST /read HTTP/1.1", ["Transfer-Encoding: chunked", "Origin: null"], b"-5\r\n")  # refused at once
    @example("GET /about HTTP/1.1", ["Transfer-Encoding: chunked"], b"-5\r\n")
    @example("HEAD /about HTTP/1.1", ["Transfer-Encoding: chunked"], b"-5\r\n")  # no response may have a body
    @example("POST /invocations HTTP/1.1", ["Transfer-Encoding: chunked", f"Content-Type: {JSON}"], b"1\r\n{\r\n-5\r\n")
    def check(line: str, headers: list[str], body: bytes) -> None:
        head = "\r\n".join([line, "Host: localhost", *headers, "", ""]).encode("latin-1")
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
            connection.sendall(head + body)
            connection.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        answers.append(answer)
        if answer:
            assert ANSWER.match(answer), answer[:200]
            assert b"Traceback" not in answer

    check()
    server.check()
    assert answers.count(b"") <= SILENT * len(answers)


@pytest.mark.parametrize("line", ["GET /about HTTP/1.1", "HEAD /about HTTP/1.1", "POST /read HTTP/1.1\r\nOrigin: null"])
def test_a_body_that_is_malformed_after_the_response(server: Server, line: str) -> None:
    head = f"{line}\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
        connection.sendall(head)
        assert ANSWER.match(connection.recv(1 << 16))
        connection.sendall(b"-5\r\n")
        while connection.recv(1 << 16):
            pass
    server.check()


BATCH = {"type": "array", "minItems": 1, "maxItems": 3}
ROW = {"type": "array", "minItems": 784, "maxItems": 784, "items": {"type": "integer", "minimum": 0, "maximum": 255}}
DESCRIPTION: dict[str, Any] = {  # of the page /docs: FastAPI's own has no bodies, because the server reads them itself
    "openapi": "3.1.0",
    "info": {"title": "served", "version": "1"},
    "paths": {
        "/invocations": {
            "post": {
                "requestBody": {
                    "required": True,
                    "content": {
                        JSON: {
                            "schema": {
                                "type": "object",
                                "properties": {"inputs": BATCH | {"items": ROW}},
                                "required": ["inputs"],
                                "additionalProperties": False,
                            }
                        }
                    },
                },
                "responses": {"200": {"description": "probabilities"}, "4XX": {"description": "a reason"}},
            }
        },
        "/read": {
            "post": {
                "requestBody": {
                    "required": True,
                    "content": {PNG: {"schema": {"type": "string", "format": "binary"}}},
                },
                "responses": {"200": {"description": "a digit"}, "4XX": {"description": "a reason"}},
            }
        },
    },
}


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        ("/invocations", GenerationMode.POSITIVE),
        ("/invocations", GenerationMode.NEGATIVE),
        ("/read", GenerationMode.POSITIVE),
    ],
)
def test_requests_from_the_description(server: Server, path: str, mode: GenerationMode) -> None:
    """Requests as schemathesis makes them from the description, with its checks of the answers."""
    described = schemathesis.openapi.from_dict(DESCRIPTION)

    @settings(max_examples=1000 if FUZZING else 5)
    @given(described[path]["POST"].as_strategy(generation_mode=mode))
    def check(case: "schemathesis.Case[Any]") -> None:
        answer = case.call(base_url=f"http://127.0.0.1:{server.port}", timeout=PATIENCE)
        case.validate_response(answer, checks=[not_a_server_error])
        body: Any = case.body
        if answer.status_code != 200:
            check_refusal(answer.status_code, answer.json())
        elif path == "/invocations":
            images = np.array(body["inputs"], np.uint8).reshape(-1, 28, 28).tolist()
            np.testing.assert_allclose(answer.json()["predictions"], server.probabilities(images), atol=1e-6)

    check()
    server.check()


LARGEST = limits.LARGEST if FUZZING else limits.LARGE + 1000  # bytes of a body: the largest takes up to seven seconds
JSON_MULTIPLE = 70  # times the largest body, as one is processed at a time: it takes 55, and others arrive
PICTURE_MULTIPLE = 30  # times the bytes of their largest pictures, one byte for a pixel


def hostile() -> dict[str, tuple[str, bytes]]:
    """The requests that take the most memory: many small objects, and the largest pictures."""
    nested = b"[" * 400 + b"]" * 400 + b","
    start, pixel = b'{"inputs": [', b"[%s]" % b",".join([b"[%s]" % b",".join([b"[0]"] * 28)] * 28)
    bodies = {
        "lists": start + b"[]," * ((LARGEST - 20) // 3) + b"0]}",
        "objects": start + b'{"":0},' * ((LARGEST - 20) // 7) + b"0]}",
        "nested": start + nested * (LARGEST // len(nested) - 1) + '"😀"]'.encode(),  # invalid at its end
        "pixels": start + b",".join([pixel] * (LARGEST // (len(pixel) + 1) - 1)) + b"]}",
        "floats": start + b"1e308," * ((LARGEST - 20) // 6) + b"0]}",
        "strings": start + b'"",' * ((LARGEST - 20) // 3) + b'""]}',
    }
    found = {name: ("/invocations", body) for name, body in bodies.items()}
    return found | {name: ("/read", content) for name, (content, _) in pictures().items() if len(content) <= 1 << 20}


def test_hostile_requests_take_a_bounded_memory(server: Server) -> None:
    """Four of each at once: the peak is bounded, and the server releases what it does not need."""
    server.check()
    before, peaks = server.memory, {}
    for name, (path, body) in hostile().items():
        with ThreadPoolExecutor(2 * limits.AT_ONCE) as executor:
            headers = {"Content-Type": JSON if path == "/invocations" else PNG}
            waiting = [executor.submit(server.ask, path, body, headers, 120) for _ in range(2 * limits.AT_ONCE)]
            peaks[name] = 0
            while not all(answer.done() for answer in waiting):
                peaks[name] = max(peaks[name], server.memory - before)
                time.sleep(0.02)
            assert {answer.result()[0] for answer in waiting} <= {200, 400}, name
    server.check()
    held = max(JSON_MULTIPLE * LARGEST, limits.AT_ONCE * PICTURE_MULTIPLE * SIDE**2)
    assert max(peaks.values()) <= held, {name: f"{peak >> 20} MiB" for name, peak in peaks.items()}


def test_refused_requests_are_released(server: Server) -> None:
    path, body = hostile()["objects"]
    server.check()
    before = server.memory
    for _ in range(max(4, 20 * limits.LARGE // LARGEST)):
        assert server.ask(path, body, {"Content-Type": JSON}, 120)[0] == 400
    held = server.memory - before
    assert held <= JSON_MULTIPLE * LARGEST, f"{held >> 20} MiB"
