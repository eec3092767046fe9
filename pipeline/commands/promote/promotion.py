"""Promote a model to champion, or roll back to the previous champion."""

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import NamedTuple

from rich.table import Table

from pipeline.commands.gate.comparison import Comparison, compare_to, compare_with, current_candidate
from pipeline.commands.gate.rendering import tags
from pipeline.commands.gate.results import Baseline, Results, read_commit
from pipeline.commands.promote.checks import check_committed, check_model
from pipeline.core import paths
from pipeline.core.errors import PipelineError
from pipeline.core.files import md5
from pipeline.core.validation import load_config
from pipeline.registry.conversion import KERAS, Converted
from pipeline.registry.model_files import SERVED_DIGEST
from pipeline.registry.registry import Aliases, Registry, open_registry
from pipeline.registry.servable import log_servable
from pipeline.repository.git import commit_of
from pipeline.tracking.store import Store, open_store, page
from pipeline.tracking.tags import ACCURACY, COMMIT, DVC_HASH

ABOUT = (
    "Classifies the digits of the dataset `{name}` from raw images. The alias `champion` is the model to use, "
    "`previous` the champion before it; `make promote` and `make promote ROLLBACK=1` move them. A version's tags give "
    "its commit, its DVC hash and the baseline that the gate compared it with."
)
REPLACED = f"{paths.MODEL} was replaced while the gate judged it: promote again"


class Standing(NamedTuple):
    """The state after the command: a table, and lines to print below it."""

    table: Table
    lines: list[str]


def promote(base: str | None, compared: bool, digest: str, converting: Future[Converted]) -> Standing:
    """Make the model of the working tree, with the MD5 `digest`, the champion, and return the new state.

    `compared` says whether the gate compares it with the champion; `converting` yields the model in its serving format.

    Raises PipelineError, and leaves the aliases unchanged, if the model is not current, not committed or worse than the
    champion or `base`, or if MLflow does not know its run.
    """
    store, root = open_store(paths.project_root()), paths.project_root()
    candidate, commit = current_candidate(), check_committed()
    with open_registry(store, candidate.first.metrics.dataset.name, root) as registry:
        now, known = registry.aliases() or Aliases(None, None), registry.find(digest)
        if known is not None and str(known.version) == now.champion:
            return standing(store, registry, now, "is already the champion: nothing to do")
        comparison = judge(base, candidate, registry, now, compared)
        facts, text = version_tags(comparison, commit, digest), description(comparison, commit, digest, registry.name)
        if known is None:
            number = register(registry, find_run(candidate, registry, store), digest, converting, facts, text)
        else:
            check_unchanged(digest)
            number = str(known.version)
            registry.describe(number, facts, text)
        leaves = registry.leaving(now, digest)
        move(registry, now, leaves, number)
        end = standing(store, registry, Aliases(number, leaves.champion), "is now the champion")
    return end._replace(lines=[*comparison.notes, *comparison.verdict.notes, *end.lines])


def rollback() -> Standing:
    """Swap champion and previous. Raises PipelineError unless both exist."""
    store, name = open_store(paths.project_root()), load_config().dataset.name
    with open_registry(store, name, paths.project_root()) as registry:
        now = registry.aliases()
        if now is None:
            raise PipelineError(f"{store.uri} has no registered model {name!r}: `make promote` creates it")
        if now.champion is None or now.previous is None:
            lacking = "champion" if now.champion is None else "previous model"
            raise PipelineError(f"the registered model {name!r} has no {lacking}: there is nothing to roll back to")
        move(registry, now, now, now.previous)
        return standing(store, registry, Aliases(now.previous, now.champion), "is the champion again")


def judge(base: str | None, candidate: Results, registry: Registry, now: Aliases, compared: bool) -> Comparison:
    """The gate's verdict on the candidate against the champion and, if given, also against `base`.

    Without a champion whose commit git knows, the verdict is against `base`, or else against gate.base.
    Raises PipelineError if the candidate fails or cannot be compared.
    """
    with with_override_hint():
        champion, notes = find_champion(candidate, registry, now, compared)
        comparison = compare_to(champion, candidate) if champion else None
    first = passed(comparison or compare_with(base, candidate))
    if champion and base:
        other = passed(compare_with(base, candidate))
        against = other.baseline.name if other.baseline else "the floor alone"
        notes = [f"it also passes against {against}", *other.notes]
    return first._replace(notes=[*notes, *first.notes])


@contextmanager
def with_override_hint() -> Iterator[None]:
    """Add to an error inside the block the command that promotes without a comparison with the champion."""
    try:
        yield
    except PipelineError as error:
        raise PipelineError(
            f"{error}. To replace the champion without a comparison, run `make promote WITHOUT_CHAMPION=1`"
        ) from None


def passed(comparison: Comparison) -> Comparison:
    """Return the comparison. Raises PipelineError if a check failed."""
    failed = [check for check in comparison.verdict.checks if check.outcome == "FAIL"]
    if failed:
        what = "; ".join(f"{check.name} ({check.baseline} → {check.candidate})" for check in failed)
        against = comparison.baseline.name if comparison.baseline else "the floor alone"
        raise PipelineError(f"this model fails the gate against {against}: {what}. Nothing was registered")
    return comparison


