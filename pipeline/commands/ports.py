"""Ports of the loopback interface on which commands serve pages."""

import argparse
import socket

from pipeline.core.errors import PipelineError

HOST = "127.0.0.1"
LAST_PORT = 65535


def port_number(text: str) -> int:
    """Parse a port from the command line. Raises ArgumentTypeError if a server cannot listen on it."""
    number = int(text) if text.isdecimal() else 0
    if not 1 <= number <= LAST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to {LAST_PORT}")
    return number


def free_port(first: int) -> int:
    """The first free port of the hundred from `first` on. Raises PipelineError if all of them are in use."""
    last = min(first + 99, LAST_PORT)
    for port in range(first, last + 1):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise PipelineError(f"no free port from {first} to {last}")
