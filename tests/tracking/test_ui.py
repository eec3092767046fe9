import socket
import subprocess
import sys

import pytest

from pipeline.errors import PipelineError
from pipeline.tracking.ui import HOST, free_port, port_number
from tests.conftest import ROOT


@pytest.mark.parametrize("port", ["70000", "65536", "-1", "0", "abc", "1.5", "", "²"])
def test_what_is_no_port_is_a_usage_error(port: str) -> None:
    command = [sys.executable, "-m", "pipeline.tracking", "ui", "--port", port]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    expected = f"python -m pipeline.tracking ui: error: argument --port: {port!r} is no port: from 1 to 65535"
    assert (result.returncode, result.stderr.splitlines()[1:]) == (2, [expected])


def test_a_port_is_a_number_of_the_range() -> None:
    assert [port_number(text) for text in ("1", "5000", "65535")] == [1, 5000, 65535]


def test_no_port_is_looked_for_above_the_last() -> None:
    with socket.create_server((HOST, 65535)), pytest.raises(PipelineError, match="no free port from 65535 to 65535"):
        free_port(65535)
