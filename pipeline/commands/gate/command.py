"""The gate command: compare, report and record."""

import argparse
import contextlib
import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from pipeline.commands.gate.comparison import Comparison, compare_to, compare_with, current_candidate
from pipeline.commands.gate.rendering import for_machines, for_markdown, for_terminal, tags
from pipeline.commands.gate.results import lost_baseline
from pipeline.core.files import write_text

PASSED, WORSE = 0, 1


def run(arguments: argparse.Namespace) -> int:
    """Judge the candidate or record its seed noise, and return the exit status.

    Raises PipelineError if the two models cannot be compared, or the seed noise cannot be recorded.
    """
    candidate = current_candidate()
    if arguments.record:
        from pipeline.commands.gate.record import record_noise

        print(record_noise(candidate))
        return PASSED
    lost = lost_baseline(arguments.before or "")
    comparison = compare_to(lost, candidate) if lost else compare_with(arguments.before or arguments.base, candidate)
    if arguments.json:
        print(json.dumps(for_machines(comparison), indent=2))
    else:
        Console(markup=False).print(for_terminal(comparison))
    if arguments.markdown:
        write_report(comparison, arguments.markdown, arguments.picture_url)
    tag_run(comparison)
    return PASSED if comparison.verdict.passed else WORSE


def write_report(comparison: Comparison, path: Path, url: str | None) -> None:
    """Write the report, and the picture beside it if the models disagree on any image."""
    if path.exists() and not path.is_file():  # a pipe, such as /dev/stdout, which has nothing beside it
        path.write_text(for_markdown(comparison, url), encoding="utf-8")
        return
    from pipeline.commands.gate.picture import draw_disagreement
    from pipeline.core.pictures import save_picture

    figure, picture = draw_disagreement(comparison), path.with_suffix(".png")
    if figure is not None:
        save_picture(picture, figure)
    write_text(path, for_markdown(comparison, (url or picture.name) if figure else None))


def tag_run(comparison: Comparison) -> None:
    """Tag the candidate's MLflow run with the verdict, in a separate process so that the gate does not wait for it."""
    run = comparison.candidate.first.metrics.mlflow
    if run is None:
        return
    command = [sys.executable, "-m", "pipeline.commands.runs", "tag", run.run_id, json.dumps(tags(comparison))]
    with contextlib.suppress(OSError, ValueError):  # the verdict does not depend on it
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
