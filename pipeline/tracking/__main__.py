"""What there is to do about MLflow: see that DVC and it know of each other, send what it missed, tag, look at it."""

import argparse
import json
import sys

from pipeline import paths
from pipeline.errors import PipelineError
from pipeline.surroundings import settle
from pipeline.tracking.store import open_store
from pipeline.tracking.ui import port_number, serve


def send() -> None:
    """Send the outbox and say how it went. Exits with status 1 while something is left."""
    from pipeline.tracking.recorder import send_unsent

    open_store(paths.project_root())
    sent, problems = send_unsent(paths.project_root())
    print(f"tracking: {sent} runs completed" if sent or problems else "tracking: nothing was waiting")
    if problems:
        sys.exit("\n".join(f"tracking: {problem}" for problem in problems))


def tag(run_id: str, tags: dict[str, str]) -> None:
    """Add tags to a run that the store knows; kept for later where the store does not answer."""
    from pipeline.tracking.recorder import Recorder
    from pipeline.tracking.runs import continue_run

    store = open_store(paths.project_root(), required=False)
    run = continue_run(store, run_id, paths.project_root())
    if run is None:
        raise PipelineError(f"{store.uri} has no run {run_id}")
    Recorder(run).tags(tags)


def check() -> None:
    """Say what DVC and MLflow know of each other. Exits with status 1 if something is on one side only."""
    from rich.console import Console
    from rich.table import Table

    from pipeline.tracking.joining import join

    rows = join(open_store(paths.project_root()))
    table = Table("experiment", "run", "run id", "state", "")
    for row in rows:
        table.add_row(row.result, row.run_name, row.run_id, row.state, row.reason)
    Console(markup=False).print(table)
    lost = [row for row in rows if row.state != "joined"]
    print(f"tracking: {len(rows) - len(lost)} joined, {len(lost)} on one side only")
    if lost:
        sys.exit("\n".join(f"{row.state}: {row.result or row.run_name}: {row.reason}. {row.remedy}" for row in lost))


def main() -> None:
    """Parse the command line and act on it."""
    settle()
    parser = argparse.ArgumentParser(prog="python -m pipeline.tracking", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("send", help="send to MLflow what earlier runs could not")
    tagging = commands.add_parser("tag", help="add tags to a run")
    tagging.add_argument("run_id", help="MLflow's id of the run")
    tagging.add_argument("tags", type=json.loads, help="the tags as a JSON object")
    commands.add_parser("check", help="list what only one of DVC and MLflow has; exit status 1 if there is anything")
    ui = commands.add_parser("ui", help="serve the MLflow UI and print the address that shows the runs")
    ui.add_argument("--port", type=port_number, default=5000, help="the first port to try (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        match arguments.command:
            case "send":
                send()
            case "tag":
                tag(arguments.run_id, arguments.tags)
            case "check":
                check()
            case _:
                serve(paths.project_root(), arguments.port)
    except PipelineError as error:
        sys.exit(f"tracking: {error}")


if __name__ == "__main__":
    main()
