from pathlib import Path

import pytest

from pipeline.commands.promote.promotion import move
from pipeline.core.errors import PipelineError
from pipeline.registry.registry import Aliases
from pipeline.tracking.store import open_store
from tests.registry.test_registry import with_versions


def test_a_version_judged_against_an_earlier_champion_does_not_replace_a_later_one(tmp_path: Path) -> None:
    registry = with_versions(open_store(tmp_path), 3)
    judged_against = Aliases("1", None)
    registry.move(Aliases(None, None), "1")
    registry.move(Aliases("1", None), "2")
    with pytest.raises(
        PipelineError, match="another process changed the champion of mnist during the promotion of version 3"
    ):
        move(registry, judged_against, judged_against, "3")
    assert registry.aliases() == Aliases("2", "1")
