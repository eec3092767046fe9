"""Put the runs of one configuration with several seeds below one MLflow run, which has their mean and deviation.

MLflow itself cannot summarize child runs: https://github.com/mlflow/mlflow/issues/3762.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from pipeline.commands.gate.markdown import markdown_table
from pipeline.commands.gate.results import Results, read_results, recipe_of
from pipeline.commands.runs.joining import is_active, named_runs, run_named
from pipeline.core import paths
from pipeline.core.errors import PipelineError
from pipeline.core.files import text_digest
from pipeline.repository.dvc import experiments
from pipeline.repository.git import check_repository
from pipeline.repository.reading import Reader, at_commit, in_folder
from pipeline.tracking.outbox import RunAddress
from pipeline.tracking.recorder import Recorder
from pipeline.tracking.runs import DESCRIPTION, NAME, PARENT, SCORED
from pipeline.tracking.store import Store, does_not_record
from pipeline.tracking.sweeps import SEEDS

SYSTEM = "system/"  # prefix of metrics about the machine's load
SAME = ("mlflow.user", "mlflow.source.type", "mlflow.source.git.commit", "git.commit", "recipe", "machine", "versions")
SHOWN = {SCORED: "accuracy", "test/loss": "loss", "test/errors": "misclassified images"}


class Summary(NamedTuple):
    """A configuration with several seeds."""

    name: str
    runs: dict[int, Run]  # by seed, in ascending order

    @property
    def metrics(self) -> dict[str, float]:
        """Mean and sample standard deviation of each metric that all runs have, without those of the machine."""
        values = [run.data.metrics for run in self.runs.values()]
        common = [name for name in values[0] if all(name in each for each in values) and not name.startswith(SYSTEM)]
        found = {name: [each[name] for each in values] for name in common}
        means = {f"{name}_mean": float(np.mean(each)) for name, each in found.items()}
        return means | {f"{name}_std": float(np.std(each, ddof=1)) for name, each in found.items()}

    @property
    def dataset(self) -> str:
        """The name of the dataset."""
        return str(next(iter(self.runs.values())).data.params["dataset.name"])

    @property
    def text(self) -> str:
        """The seeds and their figures, in Markdown."""
        found = self.metrics
        names = [name for name in SHOWN if f"{name}_mean" in found]
        rows = [[seed, *(f"{run.data.metrics[name]:.6g}" for name in names)] for seed, run in self.runs.items()]
        means = (f"{found[f'{name}_mean']:.6g} ± {found[f'{name}_std']:.2g}" for name in names)
        return markdown_table(["seed", *(SHOWN[name] for name in names)], [*rows, ["mean ± std", *means]])

    @property
    def line(self) -> str:
        """The figure that people look for, in one line."""
        found = self.metrics
        figure = ""
        if f"{SCORED}_mean" in found:
            figure = f": test accuracy {found[f'{SCORED}_mean']:.2%} ± {found[f'{SCORED}_std']:.2%}"
        return f"{self.name}{figure} (mean ± standard deviation of {len(self.runs)} seeds)"


def summarize(store: Store) -> list[Summary]:
    """Create or update a run for each configuration that has runs with several seeds, above these.

    Reads the working tree and the DVC experiments of this clone. Raises PipelineError without git or the store.
    """
    check_repository()
    groups = dict(grouped(store))
    for digest, summary in groups.items():
        record(store, digest, summary)
    return [*groups.values()]


def grouped(store: Store) -> Iterator[tuple[str, Summary]]:
    """Each configuration that has runs with several seeds, and its digest."""
    found: dict[str, dict[int, str]] = {}
    for read, name in readers():
        results, run_id = results_of(read, name), run_named(read)
        if results and run_id and isinstance(seed := results.composed.get("seed"), int):
            found.setdefault(text_digest(recipe_of(results)), {}).setdefault(seed, run_id)
    runs = named_runs(store, {run_id for seeds in found.values() for run_id in seeds.values()})
    for digest, seeds in found.items():
        here = {seed: runs[run_id] for seed, run_id in sorted(seeds.items()) if run_id in runs}
        known = {seed: run for seed, run in here.items() if is_active(run)}
        if len(known) > 1:
            first = next(iter(known.values())).data
            name = f"{first.tags.get('recipe', '')}-{first.params.get('model.name', '')}"
            yield digest, Summary(f"{name}, {len(known)} seeds", known)


def readers() -> Iterator[tuple[Reader, str]]:
    """The working tree and the DVC experiments."""
    yield in_folder(paths.project_root()), "the working tree"
    for name, commit in experiments():
        yield at_commit(commit), f"the experiment {name}"


def results_of(read: Reader, name: str) -> Results | None:
    """The results of the working tree or of an experiment; None if there are none, or damaged ones."""
    try:
        return read_results(read, name, f"in {name}")
    except PipelineError:
        return None


def record(store: Store, digest: str, summary: Summary) -> None:
    """Record a configuration in the run above its seeds. Raises PipelineError if the store creates no run."""
    client, runs = MlflowClient(store.uri), [*summary.runs.values()]
    experiment = runs[0].info.experiment_id
    tags = {key: value for key, value in runs[0].data.tags.items() if key in SAME}
    try:
        found = client.search_runs([experiment], f"tags.`{SEEDS}` = '{digest}'", max_results=1)
        run = found[0] if found else client.create_run(experiment, tags=tags | {SEEDS: digest})
    except MlflowException as error:
        raise does_not_record(store, client.get_experiment(experiment).name, error) from None
    root = paths.project_root()
    recorder = Recorder(RunAddress(store.uri, run.info.run_id, experiment, root))
    if not found:
        recorder.params(common_params(each.data.params for each in runs))
    recorder.tags({NAME: summary.name, DESCRIPTION: summary.text, "seeds.list": ", ".join(map(str, summary.runs))})
    recorder.metrics(summary.metrics, 0)  # at one step, MLflow shows the latest
    recorder.status("FINISHED")
    kept = kept_parents(store, runs)
    for each in runs:
        if each.data.tags.get(PARENT) not in kept:
            Recorder(RunAddress(store.uri, each.info.run_id, experiment, root)).tags({PARENT: run.info.run_id})


def kept_parents(store: Store, runs: Iterable[Run]) -> set[str]:
    """The IDs of the runs below which some runs stay: those whose model they reuse, or that the user chose."""
    parents = {run.data.tags[PARENT] for run in runs if PARENT in run.data.tags}
    found = named_runs(store, parents).items()
    return {run_id for run_id, above in found if is_active(above) and SEEDS not in above.data.tags}


def common_params(params: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """The params that all runs have, with the same value."""
    first, *others = params
    return {key: value for key, value in first.items() if all(each.get(key) == value for each in others)}
