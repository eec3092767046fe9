"""Options and fixtures of the faults, and the table of what happened."""

import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.core.machine import describe_machine, describe_versions
from tests.conftest import Project, copy, once
from tests.faults.moments import VARIABLE

pytest.register_assert_rewrite("tests.faults.trial")

from tests.faults.trial import Results, Trial, make_earlier, results  # noqa: E402 (once asserts are rewritten)

KINDS = Path(__file__).parent
STARTED = time.monotonic()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --sample, keep that number of faults: of every kind one, then a seeded choice."""
    number = config.getoption("--sample")
    ours = [item for item in items if KINDS in item.path.parents]
    if number is None or len(ours) <= number:
        return
    chooser = random.Random(config.getoption("--sample-seed"))
    shuffled = chooser.sample(sorted(ours, key=lambda item: item.nodeid), len(ours))
    tests: Counter[str] = Counter()
    rank = {}
    for item in shuffled:
        name = item.nodeid.partition("[")[0]
        rank[item] = tests[name]
        tests[name] += 1
    kept = set(sorted(shuffled, key=rank.__getitem__)[:number])
    config.hook.pytest_deselected(items=[item for item in ours if item not in kept])
    items[:] = [item for item in items if item in kept or KINDS not in item.path.parents]


@pytest.fixture(scope="session")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that has run once."""
    return once(tmp_path_factory, "earlier", make_earlier)


@pytest.fixture(scope="session")
def undisturbed(earlier: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project after its next run, in which nothing happened; the file `operations` lists its file operations."""

    def run(folder: Path) -> None:
        project = copy(earlier, folder)
        operations = folder.parent / "operations"
        operations.write_text("", encoding="utf-8")
        mirror = str(earlier.root.parent / "mirror")
        output = project.succeed("dvc", "repro", DATASET_MIRROR=mirror, **{VARIABLE: f"list {operations}"})
        (folder.parent / "output").write_text(output, encoding="utf-8")

    return once(tmp_path_factory, "undisturbed", run)


@pytest.fixture(scope="session")
def expected(undisturbed: Project) -> Results:
    """What the undisturbed run gave."""
    return results(undisturbed)


@pytest.fixture(scope="session")
def operations(undisturbed: Project) -> dict[str, list[str]]:
    """The file operations of the undisturbed run, by process."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in (undisturbed.root.parent / "operations").read_text(encoding="utf-8").splitlines():
        process, _, operation = line.partition("\t")
        found[process].append(operation)
    return found


@pytest.fixture(scope="session")
def lines(undisturbed: Project) -> int:
    """How many lines the undisturbed run prints before its last stage ends."""
    output = (undisturbed.root.parent / "output").read_text(encoding="utf-8")
    return output[: output.index("Running stage 'evaluate'")].count("\n") + 1


@pytest.fixture
def trial(earlier: Project, expected: Results, tmp_path: Path) -> Trial:
    """A copy of the project for one fault."""
    return Trial(copy(earlier, tmp_path / "project"), expected, earlier.root.parent / "mirror")


HEADER = """# Faults

What happens if something breaks while the pipeline runs. `make faults` injects each of these faults for real, and
writes this page. A trial starts with a project that has run once. The fault happens during its next run, in which every
stage runs, on a small dataset with `deterministic: true`. Then `dvc repro` runs again, and the trial checks that

- it succeeds, with the same metrics, the same model and the same data as a run in which nothing happened;
- MLflow has each epoch once, the final metrics, and the model once;
- `dvc status` is clean, and no temporary file is left, also in `.resume/` and `.unsent/`;
- every earlier MLflow run is unchanged, with its pictures and its model, and so is every file in DVC's cache.

If an MLflow server was not available, `make send` sends what was kept. Anything else that a person has to do is in the
table.

"""


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Write the table of all trials."""
    reports = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
        if report.when == "call" and "tests/faults/" in report.nodeid
    ]
    table: Path | None = config.getoption("--table")
    if table is None or not reports:
        return
    rows = table_rows(reports)
    minutes = (time.monotonic() - STARTED) / 60
    facts = f"{len(reports)} trials in {minutes:.0f} minutes on {describe_machine()}, {describe_versions()}."
    table.write_text(f"{HEADER}{facts}\n\n" + "\n".join(rows) + "\n", encoding="utf-8")


def table_rows(reports: list[pytest.TestReport]) -> list[str]:
    """Rows of the table, one for each fault and way to inject it, in the order of the tests."""
    groups: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    lost: Counter[tuple[str, str]] = Counter()
    known: dict[str, tuple[str, str]] = {}
    for report in sorted(reports, key=lambda report: report.nodeid):
        test = report.nodeid.partition("[")[0]
        told = dict(report.user_properties).get("fault")
        fault, injection, outcome = json.loads(str(told)) if told else (*known.get(test, (test, "")), "FAILED")
        known[test] = (fault, injection)
        groups[fault, injection][outcome] += 1
        lost[fault, injection] += report.failed
    rows = ["| fault | how it is injected | trials | what happened | lost |", "|---|---|---|---|---|"]
    for (fault, injection), outcomes in groups.items():
        several = len(outcomes) > 1
        what = "; ".join(f"{outcome} ({count})" if several else outcome for outcome, count in outcomes.most_common())
        number = lost[fault, injection]
        loss = f"yes: {number}" if number else "no"
        rows.append(f"| {fault} | {injection} | {outcomes.total()} | {what} | {loss} |")
    return rows


Tell = Callable[..., None]


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Tell:
    """A function that adds a trial to the table: the fault, how it is injected, and what happened."""

    def add(fault: str, injection: str, outcome: str) -> None:
        record_property("fault", json.dumps([fault, injection, outcome]))

    return add
