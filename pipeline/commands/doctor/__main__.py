"""Check what this machine can do, and what prevents the pipeline from running.

Changes nothing. Exit status: 0 if the pipeline can run, 1 if a problem prevents it.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from pipeline.commands.doctor.data import check_cache, check_configuration, check_dataset, check_store
from pipeline.commands.doctor.environment import check_disk, check_dvc, check_git, check_packages, check_python
from pipeline.commands.doctor.finding import Finding
from pipeline.commands.doctor.hardware import check_backends, check_gpus, check_processor
from pipeline.commands.parser import command_parser, one_line_errors
from pipeline.core.errors import first_line
from pipeline.core.process.surroundings import settle

CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "Python": check_python,
    "packages": check_packages,
    "git": check_git,
    "DVC": check_dvc,
    "disk": check_disk,
    "configuration": check_configuration,
    "data": check_dataset,
    "cache": check_cache,
    "MLflow": check_store,
    "CPU": check_processor,
    "backend": check_backends,
    "GPU": check_gpus,
}
SIGNS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "bold red")}


def findings(topic: str) -> list[Finding]:
    """The findings of one check. An unexpected error is a finding, too, so that the other checks are still shown."""
    try:
        return list(CHECKS[topic]())
    except Exception as error:  # whatever is broken here is what people want to know
        return [Finding(topic, "problem", f"could not be checked: {type(error).__name__}: {first_line(error)}")]


def show(found: list[Finding]) -> None:
    """Print one line for each finding, with its remedy below."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1))
    for each in found:
        sign, color = SIGNS[each.level]
        table.add_row(Text(sign, color), each.topic, Text(each.fact))
        if each.remedy:
            table.add_row("", "", Text(f"→ {each.remedy}", "dim"))
    Console(markup=False).print(table)


def main() -> None:
    """Parse the command line and run the checks."""
    settle()
    parser = command_parser("doctor", __doc__)
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--only", nargs="+", choices=CHECKS, metavar="CHECK", help=f"of {', '.join(CHECKS)}")
    arguments = parser.parse_args()
    with one_line_errors("doctor"):
        examine(arguments.only or CHECKS, arguments.json)


def examine(topics: Iterable[str], as_json: bool) -> None:
    """Run checks side by side and print what they found. Exits with status 1 if they found a problem."""
    with ThreadPoolExecutor(len(CHECKS)) as pool:
        found = [finding for part in pool.map(findings, topics) for finding in part]
    problems = [each for each in found if each.level == "problem"]
    if as_json:
        print(json.dumps([asdict(each) for each in found], indent=2, ensure_ascii=False))
    else:
        show(found)
        number = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        print(f"\n{number} to solve before the pipeline can run" if problems else "\nThe pipeline can run")
    if problems:
        sys.exit(1)


if __name__ == "__main__":
    main()
