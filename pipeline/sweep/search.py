"""Search: train trials, and record each as an MLflow run."""

import math
import threading
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import yaml
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from pipeline.core import paths
from pipeline.core.config import Config
from pipeline.core.errors import PipelineError, first_line
from pipeline.core.records import Provenance
from pipeline.sweep.lost import LostTrials
from pipeline.sweep.settings import Settings, digest_of
from pipeline.sweep.shares import Share
from pipeline.sweep.space import OBJECTIVES, Sweep, suggest
from pipeline.sweep.study import DIGEST, TRAINS, counted, equal_trial
from pipeline.sweep.trial import Epoch, Interrupted, Outcome, SurplusError, Task, TrialError, running
from pipeline.tracking.outbox import RunAddress
from pipeline.tracking.recorder import Recorder
from pipeline.tracking.runs import epoch_metrics
from pipeline.tracking.store import Store
from pipeline.tracking.sweeps import open_trial

FINALIST, SEED = "finalist", "seed"  # what the trials of the finals choose
HIGHEST_SEED = 2**31 - 1
LOCK = "lock"  # a file in the folder of a sweep
POLLING = 0.2  # seconds


class Search(NamedTuple):
    """What all trials of a sweep share."""

    sweep: Sweep
    settings: Settings
    study: Study
    folder: Path  # with the images
    store: Store
    run: RunAddress  # of the whole sweep
    provenance: Provenance
    alone: threading.Lock  # held to use Hydra, which has global state, and to open MLflow runs
    stopped: threading.Event  # set when the sweep is interrupted
    finalists: dict[str, dict[str, Any]] | None = None  # in the finals: the settings of each finalist

    def trial(self, trial: Trial, share: Share) -> tuple[float, ...]:
        """Train one trial and return its objectives. Raises TrialError if it fails, TrialPruned if it is hopeless."""
        chosen = self.choose(trial)
        trial.set_user_attr("settings", chosen)
        try:
            with self.alone:
                config = self.settings.config(chosen)
        except PipelineError as error:
            raise TrialError(str(error)) from None
        trial.set_user_attr(DIGEST, digest_of(config))
        if earlier := self.equal_trial(trial):
            return self.repeat(trial, earlier, config, chosen)
        recorder = self.open_run(trial, config, chosen)
        task = Task(
            config, self.folder, self.run.root / paths.CHECKPOINTS, share, self.sweep.limits.get("parameters", math.inf)
        )
        try:
            outcome = self.train(trial, task, recorder)
            if not all(map(math.isfinite, objectives_of(outcome, self.sweep))):
                raise TrialError("it diverged: not all of its figures are numbers")
        except optuna.TrialPruned as pruned:
            recorder.tags({"sweep.state": "pruned", "sweep.reason": first_line(pruned)})
            recorder.status("KILLED")
            raise
        except UpdateFinishedTrialError:  # another worker took it for dead, and starts it again with the same run
            raise
        except BaseException as error:
            recorder.tags({"sweep.state": "failed", "sweep.reason": first_line(error)})
            recorder.status("KILLED" if isinstance(error, Interrupted) else "FAILED")
            raise
        trial.set_user_attr("wrong", outcome.wrong)
        recorder.metrics({name: getattr(outcome, name) for name in OBJECTIVES}, 0)
        recorder.tags({"sweep.state": "complete"})
        recorder.status("FINISHED")
        return objectives_of(outcome, self.sweep)

    @property
    def lock(self) -> Path:
        """The file that one worker at a time locks, also of other commands on this machine."""
        return self.folder / LOCK

    @property
    def about(self) -> str:
        """What this is, for people."""
        return f"Sweep {self.study.study_name} of {self.settings.path}"

    def name_of(self, trial: Trial | FrozenTrial) -> str:
        """The name of a trial for people, in the finals that of its finalist with its seed."""
        if self.finalists is None:
            return name_of(trial)
        known = FINALIST in trial.params and SEED in trial.params
        return f"{trial.params[FINALIST]}, seed {trial.params[SEED]}" if known else name_of(trial)

    def choose(self, trial: Trial) -> dict[str, Any]:
        """Let Optuna choose settings, in the finals a finalist and a seed."""
        if self.finalists is None:
            return suggest(trial, self.sweep)
        name = trial.suggest_categorical(FINALIST, [*self.finalists])
        seed = trial.suggest_int(SEED, 0, HIGHEST_SEED)
        before = (other for other in counted(self.study.get_trials(deepcopy=False)) if other.number < trial.number)
        if any(pair_of(other) == (name, seed) for other in before):
            raise SurplusError("another machine has queued the same trial")
        return self.finalists[name] | {SEED: seed}

    def equal_trial(self, trial: Trial) -> FrozenTrial | None:
        """Another trial with the same configuration, once it has ended; None if this one is to be trained."""
        lost = LostTrials(self.study, self.lock)
        while (earlier := equal_trial(self.study, trial.number)) and earlier.state == TrialState.RUNNING:
            if self.stopped.wait(POLLING):
                raise Interrupted("interrupted")
            lost.start_again()  # else this would wait for ever for one whose process has died
        if earlier is None:
            trial.set_user_attr(TRAINS, trial.number)
        return earlier

    def repeat(self, trial: Trial, earlier: FrozenTrial, config: Config, chosen: dict[str, Any]) -> tuple[float, ...]:
        """The objectives of an equal trial. Raises TrialPruned if that was stopped early."""
        trial.set_user_attr("same_as", earlier.number)
        trial.set_user_attr("wrong", earlier.user_attrs.get("wrong"))
        if "run_id" in trial.user_attrs:  # from its first start, whose process has died
            recorder = self.open_run(trial, config, chosen)
            recorder.tags({"sweep.state": "repeated", "sweep.reason": f"has the settings of trial {earlier.number}"})
            recorder.status("KILLED")
        if earlier.state == TrialState.PRUNED:
            raise optuna.TrialPruned
        return tuple(earlier.values)

    def open_run(self, trial: Trial, config: Config, chosen: dict[str, Any]) -> Recorder:
        """Start the MLflow run of a trial, or continue that of one whose process died."""
        params = yaml.safe_dump(self.settings.params(chosen), sort_keys=False)
        known, name = trial.user_attrs.get("run_id"), self.name_of(trial)
        try:
            with self.alone:
                run = open_trial(self.store, self.run, name, config, params, self.provenance, known)
        except PipelineError as error:  # the trial is started again when the store answers
            raise Interrupted(str(error)) from None
        recorder = Recorder(run)
        try:
            trial.set_user_attr("run_id", run.run_id)
        except UpdateFinishedTrialError:  # another worker took it for dead: its next start has another run
            recorder.status("KILLED")
            raise
        recorder.status("RUNNING")
        return recorder

    def train(self, trial: Trial, task: Task, recorder: Recorder) -> Outcome:
        """Train a trial and record its epochs. Raises TrialPruned after an epoch that shows it to be hopeless."""
        left = self.sweep.limits.get("fit_seconds", math.inf)
        with running(task, self.stopped) as messages:
            for message in messages:
                if isinstance(message, Outcome):
                    return message
                left -= message["seconds"]
                if left < 0:
                    raise TrialError(f"it takes longer than {self.sweep.limits['fit_seconds']} seconds to fit")
                recorder.metrics(epoch_metrics(message, "validation"), int(message["epoch"]), message["timestamp"])
                if len(self.sweep.objectives) == 1:  # Optuna prunes for one objective only
                    trial.report(progress_of(message, self.sweep), int(message["epoch"]))
                    if trial.should_prune():
                        epoch, pruner = int(message["epoch"]), self.sweep.pruner
                        raise optuna.TrialPruned(f"stopped after epoch {epoch} by the pruner {pruner}")
        raise TrialError("its process ended without figures")


def name_of(trial: Trial | FrozenTrial) -> str:
    """The name of a trial for people."""
    return f"trial {trial.number}"


def pair_of(trial: FrozenTrial) -> tuple[Any, Any]:
    """The finalist and the seed of a trial of the finals, also if it has not started."""
    values = trial.system_attrs.get("fixed_params", {}) | trial.params
    return values.get(FINALIST), values.get(SEED)


def objectives_of(outcome: Outcome, sweep: Sweep) -> tuple[float, ...]:
    """The objectives of a trial."""
    return tuple(float(getattr(outcome, name)) for name in sweep.objectives)


def progress_of(epoch: Epoch, sweep: Sweep) -> float:
    """The figure of an epoch by which hopeless trials are found, in the direction of the first objective.

    The accuracy, also if the objective is the loss: that of an epoch includes label smoothing.
    """
    return epoch["val_accuracy"] if sweep.directions[0] == "maximize" else 1 - epoch["val_accuracy"]
