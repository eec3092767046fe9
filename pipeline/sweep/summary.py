"""What a sweep prints about its trials."""

from collections import Counter
from typing import Any, NamedTuple

import rich.table
from optuna.trial import FrozenTrial, TrialState

from pipeline.commands.gate.markdown import markdown_table
from pipeline.sweep.finals import Result, further_seeds
from pipeline.sweep.search import Search, name_of
from pipeline.sweep.space import Sweep
from pipeline.sweep.study import REASON, best, counted, figures, ranked

ALPHA = 0.05  # significance level
TEN = 10  # trials in the closing table


class Table(NamedTuple):
    """A table of text."""

    title: str
    columns: list[str]
    rows: list[list[str]]

    def on_terminal(self) -> rich.table.Table:
        """The table for a terminal."""
        table = rich.table.Table(title=self.title)
        for column in self.columns:
            table.add_column(column, overflow="fold")  # else it would cut long settings
        for row in self.rows:
            table.add_row(*row)
        return table

    def in_markdown(self) -> str:
        """The table in Markdown."""
        more = f"\n{len(self.rows) - TEN} more are in sweep.html.\n" if len(self.rows) > TEN else ""
        return f"{self.title.capitalize()}:\n\n{markdown_table(self.columns, self.rows[:TEN])}\n{more}"


def summary(trial: FrozenTrial, sweep: Sweep) -> str:
    """How a trial ended, in one line."""
    settings = ", ".join(f"{key}={shortened(value)}" for key, value in trial.user_attrs.get("settings", {}).items())
    same = trial.user_attrs.get("same_as")
    if trial.state == TrialState.COMPLETE:
        return f"{figures(trial.values, sweep)}{f' (as trial {same})' if same is not None else ''}, with {settings}"
    if trial.state == TrialState.PRUNED:
        how = f"stopped as trial {same}" if same is not None else f"stopped after epoch {trial.last_step}"
        return f"{how}, with {settings}"
    return f"failed ({trial.user_attrs.get(REASON, 'its process died')}), with {settings}"


def shortened(value: Any) -> str:
    """A value with four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def states(search: Search) -> str:
    """How many trials ended in which way."""
    counts = Counter(trial.state.name.lower() for trial in counted(search.study.get_trials(deepcopy=False)))
    return ", ".join(f"{count} {state}" for state, count in counts.items()) or "none has started"


def described(result: Result, sweep: Sweep) -> str:
    """Mean and standard deviation of a finalist, for people."""
    return f"{sweep.objectives[0]} {mean_and_std(result)} over {len(result.values)} seeds"


def finals_table(search: Search, finals: list[Result]) -> Table:
    """The finalists, and whether each is worse than the best by more than chance."""
    seeds = ", ".join(map(str, further_seeds(search)))
    title = f"finals with the seeds {seeds} on the held-out images"
    rows = []
    for result in finals:
        judged = f"{'yes' if result.p_worse < ALPHA else 'not shown'} ({result.p_worse:.2g})"
        rows.append([result.name, mean_and_std(result), "" if result is finals[0] else judged])
    return Table(title, ["finalist", f"{search.sweep.objectives[0]}, mean ± std", "worse than the first? (p)"], rows)


def best_table(search: Search, finals: list[Result]) -> Table:
    """The ten best trials with what the finals say about them, or the Pareto front if there are several objectives."""
    sweep = search.sweep
    shown = best(search.study, sweep) if len(sweep.objectives) > 1 else ranked(search.study, sweep)[:TEN]
    further = {result.name: mean_and_std(result) for result in finals}
    rows = [
        [
            str(trial.number),
            *(f"{value:.6g}" for value in trial.values),
            *([further.get(name_of(trial), "")] if finals else []),
            ", ".join(f"{key}={shortened(value)}" for key, value in trial.user_attrs["settings"].items()),
        ]
        for trial in shown
    ]
    columns = ["trial", *sweep.objectives, *([f"mean ± std of {sweep.seeds} seeds"] if finals else []), "settings"]
    return Table("best trials on the held-out images", columns, rows)


def mean_and_std(result: Result) -> str:
    """Mean and standard deviation of a finalist."""
    return f"{result.mean:.6g} ± {result.std:.2g}"
