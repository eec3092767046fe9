"""Real servers of a registered model, and requests as clients send them."""

import base64
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests

from pipeline.commands.serve.connections import PATIENCE
from tests.commands.serve.conftest import Registered
from tests.commands.serve.test_picture import canvas, png
from tests.commands.serve.test_servable import damaged
from tests.conftest import Start, environment, free_port, serve

JSON = {"Content-Type": "application/json"}
WRONG = {
    "shape": ([[[0] * 28] * 27], "expected images of shape (N, 28, 28), got shape (1, 27, 28)"),
    "dtype": ([[[0.5] * 28] * 28], "pixels must be integers from 0 to 255, got float"),
    "range": ([[[0] * 28] * 27 + [[256] * 28]], "but image 0 has 256 in row 27, column 0"),
}


def ask(address: str, images: Any) -> requests.Response:
    """Send images in the format of MLflow's clients."""
    return requests.post(f"{address}/invocations", json={"inputs": images}, timeout=60)


def check_answers(address: str, registered: Registered) -> None:
    """Check that the server returns the network's probabilities, and status 400 for invalid images."""
    images = registered.images.tolist()
    for form in (images, {"images": images}, [base64.b64encode(png(image)).decode() for image in registered.images]):
        answer = ask(address, form)
        assert answer.status_code == 200, answer.text
        np.testing.assert_allclose(answer.json()["predictions"], registered.probabilities, atol=1e-5)
    for wrong, message in WRONG.values():
        refused = ask(address, wrong)
        assert refused.status_code == 400, refused.text
        assert message in refused.json()["message"]
        assert len(refused.text) < 500, "the response does not repeat the request"
    headers = {"Content-Type": "application/json"}
    assert requests.post(f"{address}/invocations", data="{", headers=headers, timeout=60).status_code == 400


def test_mlflow_serves_the_champion(registered: Registered, start: Start) -> None:
    port = free_port()
    command = ("models", "serve", "-m", f"models:/{registered.name}@champion", "--env-manager", "local")
    serve(start, registered.root, port, *command, MLFLOW_TRACKING_URI=registered.store.uri)
    check_answers(f"http://127.0.0.1:{port}", registered)


@pytest.fixture
def address(registered: Registered, start: Start) -> str:
    """The address at which `make serve` serves the model."""
    command = ["python", "-m", "pipeline.commands.serve", "--name", registered.name, "--port", str(free_port())]
    process = start(command, registered.root)
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line)
        if found := re.fullmatch(r"Draw a digit at (http://127\.0\.0\.1:\d+)\n", line):
            return found[1]
    raise AssertionError("".join(lines))


def test_the_page_and_its_endpoints(registered: Registered, address: str) -> None:
    check_answers(address, registered)
    page = requests.get(address, timeout=60)
    assert "<title>Draw a digit</title>" in page.text
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert not re.search(r"""(src|href)=["'](?!data:)""", page.text), "the page is a single file"
    about = requests.get(f"{address}/about", timeout=60).json()
    assert about == {"name": "numbers", "version": "1", "accuracy": 0.5, "image_shape": [28, 28]}
    drawn = requests.post(f"{address}/read", data=png(canvas(50, 80, 150, 60)), timeout=60).json()
    image = np.array(drawn["image"], np.uint8)
    answer = ask(address, image[None].tolist()).json()["predictions"]
    np.testing.assert_allclose([drawn["probabilities"]], answer, atol=1e-6)
    described = requests.get(f"{address}/docs", timeout=60)
    assert "POST /invocations" in described.text
    assert "default-src 'none'" in described.headers["Content-Security-Policy"]
    assert not re.search(r"""(src|href)=["']""", described.text)
    for path in ("/redoc", "/openapi.json", "/docs/oauth2-redirect"):
        assert requests.get(f"{address}{path}", timeout=60).status_code == 404, "these pages load code from other sites"
    for content, status, message in (
        (png(np.zeros((280, 280), np.uint8)), 400, "the picture is blank"),
        (b"GIF89a", 400, "the file is not a valid PNG"),
        (base64.b64decode(damaged(color=3)), 400, "the file is not a valid PNG"),
        (b"\0" * (1 << 20) + b"\0", 413, "the picture is larger than 1 MiB"),
    ):
        refused = requests.post(f"{address}/read", data=content, timeout=60)
        assert (refused.status_code, refused.json()) == (status, {"error": message})


