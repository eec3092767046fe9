"""Commands for MLflow: send missing records, tag a run, match DVC experiments with runs, group seeds, serve the UI."""

import json
import sys

from pipeline.commands.parser import command_parser, one_line_errors
from pipeline.commands.ports import port_number
from pipeline.commands.runs.ui import serve
from pipeline.core import paths
from pipeline.core.errors import PipelineError
from pipeline.core.process.surroundings import settle
from pipeline.tracking.store import open_store


def send() -> None:
    """Send the outbox and print the result. Exits with status 1 if some records could not be sent."""
    from pipeline.tracking.outbox import send_unsent

    open_store(paths.project_root())
    sent, problems = send_unsent(paths.project_root())
    print(f"tracking: {sent} runs completed" if sent or problems else "tracking: nothing to send")
    if problems:
        sys.exit("\n".join(f"tracking: {problem}" for problem in problems))


def tag(run_id: str, tags: dict[str, str]) -> None:
    """Add tags to a run in the store. If the store does not answer, keep the tags and send them later."""
    from pipeline.tracking.recorder import Recorder
    from pipeline.tracking.runs import continue_run

    store = open_store(paths.project_root(), required=False)
    run = continue_run(store, run_id, paths.project_root())
    if run is None:
        raise PipelineError(f"{store.uri} has no run {run_id}")
    Recorder(run).tags(tags)


def check() -> None:
    """Match DVC experiments with MLflow runs. Exits with status 1 if any of them is unmatched."""
    from rich.console import Console
    from rich.table import Table

    from pipeline.commands.runs.joining import join

    rows = join(open_store(paths.project_root()))
    table = Table("experiment", "run", "run id", "state", "")
    for row in rows:
        table.add_row(row.result, row.run_name, row.run_id, row.state, row.reason)
    Console(markup=False).print(table)
    lost = [row for row in rows if row.state != "joined"]
    print(f"tracking: {len(rows) - len(lost)} joined, {len(lost)} unmatched")
    if lost:
        sys.exit("\n".join(f"{row.state}: {row.result or row.run_name}: {row.reason}. {row.remedy}" for row in lost))


def seeds() -> None:
    """Put runs that differ only in their seed below one run, and print its figures."""
    from pipeline.commands.runs.seeds import summarize
    from pipeline.tracking.store import page, run_list

    store = open_store(paths.project_root())
    found = summarize(store)
    for summary in found:
        print(summary.line)
    if not found:
        print("tracking: no configuration has runs with two seeds or more: `make seeds` trains them")
    else:
        print(f"The runs are at {page(store, run_list(store, found[0].dataset))}")


def main() -> None:
    """Parse the command line and run the command."""
    settle()
    parser = command_parser("runs", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("send", help="send the records that earlier commands could not send")
    tagging = commands.add_parser("tag", help="add tags to a run")
    tagging.add_argument("run_id", help="MLflow run ID")
    tagging.add_argument("tags", type=json.loads, help="the tags as a JSON object")
    commands.add_parser("check", help="match DVC experiments with runs; exit with status 1 if any is unmatched")
    commands.add_parser("seeds", help="put runs that differ only in their seed below one run, with mean and deviation")
    ui = commands.add_parser("ui", help="serve the MLflow UI and print the address of the runs")
    ui.add_argument("--port", type=port_number, default=5000, help="first port to try (default: %(default)s)")
    arguments = parser.parse_args()
    with one_line_errors("tracking"):
        match arguments.command:
            case "send":
                send()
            case "tag":
                tag(arguments.run_id, arguments.tags)
            case "check":
                check()
            case "seeds":
                seeds()
            case _:
                serve(paths.project_root(), arguments.port)


if __name__ == "__main__":
    main()
