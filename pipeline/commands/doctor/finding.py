"""What a check found, in one line."""

from typing import Literal, NamedTuple

Level = Literal["ok", "warning", "problem"]  # a problem prevents the pipeline from running


class Finding(NamedTuple):
    """A fact about this machine, and the command or step that improves it; empty if nothing has to."""

    topic: str
    level: Level
    fact: str
    remedy: str = ""
