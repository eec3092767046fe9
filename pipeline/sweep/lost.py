"""Trials whose process has died: they give no sign of life, and are started again."""

import time
from pathlib import Path

from filelock import FileLock
from optuna.storages import fail_stale_trials
from optuna.study import Study
from optuna.trial import TrialState

from pipeline.sweep.database import GRACE, Storage, retry
from pipeline.sweep.study import lost


class LostTrials:
    """The trials of a study that a process watches, and starts again once they are lost."""

    def __init__(self, study: Study, lock: Path) -> None:
        self._study, self._lock = study, lock
        self._since: dict[int, float] = {}  # when each lost trial was seen first

    def start_again(self) -> bool:
        """Queue the trials that have been lost for a while, and return whether any are running or lost."""
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        backend = getattr(self._study._storage, "_backend", None)  # of Optuna's cache
        if isinstance(backend, Storage):
            for trial in running:
                backend.record_first_heartbeat(trial._trial_id)
        if not running and not lost(self._study):
            return False
        with FileLock(self._lock):
            fail_stale_trials(self._study)
            self._retry()
        return True

    def _retry(self) -> None:
        """Queue lost trials, once the process that may just be doing so has had time to."""
        now = time.monotonic()
        for trial in lost(self._study):
            if now - self._since.setdefault(trial.number, now) > GRACE:
                retry(self._study, trial)
