"""Real servers of a registered model, and requests as clients send them."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psutil
import pytest
import requests

from tests.conftest import Start, environment, free_port, serve
from tests.serve.conftest import Registered
from tests.serve.test_picture import canvas, png

JSON = {"Content-Type": "application/json"}
WRONG = {
    "shape": ([[[0] * 28] * 27], "images of shape (N, 28, 28) are read here, and this has shape (1, 27, 28)"),
    "dtype": ([[[0.5] * 28] * 28], "grey levels are whole numbers from 0 to 255, and these are float64"),
    "range": ([[[0] * 28] * 27 + [[256] * 28]], "and image 0 has 256 in row 27, column 0"),
}


def ask(address: str, images: Any) -> requests.Response:
    """Send images as MLflow's clients do."""
    return requests.post(f"{address}/invocations", json={"inputs": images}, timeout=60)


def check_answers(address: str, registered: Registered) -> None:
    """The server answers with the network's probabilities, and with 400 to what is no image."""
    answer = ask(address, registered.images.tolist())
    assert answer.status_code == 200, answer.text
    np.testing.assert_allclose(answer.json()["predictions"], registered.probabilities, atol=1e-5)
    for images, message in WRONG.values():
        refused = ask(address, images)
        assert refused.status_code == 400, refused.text
        assert message in refused.json()["message"]
        assert len(refused.text) < 500, "what was sent is not sent back"
    headers = {"Content-Type": "application/json"}
    assert requests.post(f"{address}/invocations", data="{", headers=headers, timeout=60).status_code == 400


def test_mlflow_serves_the_champion(registered: Registered, start: Start) -> None:
    port = free_port()
    command = ("models", "serve", "-m", f"models:/{registered.name}@champion", "--env-manager", "local")
    serve(start, registered.root, port, *command, MLFLOW_TRACKING_URI=registered.store.uri)
    check_answers(f"http://127.0.0.1:{port}", registered)


@pytest.fixture
def address(registered: Registered, start: Start) -> str:
    """Where `make serve` serves the model."""
    command = ["python", "-m", "pipeline.serve", "--name", registered.name, "--port", str(free_port())]
    process = start(command, registered.root)
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line)
        if found := re.fullmatch(r"Draw a digit at (http://127\.0\.0\.1:\d+)\n", line):
            return found[1]
    raise AssertionError("".join(lines))


def test_the_page_and_what_it_asks(registered: Registered, address: str) -> None:
    check_answers(address, registered)
    page = requests.get(address, timeout=60)
    assert "<title>Draw a digit</title>" in page.text
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert not re.search(r"""(src|href)=["'](?!data:)""", page.text), "one file"
    about = requests.get(f"{address}/about", timeout=60).json()
    assert about == {"name": "numbers", "version": "1", "accuracy": 0.5, "image_shape": [28, 28]}
    drawn = requests.post(f"{address}/read", data=png(canvas(50, 80, 150, 60)), timeout=60).json()
    image = np.array(drawn["image"], np.uint8)
    answer = ask(address, image[None].tolist()).json()["predictions"]
    np.testing.assert_allclose([drawn["probabilities"]], answer, atol=1e-6)
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert requests.get(f"{address}{path}", timeout=60).status_code == 404, "they load code from elsewhere"
    for content, status, message in (
        (png(np.zeros((280, 280), np.uint8)), 400, "nothing is drawn"),
        (b"GIF89a", 400, "this is not a whole PNG picture"),
        (b"\0" * (1 << 20) + b"\0", 413, "a picture has at most 1 MiB"),
    ):
        refused = requests.post(f"{address}/read", data=content, timeout=60)
        assert (refused.status_code, refused.json()) == (status, {"error": message})


def test_a_request_costs_no_more_than_it_may(registered: Registered, address: str) -> None:
    """Also one that does not say how large it is; and many at once are answered one after another."""
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


def test_who_reads_slowly_keeps_nobody_waiting(registered: Registered, address: str) -> None:
    """Two that send as much as they may, and read nothing of the answer."""
    host, _, port = address.removeprefix("http://").partition(":")
    images = json.dumps({"inputs": np.zeros((4000, 28, 28), int).tolist()}).encode()
    slow = []
    for _ in range(2):
        slow.append(socket.create_connection((host, int(port))))
        head = "POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        slow[-1].sendall(f"{head}Content-Length: {len(images)}\r\n\r\n".encode() + images)
    check_answers(address, registered)
    for one in slow:
        one.close()


def test_pages_of_other_sites_are_not_answered(address: str) -> None:
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


def test_ctrl_c_ends_it_without_a_word(registered: Registered, start: Start) -> None:
    command = [sys.executable, "-m", "pipeline.serve", "--name", registered.name, "--port", str(free_port())]
    process = start(command, registered.root)
    assert process.stdout
    while process.stdout.readline() != "Ctrl-C ends it.\n":
        assert process.poll() is None
    time.sleep(1)  # until it serves
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0].strip() == ""
    assert process.returncode == 0


def test_without_a_champion_it_says_what_to_do(registered: Registered) -> None:
    command = ["python", "-m", "pipeline.serve", "--name", "other"]
    ended = subprocess.run(
        command, cwd=registered.root, env=environment({}), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("serve: ")
    assert line.endswith("`make promote` registers the current one")


def test_the_page_is_for_this_machine_alone(address: str) -> None:
    port = address.rpartition(":")[2]
    for host, status in (("localhost", 200), (f"127.0.0.1:{port}", 200), ("digits.example", 400), ("[::1]", 400)):
        for path in ("/", "/about", "/ping"):
            assert requests.get(f"{address}{path}", headers={"Host": host}, timeout=60).status_code == status, host
    preflight = {"Origin": "https://digits.example", "Access-Control-Request-Method": "POST"}
    answer = requests.options(f"{address}/read", headers=preflight, timeout=60)
    assert "Access-Control-Allow-Origin" not in answer.headers
    listening = [each.laddr for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    assert [address for address in listening if address[1:] == (int(port),)] == [("127.0.0.1", int(port))]