def test_the_formats_of_clients(registered: Registered, address: str) -> None:
    images, flat = registered.images.tolist(), registered.images.reshape(-1, 28 * 28).tolist()
    columns = [f"pixel{number}" for number in range(28 * 28)]
    frame = {"columns": columns, "data": flat}
    pictures = [{"b64": base64.b64encode(png(image)).decode()} for image in registered.images]
    for body in (
        *({"inputs": images}, {"instances": images}, {"inputs": {"images": images}}, {"instances": flat}),
        *({"instances": [{"images": image} for image in images]}, {"instances": pictures}),
        *({"inputs": [picture["b64"] for picture in pictures]}, {"inputs": registered.images[..., None].tolist()}),
        *({"dataframe_split": frame}, {"dataframe_split": {"data": flat}}),
        {
            "dataframe_split": {
                "columns": [f"{row}x{column}" for row in range(28) for column in range(28)],
                "data": flat,
            }
        },
        {"signature_name": "serving_default", "instances": images},
    ):
        answer = requests.post(f"{address}/invocations", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        np.testing.assert_allclose(answer.json()["predictions"], registered.probabilities, atol=1e-5)
    by_column = [f"{row}x{column}" for column in range(28) for row in range(28)]
    unordered = (columns[::-1], by_column, ["label", *columns[1:]], columns[:1] * 784, ["1" * 24_000 + "x"])
    expected = "expected a JSON object with one of the keys inputs, instances, dataframe_split, got "
    for wrong, message in (
        *(
            ({"dataframe_split": {"columns": names, "data": flat}}, "the columns are not numbered")
            for names in unordered
        ),
        ({"dataframe_split": frame | {"data": [[0]]}}, "rows with another number of values than its 784 columns"),
        ({"dataframe_split": flat}, "dataframe_split must be an object with the keys columns and data"),
        ({"dataframe_split": {"columns": 3, "data": flat}}, "dataframe_split must be an object with the keys"),
        ({"dataframe_split": {"columns": None, "data": 3}}, "dataframe_split must be an object with the keys"),
        ({"inputs": images, "instances": images}, f"{expected}'inputs', 'instances'"),
        ({"inputs": images, "params": {}}, f"{expected}'inputs', 'params'"),
        ({}, f"{expected}none"),
        ([], f"{expected}a list"),
        (images, f"{expected}a list"),
        ({"x" * 10_000: 1}, f"{expected}'xxxx"),
    ):
        refused = requests.post(f"{address}/invocations", json=wrong, timeout=60)
        assert refused.status_code == 400, refused.text
        assert message in refused.json()["message"]
        assert len(refused.text) < 500, "the response does not repeat the request"
    twice = json.dumps({"inputs": images})[:-1] + ', "inputs": []}'
    refused = requests.post(f"{address}/invocations", data=twice, headers=JSON, timeout=60)
    assert (refused.status_code, "an object has a key twice" in refused.text) == (400, True)
    table = ",".join(columns) + "\n" + "\n".join(",".join(map(str, row)) for row in flat)
    refused = requests.post(f"{address}/invocations", data=table, headers={"Content-Type": "text/csv"}, timeout=60)
    assert (refused.status_code, refused.json()["error"][:36]) == (415, "the Content-Type is not supported: s")


def test_requests_are_limited_in_size_number_and_depth(registered: Registered, address: str) -> None:
    """The size limit also holds for requests without a Content-Length; concurrent requests are queued."""
    large = b" " * ((16 << 20) + 1)

    def in_parts() -> Iterator[bytes]:
        for start in range(0, len(large), 1 << 16):
            yield large[start : start + (1 << 16)]

    for path in ("/invocations", "/read"):
        for data in (large, in_parts()):
            refused = requests.post(f"{address}{path}", data=data, headers=JSON, timeout=60)
            assert (refused.status_code, refused.json()) == (413, {"error": "a request body can be at most 16 MiB"})
    wide = png(np.pad(canvas(50, 80, 150, 60), 884))
    with ThreadPoolExecutor(12) as executor:
        answers = [executor.submit(requests.post, f"{address}/read", data=wide, timeout=60) for _ in range(12)]
        assert {answer.result().status_code for answer in answers} == {200}
    check_answers(address, registered)
    deep = requests.post(f"{address}/invocations", data="[" * 100_000, headers=JSON, timeout=60)
    assert (deep.status_code, deep.json()) == (400, {"error": "the request body is nested too deeply"})
    assert requests.post(f"{address}/invocations", data=b"[]", timeout=60).status_code == 415


def test_slow_clients_do_not_block_others(registered: Registered, address: str) -> None:
    """Two clients send requests of the largest size and do not read the response."""
    host, _, port = address.removeprefix("http://").partition(":")
    images = json.dumps({"inputs": np.zeros((4000, 28, 28), int).tolist()}).encode()
    slow = []
    for _ in range(2):
        slow.append(socket.create_connection((host, int(port))))
        head = "POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        slow[-1].sendall(f"{head}Content-Length: {len(images)}\r\n\r\n".encode() + images)
    check_answers(address, registered)
    for connection in slow:
        connection.close()


ESTABLISHED = "01"  # in Linux's table of connections
FILES = 256  # files that a process may open, as on some systems
HALF = b"GET / HTTP/1.1\r\nHost: 127"
DRIP = b"POST /read HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nx"


@contextmanager
def connections(address: str, number: int, content: bytes) -> Iterator[list[socket.socket]]:
    """Connections whose clients send a part of a request, and wait."""
    host, _, port = address.removeprefix("http://").partition(":")
    opened = []
    try:
        for _ in range(number):
            opened.append(socket.create_connection((host, int(port)), timeout=60))
            opened[-1].sendall(content)
        yield opened
    finally:
        for connection in opened:
            connection.close()


@pytest.fixture
def limited(registered: Registered, start: Start) -> tuple[str, "subprocess.Popen[str]"]:
    """A server that may open few files, and its address."""
    port = str(free_port())
    command = ["sh", "-c", f'ulimit -n {FILES}; exec "$@"', "sh", sys.executable, "-m", "pipeline.commands.serve"]
    process = start([*command, "--name", registered.name, "--port", port], registered.root)
    assert process.stdout
    while process.stdout.readline() != "Press Ctrl-C to stop.\n":
        assert process.poll() is None
    return f"http://127.0.0.1:{port}", process


@pytest.mark.parametrize("content", [b"", HALF, DRIP, b"GET /about HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\0\r\n\r\n"])
def test_clients_that_stop_sending_do_not_block_others(
    limited: tuple[str, "subprocess.Popen[str]"], content: bytes
) -> None:
    address, process = limited
    with connections(address, 300, content):
        for _ in range(3):
            assert requests.get(f"{address}/about", timeout=5).status_code == 200
            answer = requests.post(f"{address}/read", data=png(canvas(50, 80, 150, 60)), timeout=5)
            assert answer.status_code == 200, answer.text
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        logged = process.communicate(timeout=60)[0]
        assert logged.count("Traceback") < 20, "asyncio logs that no more files can be opened, at most once a second"
        assert time.monotonic() - begun < 4
        assert process.returncode == 0


def test_a_client_that_stops_sending_is_disconnected(address: str) -> None:
    begun = time.monotonic()
    for content in (b"", HALF):
        with connections(address, 1, content) as (connection,), suppress(ConnectionResetError):
            assert connection.recv(1) == b""
    assert time.monotonic() - begun < 3 * PATIENCE


TCP = Path("/proc/net/tcp")  # Linux's connections


def unsent(port: int) -> int | None:
    """Bytes that the system holds for the client with this port; None if it is no longer connected."""
    for line in TCP.read_text(encoding="utf-8").splitlines()[1:]:
        _, _, remote, state, queues, *_ = line.split()
        if state == ESTABLISHED and int(remote.rpartition(":")[2], 16) == port:
            return int(queues.partition(":")[0], 16)
    return None


@pytest.mark.skipif(not TCP.exists(), reason="requires Linux")
@pytest.mark.parametrize("stopped_at_once", [False, True])
def test_a_client_that_reads_nothing_and_breaks_http_is_disconnected(
    limited: tuple[str, "subprocess.Popen[str]"], stopped_at_once: bool
) -> None:
    """A part of its responses waits in the server's own buffer, so that the connection cannot be closed in order."""
    address, process = limited
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", int(address.rpartition(":")[2])))
        port, held, before = slow.getsockname()[1], 0, -1
        while held > before:  # until the system takes no more
            before = held
            for _ in range(3):
                slow.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                time.sleep(0.01)
            held = unsent(port) or 0
        slow.sendall(b"GET /about HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        time.sleep(0.5)
        slow.sendall(b"-5\r\n")
        time.sleep(0.5)
        end = time.monotonic() + 2 * PATIENCE
        while not stopped_at_once and unsent(port) is not None:
            assert time.monotonic() < end
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[0].strip() == ""
        assert process.returncode == 0


def test_requests_from_other_sites_are_rejected(address: str) -> None:
    picture = png(canvas(50, 80, 150, 60))
    for origin, status in (
        (address, 200),
        ("http://localhost:5001", 200),
        ("https://digits.example", 403),
        ("null", 403),
    ):
        for path in ("/read", "/invocations"):
            answer = requests.post(f"{address}{path}", data=picture, headers={"Origin": origin}, timeout=60)
            assert (answer.status_code == 403) == (status == 403), (origin, path)
    assert (
        requests.post(f"{address}/read", data=picture, headers={"Origin": "http://[::1"}, timeout=60).status_code == 403
    )
    text = {"Content-Type": "text/plain"}
    assert requests.post(f"{address}/read", data=picture, headers=text, timeout=60).status_code == 415


def test_ctrl_c_stops_the_server_silently(registered: Registered, start: Start) -> None:
    command = [sys.executable, "-m", "pipeline.commands.serve", "--name", registered.name, "--port", str(free_port())]
    process = start(command, registered.root)
    assert process.stdout
    while process.stdout.readline() != "Press Ctrl-C to stop.\n":
        assert process.poll() is None
    time.sleep(1)  # until the server runs
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0].strip() == ""
    assert process.returncode == 0


def test_a_missing_champion_is_a_one_line_error(registered: Registered) -> None:
    command = ["python", "-m", "pipeline.commands.serve", "--name", "other"]
    ended = subprocess.run(
        command, cwd=registered.root, env=environment({}), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("serve: ")
    assert line.endswith("`make promote` registers the current model")


def test_only_this_machine_reaches_the_server(address: str) -> None:
    port = address.rpartition(":")[2]
    for host, status in (("localhost", 200), (f"127.0.0.1:{port}", 200), ("digits.example", 400), ("[::1]", 400)):
        for path in ("/", "/about", "/ping"):
            assert requests.get(f"{address}{path}", headers={"Host": host}, timeout=60).status_code == status, host
    preflight = {"Origin": "https://digits.example", "Access-Control-Request-Method": "POST"}
    answer = requests.options(f"{address}/read", headers=preflight, timeout=60)
    assert "Access-Control-Allow-Origin" not in answer.headers
    listening = [each.laddr for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    assert [address for address in listening if address[1:] == (int(port),)] == [("127.0.0.1", int(port))]
