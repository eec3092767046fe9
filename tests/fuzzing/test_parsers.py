"""Every parser with files that hypothesis damages; `make fuzz` runs 10,000 of them for each."""

import pytest
from hypothesis import given

from tests.fuzzing.inputs import damaged
from tests.fuzzing.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_file_is_read_or_refused(name: str) -> None:
    target = TARGETS[name]

    @given(damaged(target.intact, target.words))
    def check(content: bytes) -> None:
        target.parse(content)

    check()


@pytest.mark.parametrize("name", TARGETS)
def test_an_intact_file_is_read(name: str) -> None:
    assert all(map(TARGETS[name].parse, TARGETS[name].intact))
