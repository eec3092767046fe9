"""Optuna's study of a sweep: with what it was started, which of its trials count, and which are the best."""

import itertools
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from pipeline.core.errors import PipelineError
from pipeline.sweep.database import open_storage, shared_address, usable_database
from pipeline.sweep.space import PER_EPOCH, Sweep

IDENTITY = "sweep"  # the study's attribute with its space, settings and params.yaml
ANOTHER = "name a new one with --study, or restore the file"
AGREEING = 2.0  # seconds, in which several machines that start a study at once note what they started
REASON = "reason"  # a trial's attribute: why it failed
RETRIED = "retry_history"  # an attribute that RetryHeartbeatStaleTrialCallback sets: the numbers of earlier attempts
DIGEST = "digest"  # a trial's attribute: that of its configuration
TRAINS = "trains"  # a trial's attribute: its number, which one that is started again does not have, once it trains
SURPLUS = "surplus"  # a trial's attribute: several machines have started more trials than the sweep has
UNFINISHED = (TrialState.RUNNING, TrialState.WAITING)
STARTUP = 5  # trials before the median stops any


def open_study(name: str, sweep: Sweep, folder: Path) -> Study:
    """Open a study, or create it.

    Raises PipelineError if its database cannot be used, or if the study has other objectives.
    """
    with usable_database():
        study = optuna.create_study(
            storage=open_storage(folder),
            study_name=name,
            directions=sweep.directions,
            sampler=optuna.samplers.TPESampler(multivariate=True, group=True, constant_liar=True),
            pruner=pruner_of(sweep),
            load_if_exists=True,
        )
        directions = [direction.name.lower() for direction in study.directions]
    if directions != sweep.directions:
        raise PipelineError(f"the study {name} was started with other objectives: {ANOTHER}")
    return study


def started_with(name: str, folder: Path) -> dict[str, Any] | None:
    """The content of params.yaml with which a study was started; None if it was not. Raises PipelineError."""
    if shared_address() is None and not (folder / "study.db").exists():
        return None
    with usable_database():
        storage = open_storage(folder)
        if name not in optuna.get_all_study_names(storage):
            return None
        known = optuna.load_study(study_name=name, storage=storage).user_attrs.get(IDENTITY)
    return known and dict(known["params"])


def noted(study: Study, name: str, value: Any, known: Any = None) -> Any:
    """Note an attribute of a study in place of the known value, and return what is noted then.

    If several machines do so at once, all of them return the value that was noted last.
    """
    if study.user_attrs.get(name) == known:
        study.set_user_attr(name, value)
        if shared_address():
            time.sleep(AGREEING)
    return study.user_attrs[name]


def agree(study: Study, sweep: Sweep, params: Mapping[str, Any], digest: str) -> None:
    """Note in a new study with what it is started: the sweep, the content of params.yaml, and what both compose.

    Raises PipelineError if the study was started with anything else, also by another machine at the same time.
    """
    known = noted(study, IDENTITY, {"sweep": sweep.identity, "params": params, "digest": digest})
    if known["sweep"] != sweep.identity:
        raise PipelineError(
            f"the study {study.study_name} was started with another space, other objectives or settings: {ANOTHER}"
        )
    if known["params"] != params:
        raise PipelineError(f"another machine started the study with another params.yaml: {ANOTHER}")
    if known["digest"] != digest:
        raise PipelineError(f"conf/ or requirements.txt has changed since the study was started: {ANOTHER}")


def pruner_of(sweep: Sweep) -> optuna.pruners.BasePruner:
    """Optuna's pruner. It compares validation figures of epochs, so it needs one objective that is one of them."""
    if len(sweep.objectives) > 1 or sweep.objectives[0] not in PER_EPOCH or sweep.pruner == "none":
        return optuna.pruners.NopPruner()
    if sweep.pruner == "halving":
        return optuna.pruners.SuccessiveHalvingPruner()
    return optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=1)


