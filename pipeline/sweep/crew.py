"""The workers of one command, each of which trains one trial after another on its share of the machine."""

import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from filelock import FileLock
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from pipeline.core.errors import PipelineError, first_line
from pipeline.sweep.lost import LostTrials
from pipeline.sweep.search import Search
from pipeline.sweep.shares import Share
from pipeline.sweep.study import REASON, SURPLUS, is_surplus, left_to_start
from pipeline.sweep.trial import Interrupted, SurplusError, TrialError

Report = Callable[[FrozenTrial], None]


class Crew:
    """Workers that share a search, also with other commands and machines."""

    def __init__(self, search: Search, end: float | None, report: Report) -> None:
        self._search, self._end, self._report = search, end, report
        self._lost = LostTrials(search.study, search.lock)

    def run(self, shares: list[Share]) -> None:
        """Train trials, one for each share side by side, until none is left, or `end` (of time.monotonic) is over.

        Raises PipelineError if the MLflow store does not start a run.
        """
        with ThreadPoolExecutor(len(shares)) as executor:
            working = [executor.submit(self._work, share) for share in shares]
            try:
                ended, _ = wait(working, return_when=FIRST_EXCEPTION)
                for future in ended:
                    future.result()
            except BaseException as error:  # Ctrl-C, or a worker's error
                self._search.stopped.set()
                if isinstance(error, Interrupted):
                    raise PipelineError(str(error)) from None
                raise

    def _work(self, share: Share) -> None:
        starting = FileLock(self._search.lock)
        while not self._search.stopped.is_set():
            with starting:
                free = not self._is_over() and left_to_start(self._search.study, self._search.sweep) > 0
                if free:
                    self._train(share, starting)
            if not free and not self._repeats():
                return

    def _is_over(self) -> bool:
        """Whether no further trial may start."""
        return self._end is not None and time.monotonic() >= self._end

    def _train(self, share: Share, starting: FileLock) -> None:
        """Train one trial, and release the lock once the others count it."""
        study, numbers = self._search.study, list[int]()

        def train(trial: Trial) -> tuple[float, ...]:
            numbers.append(trial.number)
            starting.release()
            try:
                if is_surplus(study, self._search.sweep, trial.number):
                    raise SurplusError("another machine has started the same trial, or the last one")
                return self._search.trial(trial, share)
            except TrialError as error:
                if isinstance(error, SurplusError):
                    trial.set_user_attr(SURPLUS, True)
                trial.set_user_attr(REASON, first_line(error))
                raise

        def tell(_: Study, trial: FrozenTrial) -> None:
            if SURPLUS not in trial.user_attrs:
                self._report(trial)

        try:
            study.optimize(train, n_trials=1, catch=TrialError, callbacks=[tell])
        except (UpdateFinishedTrialError, ValueError, AssertionError):  # Optuna's, at different moments
            trials = study.get_trials(deepcopy=False)
            if not numbers or not was_taken_for_dead(trials[numbers[0]]):
                raise

    def _repeats(self) -> bool:
        """Wait a second for trials that others train, or that are to be started again. False if there are none."""
        if not self._lost.start_again():
            return False
        time.sleep(1)
        return True


def was_taken_for_dead(trial: FrozenTrial) -> bool:
    """Whether another worker ended a trial, because its process was suspended or its database did not answer."""
    return trial.state == TrialState.FAIL and REASON not in trial.user_attrs
