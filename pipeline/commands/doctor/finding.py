"""What a check found, in one line without secrets."""

from dataclasses import dataclass
from typing import Literal

from pipeline.core.errors import shown, without_secrets

Level = Literal["ok", "warning", "problem"]  # a problem prevents the pipeline from running


@dataclass
class Finding:
    """A fact about this machine, and the command or step that improves it; empty if nothing has to.

    Texts of other programs may contain passwords of addresses and control characters: both are masked here.
    """

    topic: str
    level: Level
    fact: str
    remedy: str = ""

    def __post_init__(self) -> None:
        self.fact, self.remedy = (shown(without_secrets(text)) for text in (self.fact, self.remedy))
