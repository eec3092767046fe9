import socket
import subprocess
import sys

import pytest

from pipeline.commands.ports import HOST, free_port, port_number
from pipeline.core.errors import PipelineError
from tests.conftest import ROOT


@pytest.mark.parametrize("port", ["70000", "65536", "-1", "0", "abc", "1.5", "", "²"])
def test_an_invalid_port_is_a_usage_error(port: str) -> None:
    command = [sys.executable, "-m", "pipeline.commands.runs", "ui", "--port", port]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    expected = f"python -m pipeline.commands.runs ui: error: argument --port: {port!r} is not a port from 1 to 65535"
    assert (result.returncode, result.stderr.splitlines()[1:]) == (2, [expected])


def test_ports_in_the_range_are_accepted() -> None:
    assert [port_number(text) for text in ("1", "5000", "65535")] == [1, 5000, 65535]


def test_the_search_for_a_free_port_ends_at_the_last_port() -> None:
    with socket.create_server((HOST, 65535)), pytest.raises(PipelineError, match="no free port from 65535 to 65535"):
        free_port(65535)
