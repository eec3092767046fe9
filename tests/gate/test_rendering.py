"""What is told of one verdict, in every form, says the same."""

import io

from rich.console import Console

from pipeline.gate.outcome import Outcome
from pipeline.gate.rendering import for_machines, for_markdown, for_terminal, tags
from pipeline.gate.side import Side
from pipeline.gate.verdict import judge
from tests.gate.test_verdict import GATE, report, side


def outcome(candidate: Side, baseline: Side | None) -> Outcome:
    return Outcome(judge(candidate, baseline, GATE), candidate, baseline, ["a note"])


WORSE = outcome(
    side(report(set(range(0, 60, 2))))._replace(composed={"recipe": "a|b", "optimizer": {"_target_": "x"}}),
    side(report({1, 4})),
)


def terminal(told: Outcome) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(for_terminal(told))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_failure_is_told_in_every_form() -> None:
    for text in (terminal(WORSE), for_markdown(WORSE, None)):
        assert "FAIL: here against here" in text
        assert "recall of 0" in text
        assert "newly wrong: 29 images: 0, 2, 6, 8" in text
        assert "newly right: 1 images: 1" in text
        assert "a note" in text
    told = for_machines(WORSE)
    assert (told["passed"], told["newly_right"]) == (False, [1])
    assert told["changed_params"] == {"recipe": ["baseline", "a|b"], "optimizer._target_": [None, "x"]}
    tagged = tags(WORSE)
    assert (tagged["gate.verdict"], tagged["gate.failed"]) == ("fail", "accuracy, recall of 0")
    assert float(tagged["gate.accuracy_change"]) == -0.014


def test_markdown_keeps_its_tables_whole() -> None:
    text = for_markdown(WORSE, "https://example.org/p.png")
    assert "| `recipe` | `baseline` | `a\\|b` |" in text
    assert "| `optimizer._target_` | `None` | `x` |" in text
    assert "![Images that only one of the two models gets wrong](https://example.org/p.png)" in text


def test_the_floor_alone_leaves_no_figure_of_an_earlier_verdict() -> None:
    alone = outcome(side(report({1})), None)
    assert tags(alone)["gate.p_worse"] == ""
    assert tags(alone)["gate.verdict"] == "pass"
    assert "PASS: here against the floor alone" in terminal(alone)
    assert for_machines(alone)["baseline"] is None