def counted(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The trials without those that were started again, because their process had died, and without surplus ones.

    Of several that replace the same trial, because several machines found it lost, the first one counts.
    """
    everything = list(trials)
    repeated = {number for trial in everything for number in trial.system_attrs.get(RETRIED, [])}
    found: dict[int, FrozenTrial] = {}  # by the number of the first attempt
    for trial in everything:
        first, *_ = trial.system_attrs.get(RETRIED) or [trial.number]
        if trial.number not in repeated and SURPLUS not in trial.user_attrs:
            found.setdefault(first, trial)
    return [*found.values()]


def check_choice(study: Study, sweep: Sweep, chosen: int | None, ended: bool) -> None:
    """Raise PipelineError if the chosen trial is not complete, although the search has ended or no trial is left."""
    if not ended and (left_to_start(study, sweep) > 0 or study.get_trials(deepcopy=False, states=UNFINISHED)):
        return
    if chosen is not None and chosen not in {trial.number for trial in ranked(study, sweep)}:
        raise PipelineError(f"--choose {chosen}: trial {chosen} is not complete, or repeats another one")


def left_to_start(study: Study, sweep: Sweep) -> int:
    """How many trials have not started."""
    return sweep.trials - len(started(study))


def started(study: Study) -> list[FrozenTrial]:
    """The trials that have started."""
    return [trial for trial in counted(study.get_trials(deepcopy=False)) if trial.state != TrialState.WAITING]


def is_surplus(study: Study, sweep: Sweep, number: int) -> bool:
    """Whether a sweep has all of its trials without this one: two machines started its last one, or a lost one."""
    numbers = [trial.number for trial in started(study)]
    return number not in numbers or sum(each < number for each in numbers) >= sweep.trials


def lost(study: Study) -> list[FrozenTrial]:
    """Failed trials without a reason: the process that would have started them again died in between."""
    failed = [trial for trial in counted(study.get_trials(deepcopy=False)) if trial.state == TrialState.FAIL]
    return [trial for trial in failed if REASON not in trial.user_attrs]


def equal_trial(study: Study, number: int) -> FrozenTrial | None:
    """Another trial with the configuration of this one that has ended; None if there is none.

    Or else one that is running: with the same configuration, if it trains that already or has a lower number; or with a
    lower number and no configuration yet. So one of two equal trials waits for the other, on all machines the same.
    """
    trials = study.get_trials(deepcopy=False)
    digest = next(each.user_attrs[DIGEST] for each in trials if each.number == number)
    equal = [each for each in trials if each.user_attrs.get(DIGEST) == digest and each.number != number]
    ended = (each for each in equal if each.state in (TrialState.COMPLETE, TrialState.PRUNED))
    training = [each for each in equal if each.user_attrs.get(TRAINS) == each.number]
    earlier = [each for each in trials if each.number < number and each.user_attrs.get(DIGEST, digest) == digest]
    running = (each for each in [*training, *earlier] if each.state == TrialState.RUNNING)
    return next(itertools.chain(ended, running), None)


def best(study: Study, sweep: Sweep) -> list[FrozenTrial]:
    """The best trial, or the Pareto front if there are several objectives. Empty if no trial is complete.

    The first one is the best by the first objective. Repeated configurations are left out.
    """
    trials = ranked(study, sweep)
    if len(sweep.objectives) == 1:
        return trials[:1]
    return [trial for trial in trials if not any(dominates(other, trial, sweep) for other in trials)]


def dominates(first: FrozenTrial, second: FrozenTrial, sweep: Sweep) -> bool:
    """Whether a trial is at least as good as another one in every objective, and better in one."""
    signs = [-1 if direction == "maximize" else 1 for direction in sweep.directions]
    ours, theirs = ([sign * value for sign, value in zip(signs, each.values, strict=True)] for each in (first, second))
    return ours != theirs and all(mine <= other for mine, other in zip(ours, theirs, strict=True))


def ranked(study: Study, sweep: Sweep) -> list[FrozenTrial]:
    """The complete trials, the best by the first objective first, without repeated configurations."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    own = {trial.user_attrs.get(DIGEST): trial for trial in reversed(complete) if "same_as" not in trial.user_attrs}
    sign = -1 if sweep.directions[0] == "maximize" else 1
    return sorted(own.values(), key=lambda trial: (sign * trial.values[0], trial.number))


def figures(values: Iterable[float], sweep: Sweep) -> str:
    """The objectives of a trial, for people."""
    return ", ".join(f"{name} {value:.6g}" for name, value in zip(sweep.objectives, values, strict=True))
