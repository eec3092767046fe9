"""What the end of a sweep says about its winner."""

import pytest

from pipeline.sweep.conclusion import Winner, remark_on
from pipeline.sweep.finals import CURRENT, Result


def winner(name: str) -> Winner:
    """The winner with a name."""
    return Winner(name, {}, "", "", [0.9])


@pytest.mark.parametrize(
    ("name", "finals", "said"),
    [
        ("trial 1", [("trial 1", 1.0), (CURRENT, 0.3)], "Chance may explain that trial 1 is better than the current"),
        ("trial 1", [("trial 1", 1.0), (CURRENT, 0.01)], ""),
        ("trial 1", [(CURRENT, 1.0), ("trial 1", 0.02)], "Trial 1 is worse than current settings (p 0.02)"),
        ("trial 1", [("trial 2", 1.0), (CURRENT, 0.6), ("trial 1", 0.2)], ""),
        ("trial 7", [("trial 2", 1.0), (CURRENT, 0.6)], ""),
        ("trial 7", [], ""),
        (CURRENT, [(CURRENT, 1.0), ("trial 1", 0.2)], "No other finalist is better than the current settings"),
        (CURRENT, [(CURRENT, 1.0)], "No other finalist completed its trainings"),
    ],
)
def test_the_remark_is_about_the_winner(name: str, finals: list[tuple[str, float]], said: str) -> None:
    """Also if the user chose a trial that is not the first of the finals, or not among them."""
    remark = remark_on(winner(name), [Result(each, {}, [0.9, 0.8], p_worse) for each, p_worse in finals])
    assert remark.startswith(said) if said else remark == ""
