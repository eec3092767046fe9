"""Render the verdict for the terminal, pull requests, machines and MLflow."""

from collections.abc import Iterator
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from pipeline import paths
from pipeline.config import flatten
from pipeline.errors import PipelineError
from pipeline.gate.no_verdict import MARKER
from pipeline.gate.outcome import Outcome
from pipeline.gate.side import Side
from pipeline.tracking.store import locate_store, page

HEADER = ("check", "outcome", "baseline", "candidate", "")
COLORS = {"pass": "green", "warn": "yellow", "FAIL": "bold red", "–": "dim"}
FIGURES = (
    "accuracy",
    "runs",
    "baseline_accuracy",
    "baseline_runs",
    "accuracy_change",
    "p_worse",
    "p_mcnemar",
    "p_recall",
)  # the verdict's figures that become tags
SHOWN = 20  # changed parameters or image indices to list; the rest are counted

Change = tuple[str, Any, Any]  # key, baseline value, candidate value; None if a side lacks the key


def for_terminal(outcome: Outcome) -> Group:
    """The verdict as a table of checks, with changed parameters and facts below."""
    table = Table(*HEADER)
    for check in outcome.verdict.checks:
        before, after, remark = (Text(cell) for cell in check[2:])
        table.add_row(check.name, Text(check.outcome, COLORS[check.outcome]), before, after, remark)
    changes = [f"changed: {key}: {before} → {after}" for key, before, after in _cut(changed_params(outcome))]
    color = COLORS["pass" if outcome.verdict.passed else "FAIL"]
    return Group(Text(outcome.title, color), table, *(Text(line) for line in (*changes, *facts(outcome))))


def for_markdown(outcome: Outcome, picture: str | None) -> str:
    """The verdict in GitHub's Markdown, with the picture at the address `picture`."""
    parts = [MARKER, f"### Gate: {outcome.title}", _markdown_table(HEADER, outcome.verdict.checks)]
    changes = changed_params(outcome)
    if changes:
        rows = [[f"`{value}`" for value in change] for change in _cut(changes)]
        parts += ["#### Changed parameters", _markdown_table(("key", "baseline", "candidate"), rows)]
    if picture:
        parts.append(f"![Images that only one of the two models misclassifies]({picture})")
    parts.append("\n".join(f"- {line}" for line in facts(outcome)))
    return "\n\n".join(parts) + "\n"


def for_machines(outcome: Outcome) -> dict[str, Any]:
    """The verdict as plain values."""
    return {
        "passed": outcome.verdict.passed,
        "candidate": {"name": outcome.candidate.name, "run_id": run_id(outcome.candidate)},
        "baseline": outcome.baseline and {"name": outcome.baseline.name, "run_id": run_id(outcome.baseline)},
        "figures": outcome.verdict.figures,
        "checks": [check._asdict() for check in outcome.verdict.checks],
        "newly_wrong": outcome.newly_wrong,
        "newly_right": outcome.newly_right,
        "changed_params": {key: [before, after] for key, before, after in changed_params(outcome)},
        "notes": [*outcome.notes, *outcome.verdict.notes],
    }


def tags(outcome: Outcome) -> dict[str, str]:
    """The verdict as tags of the candidate's MLflow run."""
    failed = [check.name for check in outcome.verdict.checks if check.outcome == "FAIL"]
    values = {
        "verdict": "pass" if outcome.verdict.passed else "fail",
        "failed": ", ".join(failed),
        "baseline": outcome.baseline.name if outcome.baseline else "",
        "baseline_run": (outcome.baseline and run_id(outcome.baseline)) or "",
    }
    figures = dict.fromkeys(FIGURES, "")  # overwrite those of an earlier verdict
    figures |= {name: f"{outcome.verdict.figures[name]:.6g}" for name in FIGURES if name in outcome.verdict.figures}
    return {f"gate.{name}": value for name, value in (values | figures).items()}


def facts(outcome: Outcome) -> Iterator[str]:
    """Yield the facts beside the checks, one per line."""
    if outcome.baseline:
        for what, indices in (("misclassified", outcome.newly_wrong), ("correct", outcome.newly_right)):
            shown = ", ".join(map(str, indices[:SHOWN])) + (" …" if len(indices) > SHOWN else "")
            yield f"newly {what}: {len(indices)} images{': ' * bool(indices)}{shown}"
    for side in filter(None, (outcome.baseline, outcome.candidate)):
        yield f"MLflow run of {side.name}: {run_address(side)}"
    yield from outcome.notes
    yield from outcome.verdict.notes


def changed_params(outcome: Outcome) -> list[Change]:
    """The values of composed.yaml that differ between the sides, except for the seed noise of each class."""
    if outcome.baseline is None or not outcome.baseline.composed:
        return []
    before, after = (dict(flatten(side.composed)) for side in (outcome.baseline, outcome.candidate))
    keys = [key for key in dict.fromkeys((*before, *after)) if ".recall_" not in key]
    return [(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]


def run_id(side: Side) -> str | None:
    """The ID of the MLflow run of a side's model; None if its report does not name one."""
    run = side.first.metrics.mlflow
    return run.run_id if run else None


def run_address(side: Side) -> str:
    """A link to the MLflow run if the runs are on a server, else its ID."""
    run = side.first.metrics.mlflow
    if run is None:
        return "unknown"
    try:
        store = locate_store(paths.project_root())
    except PipelineError:  # the verdict does not depend on the store
        return run.run_id
    linked = store.remote and run.experiment_id is not None
    return page(store, f"experiments/{run.experiment_id}/runs/{run.run_id}") if linked else run.run_id


def _cut(changes: list[Change]) -> list[Change]:
    more = len(changes) - SHOWN
    return [*changes[:SHOWN], (f"and {more} more", "…", "…")] if more > 0 else changes


def _markdown_table(header: tuple[str, ...], rows: Any) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in row)} |" for row in lines)


def _cell(value: Any) -> str:
    return " ".join(str(value).replace("|", "\\|").split())
