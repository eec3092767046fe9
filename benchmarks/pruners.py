"""Replay the epochs of a sweep without a pruner through Optuna's pruners, in random orders of its trials.

Prints for each pruner the fraction of epochs that it would have trained, how often the best trial would have been
completed, and how much worse the best of the completed trials would have been.
"""

import argparse
import logging
import random
import statistics
import warnings
from collections.abc import Callable
from typing import NamedTuple

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, SuccessiveHalvingPruner, WilcoxonPruner
from optuna.trial import FrozenTrial, TrialState

from pipeline.sweep.study import STARTUP

ORDERS = 50
PRUNERS: dict[str, Callable[[], BasePruner]] = {
    "median": lambda: MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=1),
    "median, after 3 epochs": lambda: MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=3),
    "median, after 5 epochs": lambda: MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=5),
    "halving, factor 2": lambda: SuccessiveHalvingPruner(reduction_factor=2),
    "halving, factor 3": lambda: SuccessiveHalvingPruner(reduction_factor=3),
    "halving, factor 4": SuccessiveHalvingPruner,
    "hyperband": lambda: HyperbandPruner(max_resource=20),
    "Wilcoxon, p 0.1": WilcoxonPruner,
    "Wilcoxon, p 0.01": lambda: WilcoxonPruner(p_threshold=0.01, n_startup_steps=5),
}


class Replay(NamedTuple):
    """What a pruner would have done with the trials in one order."""

    epochs: float  # fraction of all
    kept: bool  # whether the best trial was completed
    loss: float  # of the best completed trial, relative to the best of all


def replay(trials: list[FrozenTrial], pruner: BasePruner) -> Replay:
    """Report the epochs of the trials in their order, until the pruner stops them."""
    study = optuna.create_study(direction="maximize", pruner=pruner, sampler=optuna.samplers.RandomSampler())
    trained, completed = 0, []
    for recorded in trials:
        trial = study.ask()
        for epoch, value in sorted(recorded.intermediate_values.items()):
            trial.report(value, epoch)
            trained += 1
            if trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial, recorded.value)
            completed.append(recorded.value or 0.0)
    best = max(trial.value or 0.0 for trial in trials)
    total = sum(len(trial.intermediate_values) for trial in trials)
    return Replay(trained / total, best in completed, best - max(completed))


def main() -> None:
    """Replay a study, and print a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pruners", description=__doc__)
    parser.add_argument("study", help="the name of a sweep's study that had the pruner `none`")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(logging.ERROR)
    storage = f"sqlite:///.sweeps/{arguments.study}/study.db"
    study = optuna.load_study(study_name=arguments.study, storage=storage)
    trials = study.get_trials(states=(TrialState.COMPLETE,))
    print(f"{len(trials)} trials in {ORDERS} random orders\n")
    print("| pruner | epochs | best trial completed | best accuracy lost, points |\n|---|---|---|---|")
    for name, make in PRUNERS.items():
        chance = random.Random(1)
        found = [replay(chance.sample(trials, len(trials)), make()) for _ in range(ORDERS)]
        epochs = [each.epochs for each in found]
        kept, loss = statistics.mean(each.kept for each in found), 100 * statistics.mean(each.loss for each in found)
        print(f"| {name} | {statistics.mean(epochs):.0%} ± {statistics.stdev(epochs):.0%} | {kept:.0%} | {loss:.3f} |")


if __name__ == "__main__":
    main()