def find_champion(
    candidate: Results, registry: Registry, now: Aliases, compared: bool
) -> tuple[Baseline | None, list[str]]:
    """The baseline at the champion's commit; None, and the reason, if not `compared` or if git lacks the commit."""
    if now.champion is None:
        return None, []
    name = f"champion (version {now.champion})"
    if not compared:
        return None, [f"not compared with the {name}, as requested"]
    commit = registry.version(now.champion).tags.get(COMMIT, "")
    if not commit or commit_of(commit) is None:
        return None, [f"not compared with the {name}: git does not know its commit {commit or '(no tag names it)'}"]
    return read_commit(commit, name, f"at {commit[:7]}, the commit of the {name}", candidate), []


def find_run(candidate: Results, registry: Registry, store: Store) -> str:
    """The ID of the model's MLflow run. Raises PipelineError if the store does not have it."""
    run = candidate.first.metrics.mlflow
    if run is None or not registry.knows_run(run.run_id):
        raise PipelineError(
            f"{store.uri} does not have the run that {paths.EVALUATION} names ({run.run_id if run else 'none'}): "
            "run `dvc repro --force --single-item evaluate` to create one there, commit, then promote"
        )
    return run.run_id


def register(
    registry: Registry, run_id: str, digest: str, converting: Future[Converted], facts: dict[str, str], text: str
) -> str:
    """Log the model in its serving format to its run, register it as a version, and return the version's number."""
    converted = converting.result()
    beside = {paths.MODEL_CARD: "", paths.MISTAKES_PICTURE: paths.MISTAKES_PICTURE.parent.name}
    servable = log_servable(registry.client, run_id, converted, beside)
    check_unchanged(digest)
    if md5(converted.folder / KERAS) != digest:
        raise PipelineError(REPLACED)
    registry.create(ABOUT.format(name=registry.name))
    return registry.add(servable.source, servable.model_id, run_id, facts | {SERVED_DIGEST: servable.digest}, text)


def check_unchanged(digest: str) -> None:
    """Raise PipelineError if another process, such as `dvc repro`, replaced the model: the gate may have judged that.

    Runs after the last read of the working tree and before anything is written about the version.
    """
    if check_model() != digest:
        raise PipelineError(REPLACED)


def move(registry: Registry, now: Aliases, leaves: Aliases, number: str) -> None:
    """Make a version the champion in place of `leaves`.

    Raises PipelineError if the aliases are no longer `now`: another machine moved them since the gate judged the
    version, and a version that passed against the earlier champion may be worse than the current one.
    """
    if (registry.aliases() or Aliases(None, None)) != now or not registry.move(leaves, number):
        raise PipelineError(
            f"another process changed the champion of {registry.name} during the promotion of version {number}, and "
            f"its champion stays: check that one, then run this again if version {number} should replace it"
        )


def version_tags(comparison: Comparison, commit: str, digest: str) -> dict[str, str]:
    """The tags of a version, for searches in the registry."""
    accuracy = comparison.candidate.first.metrics.test.accuracy
    facts = {COMMIT: commit, DVC_HASH: digest, ACCURACY: f"{accuracy:.6g}", "recipe": comparison.candidate.recipe}
    return facts | {key: value for key, value in tags(comparison).items() if value}


def description(comparison: Comparison, commit: str, digest: str, name: str) -> str:
    """The description of a version, in Markdown."""
    test, against = (
        comparison.candidate.first.metrics.test,
        comparison.baseline.name if comparison.baseline else "the floor",
    )
    return (
        f"Recipe {comparison.candidate.recipe}: test accuracy {test.accuracy:.2%} ({test.errors} of {test.images:,} "
        f"images misclassified), loss {test.loss:.4f}, calibration error {test.calibration_error:.4f}. "
        f"It passed the gate against {against}.\n\n"
        f"Commit `{commit}`, `{paths.MODEL}` with MD5 `{digest}`.\n\nTo serve the champion, run `make serve` or\n\n"
        f"```\n{serve_command(name)}\n```\n"
    )


def serve_command(name: str) -> str:
    """The command that serves the champion."""
    return f"mlflow models serve -m models:/{name}@champion --env-manager local"


def standing(store: Store, registry: Registry, now: Aliases, what: str) -> Standing:
    """A summary of the champion for the user."""
    assert now.champion is not None
    facts = registry.version(now.champion).tags
    table = Table(title=f"{registry.name} version {now.champion} {what}", title_justify="left", show_header=False)
    table.add_row("test accuracy", f"{float(facts.get(ACCURACY, 'nan')):.2%}")
    table.add_row("gate", f"{facts.get('gate.verdict', 'unknown')}, against {facts.get('gate.baseline', 'the floor')}")
    table.add_row("model", f"{facts.get(DVC_HASH, 'unknown')} (MD5), commit {facts.get(COMMIT, 'unknown')[:7]}")
    table.add_row("previous", f"version {now.previous}" if now.previous else "none")
    where = page(store, f"models/{registry.name}/versions/{now.champion}")
    served = f"To serve it, run make serve or {serve_command(registry.name)}"
    return Standing(table, [served, f"View it at {where}{'' if store.remote else ' (start the UI with `make ui`)'}"])
