"""Render the verdict for the terminal, pull requests, machines and MLflow."""

from collections.abc import Iterator
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from pipeline.commands.gate.comparison import Comparison
from pipeline.commands.gate.markdown import markdown_table, one_line
from pipeline.commands.gate.no_verdict import MARKER
from pipeline.commands.gate.results import Results
from pipeline.core import paths
from pipeline.core.config import flatten
from pipeline.core.errors import PipelineError
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

Change = tuple[str, Any, Any]  # key, baseline value, candidate value; None if that model lacks the key


def for_terminal(comparison: Comparison) -> Group:
    """The verdict as a table of checks, with changed parameters and facts below."""
    table = Table(*HEADER)
    for check in comparison.verdict.checks:
        before, after, remark = (Text(cell) for cell in check[2:])
        table.add_row(check.name, Text(check.outcome, COLORS[check.outcome]), before, after, remark)
    changes = [f"changed: {key}: {before} → {after}" for key, before, after in _cut(changed_params(comparison))]
    color = COLORS["pass" if comparison.verdict.passed else "FAIL"]
    return Group(Text(comparison.title, color), table, *(Text(line) for line in (*changes, *facts(comparison))))


def for_markdown(comparison: Comparison, picture: str | None) -> str:
    """The verdict in GitHub's Markdown, with the picture at the address `picture`."""
    parts = [MARKER, f"### Gate: {comparison.title}", markdown_table(HEADER, comparison.verdict.checks)]
    changes = changed_params(comparison)
    if changes:
        rows = [map(_code, change) for change in _cut(changes)]
        parts += ["#### Changed parameters", markdown_table(("key", "baseline", "candidate"), rows)]
    if picture:
        parts.append(f"![Images that only one of the two models misclassifies]({picture})")
    parts.append("\n".join(f"- {one_line(line)}" for line in facts(comparison)))
    return "\n\n".join(parts) + "\n"


def for_machines(comparison: Comparison) -> dict[str, Any]:
    """The verdict as plain values."""
    return {
        "passed": comparison.verdict.passed,
        "candidate": {"name": comparison.candidate.name, "run_id": run_id(comparison.candidate)},
        "baseline": comparison.baseline and {"name": comparison.baseline.name, "run_id": run_id(comparison.baseline)},
        "figures": comparison.verdict.figures,
        "checks": [check._asdict() for check in comparison.verdict.checks],
        "newly_wrong": comparison.newly_wrong,
        "newly_right": comparison.newly_right,
        "changed_params": {key: [before, after] for key, before, after in changed_params(comparison)},
        "notes": [*comparison.notes, *comparison.verdict.notes],
    }


def tags(comparison: Comparison) -> dict[str, str]:
    """The verdict as tags of the candidate's MLflow run."""
    failed = [check.name for check in comparison.verdict.checks if check.outcome == "FAIL"]
    values = {
        "verdict": "pass" if comparison.verdict.passed else "fail",
        "failed": ", ".join(failed),
        "baseline": comparison.baseline.name if comparison.baseline else "",
        "baseline_run": (comparison.baseline and run_id(comparison.baseline)) or "",
    }
    figures = dict.fromkeys(FIGURES, "")  # overwrite those of an earlier verdict
    figures |= {
        name: f"{comparison.verdict.figures[name]:.6g}" for name in FIGURES if name in comparison.verdict.figures
    }
    return {f"gate.{name}": value for name, value in (values | figures).items()}


def facts(comparison: Comparison) -> Iterator[str]:
    """Yield the facts beside the checks, one per line."""
    if comparison.baseline:
        for what, indices in (("misclassified", comparison.newly_wrong), ("correct", comparison.newly_right)):
            shown = ", ".join(map(str, indices[:SHOWN])) + (" …" if len(indices) > SHOWN else "")
            yield f"newly {what}: {len(indices)} images{': ' * bool(indices)}{shown}"
    for results in filter(None, (comparison.baseline, comparison.candidate)):
        yield f"MLflow run of {results.name}: {run_address(results)}"
    yield from comparison.notes
    yield from comparison.verdict.notes


def changed_params(comparison: Comparison) -> list[Change]:
    """The values of composed.yaml that differ between the two models, except for the seed noise of each class."""
    if comparison.baseline is None or not comparison.baseline.composed:
        return []
    before, after = (dict(flatten(results.composed)) for results in (comparison.baseline, comparison.candidate))
    keys = [key for key in dict.fromkeys((*before, *after)) if ".recall_" not in key]
    return [(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]


def run_id(results: Results) -> str | None:
    """The ID of the MLflow run of a model; None if its report does not name one."""
    run = results.first.metrics.mlflow
    return run.run_id if run else None


def run_address(results: Results) -> str:
    """A link to the MLflow run if the runs are on a server, else its ID."""
    run = results.first.metrics.mlflow
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


def _code(value: Any) -> str:
    """A value as it is written, which Markdown does not interpret."""
    return "`" + str(value).replace("`", "'") + "`"
