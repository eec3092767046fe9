"""The finals: the best trials and the current settings, trained with further seeds and compared by the gate's test.

The best of many trials is also the luckiest. Its figure from the search is therefore not used again.
"""

import itertools
import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from pipeline.commands.gate.significance import compare, holm
from pipeline.core.dataset import load_split
from pipeline.core.files import text_digest
from pipeline.sweep.search import FINALIST, LOCK, SEED, Search
from pipeline.sweep.space import Sweep
from pipeline.sweep.study import counted, open_study, ranked
from pipeline.sweep.trial import VALIDATION

CURRENT = "current settings"


class Result(NamedTuple):
    """The result of one finalist on the held-out images."""

    name: str
    settings: dict[str, Any]  # as the search chose them; empty for the current ones
    values: list[float]  # of the objective, by seed
    p_worse: float  # that chance alone made it this much worse than the best; 1 for the best itself

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return statistics.mean(self.values)

    @property
    def std(self) -> float:
        """The standard deviation over the seeds; 0 for one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


def finalists(study: Study, sweep: Sweep) -> dict[str, dict[str, Any]]:
    """The settings of the current configuration and of the best trials with different settings, by name."""
    own = [trial for trial in ranked(study, sweep) if "same_as" not in trial.user_attrs]
    return {CURRENT: {}} | {f"trial {each.number}": each.user_attrs["settings"] for each in own[: sweep.finalists]}


def open_finals(search: Search) -> Search:
    """The finals as a search of their own: each finalist with each further seed, in the same database."""
    entries = finalists(search.study, search.sweep)
    sweep = search.sweep.model_copy(update={"trials": len(entries) * search.sweep.seeds, "pruner": "none"})
    name = f"{search.study.study_name}-finals-{text_digest(repr(entries))}"
    first = search.settings.config({}).seed + 1
    with FileLock(search.folder / LOCK):  # two commands at once would queue each trial twice
        study = open_study(name, sweep, search.folder)
        for seed, entry in itertools.product(range(first, first + sweep.seeds), entries):
            study.enqueue_trial({FINALIST: entry, SEED: seed}, skip_if_exists=True)
    return search._replace(sweep=sweep, study=study, finalists=entries)


def results(finals: Search) -> list[Result]:
    """The result of each finalist, the best one first."""
    runs: dict[str, list[FrozenTrial]] = {}
    for trial in counted(finals.study.get_trials(deepcopy=False)):
        if trial.state == TrialState.COMPLETE:
            runs.setdefault(trial.params[FINALIST], []).append(trial)
    values: Mapping[str, list[float]] = {name: [trial.values[0] for trial in runs[name]] for name in runs}
    highest_first = finals.sweep.directions[0] == "maximize"
    order = sorted(runs, key=lambda name: statistics.mean(values[name]), reverse=highest_first)
    images = len(load_split(finals.folder / VALIDATION).labels)
    wrong = {name: errors(runs[name], images) for name in order}
    p_values = holm([compare(wrong[name], wrong[order[0]], images, (None, None)).p_worse for name in order[1:]])
    settings = finals.finalists or {}
    return [Result(name, settings[name], values[name], p) for name, p in zip(order, [1.0, *p_values], strict=True)]


def errors(trials: list[FrozenTrial], images: int) -> NDArray[np.bool_]:
    """Whether each trial misclassifies each image (trials, images)."""
    wrong = np.zeros((len(trials), images), bool)
    for row, trial in zip(wrong, trials, strict=True):
        row[trial.user_attrs["wrong"]] = True
    return wrong
