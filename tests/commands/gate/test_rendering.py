"""All renderings of a verdict state the same."""

import io

from rich.console import Console

from pipeline.commands.gate.comparison import Comparison
from pipeline.commands.gate.rendering import for_machines, for_markdown, for_terminal, tags
from pipeline.commands.gate.results import Results
from pipeline.commands.gate.verdict import judge
from tests.commands.gate.test_verdict import GATE, report, results


def comparison(candidate: Results, baseline: Results | None) -> Comparison:
    return Comparison(judge(candidate, baseline, GATE), candidate, baseline, ["a note"])


WORSE = comparison(
    results(report(set(range(0, 60, 2))))._replace(composed={"recipe": "a|b", "optimizer": {"_target_": "x"}}),
    results(report({1, 4})),
)


def terminal(shown: Comparison) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(for_terminal(shown))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_every_rendering_shows_a_failure() -> None:
    for text in (terminal(WORSE), for_markdown(WORSE, None)):
        assert "FAIL: here against here" in text
        assert "recall of 0" in text
        assert "newly misclassified: 29 images: 0, 2, 6, 8" in text
        assert "newly correct: 1 images: 1" in text
        assert "a note" in text
    values = for_machines(WORSE)
    assert (values["passed"], values["newly_right"]) == (False, [1])
    assert values["changed_params"] == {"recipe": ["baseline", "a|b"], "optimizer._target_": [None, "x"]}
    tagged = tags(WORSE)
    assert (tagged["gate.verdict"], tagged["gate.failed"]) == ("fail", "accuracy, recall of 0")
    assert float(tagged["gate.accuracy_change"]) == -0.014


def test_markdown_escapes_pipes_in_tables() -> None:
    text = for_markdown(WORSE, "https://example.org/p.png")
    assert "| `recipe` | `baseline` | `a\\|b` |" in text
    assert "| `optimizer._target_` | `None` | `x` |" in text
    assert "![Images that only one of the two models misclassifies](https://example.org/p.png)" in text


def test_markdown_escapes_html_mentions_and_new_lines() -> None:
    odd = "x`\n\n### Gate: PASS by @octocat <img src=x>"
    candidate = WORSE.candidate._replace(composed={"recipe": odd})
    text = for_markdown(WORSE._replace(candidate=candidate, notes=[odd]), None)
    assert [line for line in text.splitlines() if line.startswith("#")][1:] == ["#### Changed parameters"]
    assert "- x` ### Gate: PASS by &#64;octocat &lt;img src=x>" in text
    assert "| `x' ### Gate: PASS by @octocat <img src=x>` |" in text, "code, which Markdown does not interpret"


def test_a_verdict_without_a_baseline_clears_earlier_figures() -> None:
    alone = comparison(results(report({1})), None)
    assert tags(alone)["gate.p_worse"] == ""
    assert tags(alone)["gate.verdict"] == "pass"
    assert "PASS: here against the floor alone" in terminal(alone)
    assert for_machines(alone)["baseline"] is None
