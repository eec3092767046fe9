"""Damaged files for the parsers, and what a parser may do with them."""

import os
import signal
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar
from unicodedata import category

from hypothesis import strategies as st

from pipeline.core.errors import PipelineError

T = TypeVar("T")
FUZZING = bool(os.environ.get("FUZZ"))  # set by `make fuzz`: 10,000 examples instead of a few
PATIENCE = 20.0  # seconds for one input on a busy machine; more is a hang
LONGEST = 1100  # characters of a line of a message
HIDDEN = {"Cc", "Cs", "Zl", "Zp"}  # Unicode's categories of control characters, surrogates and line separators


def accepted(parse: Callable[[], T], name: str) -> T | None:
    """The parsed value, or None if the parser refuses the input with a message in which each line names the file.

    Fails for any other exception, for a hang, and for a message that a terminal would not show as it is.
    """
    try:
        with limited():
            return parse()
    except PipelineError as error:
        refusal = str(error)
    for line in refusal.split("\n"):
        assert name in line, refusal[:LONGEST]
        assert not {category(character) for character in line} & HIDDEN, repr(line[:LONGEST])
        assert len(line) <= LONGEST, line[:LONGEST]
    return None


@contextmanager
def limited() -> Iterator[None]:
    """Fail if the block takes longer than PATIENCE. libFuzzer has a limit of its own, for hangs in C too."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"no answer within {PATIENCE:.0f} seconds")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def peak_of(action: Callable[[], Any]) -> int:
    """Bytes that Python and NumPy allocate at most while `action` runs."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def damaged(intact: list[bytes], words: list[bytes]) -> st.SearchStrategy[bytes]:
    """Intact files with flipped bits, missing and repeated parts, and inserted words; and arbitrary bytes."""
    places = st.floats(0, 1)

    def change(content: bytes, kind: str, start: float, end: float, word: bytes) -> bytes:
        first, last = sorted((round(start * len(content)), round(end * len(content))))
        match kind:
            case "flip":
                flipped = bytes([content[first] ^ (1 << last % 8)]) if first < len(content) else b""
                return content[:first] + flipped + content[first + 1 :]
            case "cut":
                return content[:first] + content[last:]
            case "repeat":
                return content[:last] + content[first:]
            case _:
                return content[:first] + word + content[first:]

    changes = st.tuples(
        st.sampled_from(("flip", "flip", "cut", "repeat", "insert", "insert")), places, places, st.sampled_from(words)
    )

    def changed(parts: tuple[bytes, list[tuple[str, float, float, bytes]]]) -> bytes:
        content = parts[0]
        for each in parts[1]:
            content = change(content, *each)
        return content

    whole = st.tuples(st.sampled_from(intact), st.lists(changes, max_size=4)).map(changed)
    return whole | st.binary(max_size=200)
