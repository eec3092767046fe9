"""The finals: the best trials and the current settings, trained with further seeds and compared by the gate's test.

The best of many trials is also the luckiest. Its figure from the search is therefore not used again.
"""

import itertools
import math
import statistics
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import ttest_ind

from pipeline.commands.gate.significance import compare, holm
from pipeline.core.dataset import load_split
from pipeline.core.files import text_digest
from pipeline.sweep.search import FINALIST, HIGHEST_SEED, SEED, Search, name_of, pair_of
from pipeline.sweep.settings import digest_of
from pipeline.sweep.study import DIGEST, counted, open_study, ranked
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
        """The sample standard deviation over the seeds."""
        return statistics.stdev(self.values)


def finalists(search: Search) -> dict[str, dict[str, Any]]:
    """The settings of the current configuration and of the best trials with other configurations, by name."""
    current = digest_of(search.settings.current)
    others = [trial for trial in ranked(search.study, search.sweep) if trial.user_attrs[DIGEST] != current]
    best = others[: search.sweep.finalists]
    return {CURRENT: {}} | {name_of(each): each.user_attrs["settings"] for each in best}


def further_seeds(search: Search) -> list[int]:
    """The seeds of the finals: those after the seed of the search."""
    first = search.settings.current.seed + 1
    return [seed % (HIGHEST_SEED + 1) for seed in range(first, first + search.sweep.seeds)]


def open_finals(search: Search) -> Search:
    """The finals as a search of their own: each finalist with each further seed, in the same database."""
    entries, seeds = finalists(search), further_seeds(search)
    sweep = search.sweep.model_copy(update={"trials": len(entries) * len(seeds), "pruner": "none", "minutes": None})
    name = f"{search.study.study_name}-finals-{text_digest(repr((entries, seeds)))}"
    with FileLock(search.lock):  # two commands at once would queue each trial twice
        study = open_study(name, sweep, search.folder)
        queued = {pair_of(trial) for trial in study.get_trials(deepcopy=False)}
        for seed, entry in itertools.product(seeds, entries):
            if (entry, seed) not in queued:  # Optuna's own check, skip_if_exists, takes close seeds for equal
                study.enqueue_trial({FINALIST: entry, SEED: seed})
    return search._replace(sweep=sweep, study=study, finalists=entries)


def results(finals: Search) -> list[Result]:
    """The results of the finalists that completed all seeds, the best one first."""
    entries, seeds = finals.finalists or {}, further_seeds(finals)
    complete = finals.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    trials = {pair_of(trial): trial for trial in counted(complete)}
    done = [name for name in entries if all((name, seed) in trials for seed in seeds)]
    runs = {name: [trials[name, seed] for seed in seeds] for name in done}
    values = {name: [trial.values[0] for trial in runs[name]] for name in runs}
    highest_first = finals.sweep.directions[0] == "maximize"
    order = sorted(runs, key=lambda name: statistics.mean(values[name]), reverse=highest_first)
    if highest_first:
        images = len(load_split(finals.folder / VALIDATION).labels)
        wrong = {name: errors(runs[name], images) for name in order}
        p_values = [compare(wrong[name], wrong[order[0]], images, (None, None)).p_worse for name in order[1:]]
    else:
        p_values = [p_higher(values[name], values[order[0]]) for name in order[1:]]
    adjusted = [1.0, *(holm(p_values) if p_values else [])][: len(order)]
    return [Result(name, entries[name], values[name], p) for name, p in zip(order, adjusted, strict=True)]


def p_higher(losses: list[float], lowest: list[float]) -> float:
    """The p-value of Welch's test that the first losses are not higher in the mean; 1 if all are equal."""
    found = float(ttest_ind(losses, lowest, equal_var=False, alternative="greater").pvalue)
    return 1.0 if math.isnan(found) else found


def errors(trials: list[FrozenTrial], images: int) -> NDArray[np.bool_]:
    """Whether each trial misclassifies each image (trials, images)."""
    wrong = np.zeros((len(trials), images), bool)
    for row, trial in zip(wrong, trials, strict=True):
        row[trial.user_attrs["wrong"]] = True
    return wrong
