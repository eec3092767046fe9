"""Real sweeps on the digits of scikit-learn."""

import contextlib
import csv
import io
import os
import signal
import sqlite3
import statistics
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import FrozenTrial, TrialState

from pipeline.core import paths
from pipeline.core.dataset import load_split
from pipeline.sweep.study import counted
from tests.conftest import Project, Start, free_port, kill_all, serve_store
from tests.sweep import files

COMMAND = ("python", "-m", "pipeline.sweep")
SETTINGS = {"recipe": "smoke", "training": {"validation_fraction": 0.2, "deterministic": True}}
SPACE = {
    "model.dropout": {"low": 0.0, "high": 0.5},
    "model.hidden_units": {"low": 32, "high": 64},
    "optimizer.name": {"choices": ["rmsprop", "adam"]},
}


def write(project: Project, name: str, **changes: Any) -> None:
    """Write a sweep whose trials are reproducible."""
    files.write(project, name, **{"settings": SETTINGS, "space": SPACE} | changes)


def started(project: Project, name: str) -> int:
    """The number of trials that have started."""
    file = project.root / ".sweeps" / name / "study.db"
    if not file.exists():
        return 0
    with contextlib.closing(sqlite3.connect(file)) as database:
        try:
            return int(database.execute("SELECT COUNT(*) FROM trials").fetchone()[0])
        except sqlite3.OperationalError:  # no such table yet
            return 0


def queue(project: Project, name: str, *chosen: dict[str, Any]) -> None:
    """Create a study whose first trials have these settings, instead of those that Optuna would choose."""
    folder = project.root / ".sweeps" / name
    folder.mkdir(parents=True)
    study = optuna.create_study(storage=f"sqlite:///{folder}/study.db", study_name=name, direction="maximize")
    for settings in chosen:
        study.enqueue_trial(settings)


def trials_of(project: Project, name: str) -> list[FrozenTrial]:
    """The trials of a study."""
    return optuna.load_study(study_name=name, storage=f"sqlite:///{project.root}/.sweeps/{name}/study.db").trials


def runs_of(project: Project, name: str) -> tuple[Run, dict[int, Run]]:
    """The MLflow run of a sweep, and those of its trials by number."""
    client = MlflowClient(f"sqlite:///{project.root}/mlflow.db")
    places = [each.experiment_id for each in client.search_experiments()]
    (parent,) = client.search_runs(places, f"tags.sweep = '{name}'")
    children = client.search_runs(places, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    return parent, {int(run.data.tags["sweep.trial"].removeprefix("trial ")): run for run in children}


def test_a_sweep_trains_and_records_its_trials(trained: Project, tmp_path: Path) -> None:
    """It does not read the test set, and leaves the project's results as they are."""
    write(trained, "s", trials=4)
    for name in ("test_images", "test_labels"):
        (trained.root / paths.RAW_FILES[name]).unlink()
    (trained.root / paths.TEST).unlink()
    before = trained.files("models", "reports", "composed")
    printed = trained.succeed(*COMMAND, "s", "--jobs", "2")
    trials = trials_of(trained, "s")
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4, printed
    assert trained.files("models", "reports", "composed") == before
    assert not [*(trained.root / paths.CHECKPOINTS).glob("*/epoch*")]
    parent, runs = runs_of(trained, "s")
    assert (parent.info.status, sorted(runs)) == ("FINISHED", [0, 1, 2, 3])
    best = max(trials, key=lambda trial: trial.values[0])
    assert parent.data.metrics["val_accuracy"] == best.values[0]
    assert parent.data.tags["sweep.best_run"] == runs[best.number].info.run_id
    client = MlflowClient(f"sqlite:///{trained.root}/mlflow.db")
    assert {each.path for each in client.list_artifacts(parent.info.run_id)} >= {"sweep.html", "charts"}
    recorded = client.download_artifacts(parent.info.run_id, "config/sweep.yaml", str(tmp_path))
    assert Path(recorded).read_bytes() == (trained.root / "sweeps/s.yaml").read_bytes()
    assert "charts/slice.png" in {each.path for each in client.list_artifacts(parent.info.run_id, "charts")}
    assert f"| {best.number} | {best.values[0]:.6g} |" in parent.data.tags["mlflow.note.content"]
    for trial in trials:
        run = runs[trial.number]
        assert run.info.status == "FINISHED"
        assert run.data.metrics["val_accuracy"] == trial.values[0]
        for key, value in trial.params.items():
            assert run.data.params[key] == str(value)
        history = client.get_metric_history(run.info.run_id, "val/accuracy")
        assert [point.step for point in history] == [1, 2]
        assert [point.value for point in history] == [*trial.intermediate_values.values()]
    assert f"  model.hidden_units: {best.params['model.hidden_units']}" in printed
    again = trained.succeed(*COMMAND, "s")
    assert trials_of(trained, "s") == trials
    assert printed[printed.index("best trials") :] == again[again.index("best trials") :]
    assert "4/4" in again
    client.delete_run(parent.info.run_id)
    trained.succeed(*COMMAND, "s")
    assert sorted(runs_of(trained, "s")[1]) == [0, 1, 2, 3], "they are below the sweep's new run"
    assert "4 joined" not in trained.run("python", "-m", "pipeline.commands.runs", "check").stdout


def test_a_trial_is_an_ordinary_training(trained: Project) -> None:
    """`dvc repro` with the settings that --apply writes gives the same epochs."""
    write(trained, "s", trials=2)
    trained.succeed(*COMMAND, "s", "--apply")
    best = max(trials_of(trained, "s"), key=lambda trial: trial.values[0])
    params = yaml.safe_load((trained.root / paths.PARAMS).read_text(encoding="utf-8"))
    assert params["model"]["hidden_units"] == best.params["model.hidden_units"]
    assert params["optimizer"]["name"] == best.params["optimizer.name"]
    assert "seed" not in params, "the sweep does not choose it"
    trained.succeed("dvc", "repro")
    history = (trained.root / paths.HISTORY).read_text(encoding="utf-8")
    accuracies = [float(row["val_accuracy"]) for row in csv.DictReader(io.StringIO(history))]
    assert accuracies == [*best.intermediate_values.values()]
    assert best.values[0] == round(accuracies[-1], 6), "a training records its own figures with six digits"


def test_the_winner_becomes_a_recipe(trained: Project) -> None:
    write(trained, "s", trials=2)
    for name in ("Tiny", "../tiny", "smoke", ""):
        (line,) = trained.fail(*COMMAND, "s", "--recipe", name).splitlines()
        assert line.startswith(f"sweep: --recipe {name}: ")
    trained.succeed(*COMMAND, "s", "--recipe", "found", "--apply")
    trained.succeed("python", "-m", "pipeline.stages.compose")
    applied = yaml.safe_load((trained.root / paths.COMPOSED).read_text(encoding="utf-8"))
    trained.params(recipe="found")
    trained.succeed("python", "-m", "pipeline.stages.compose")
    composed = yaml.safe_load((trained.root / paths.COMPOSED).read_text(encoding="utf-8"))
    for values in (applied, composed):
        del values["recipe"], values["gate"]["seed_noise"]
    assert composed == applied
    text = (trained.root / "conf/recipe/found.yaml").read_text(encoding="utf-8")
    assert text.startswith("# @package _global_\n# Trial ")


def test_a_trial_that_diverges_is_recorded_and_the_sweep_goes_on(trained: Project) -> None:
    write(trained, "s", trials=2, space={"optimizer.learning_rate": {"low": 1e30, "high": 2e30}})
    printed = trained.fail(*COMMAND, "s")
    parent, runs = runs_of(trained, "s")
    assert (parent.info.status, len(runs)) == ("FAILED", 2)
    for trial in trials_of(trained, "s"):
        assert trial.state == TrialState.FAIL
        assert runs[trial.number].info.status == "FAILED"
        assert "diverged" in trial.user_attrs["reason"]
        assert "diverged" in runs[trial.number].data.tags["sweep.reason"]
    assert printed.count("diverged") == 2
    assert printed.splitlines()[-1] == "sweep: no trial is complete (2 fail)"


@pytest.mark.parametrize("pruner", ["halving", "median"])
def test_hopeless_trials_are_stopped_and_recorded(trained: Project, pruner: str) -> None:
    """Networks whose learning rate is far too low stop after their first epoch."""
    rates = [1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 1e-9, 2e-9, 3e-9, 1e-9]
    write(
        trained, "s", trials=len(rates), pruner=pruner, space={"optimizer.learning_rate": {"low": 1e-9, "high": 1e-2}}
    )
    queue(trained, "s", *({"optimizer.learning_rate": rate} for rate in rates))
    printed = trained.succeed(*COMMAND, "s", "--jobs", "1")
    pruned = [trial for trial in trials_of(trained, "s") if trial.state == TrialState.PRUNED]
    _, runs = runs_of(trained, "s")
    for trial in pruned:
        if "same_as" not in trial.user_attrs:
            assert f"trial {trial.number}: stopped after epoch {trial.last_step}, with" in printed
            assert runs[trial.number].info.status == "KILLED"
            assert runs[trial.number].data.tags["sweep.state"] == "pruned"
            reason = f"stopped after epoch {trial.last_step} by the pruner {pruner}"
            assert runs[trial.number].data.tags["sweep.reason"] == reason
            assert len(trial.intermediate_values) == trial.last_step
    assert {5, 6, 7, 8} <= {trial.number for trial in pruned}
    assert [trial.number for trial in pruned if "same_as" in trial.user_attrs] == [8]


def test_trials_beyond_the_limits_are_recorded_and_do_not_count(trained: Project) -> None:
    space = {"model.hidden_units": {"choices": [32, 512]}}
    write(trained, "s", trials=3, space=space, limits={"parameters": 100_000})
    queue(trained, "s", *({"model.hidden_units": units} for units in (32, 512, 512)))
    printed = trained.succeed(*COMMAND, "s")
    assert [trial.state.name for trial in trials_of(trained, "s")] == ["COMPLETE", "FAIL", "FAIL"]
    assert "failed (it has 301,066 parameters, more than 100,000)" in printed
    write(trained, "t", trials=1, limits={"fit_seconds": 1e-6})
    assert "it takes longer than 1e-06 seconds to fit" in trained.fail(*COMMAND, "t")


def test_equal_configurations_are_trained_once(trained: Project) -> None:
    """Also if they start side by side."""
    write(trained, "s", trials=4, space={"model.hidden_units": {"choices": [32, 64]}})
    queue(trained, "s", *({"model.hidden_units": units} for units in (32, 32, 64, 32)))
    trained.succeed(*COMMAND, "s", "--jobs", "2")
    trials = trials_of(trained, "s")
    _, runs = runs_of(trained, "s")
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    assert [*sorted(runs)] == [0, 2]
    assert [trial.values for trial in trials if trial.number != 2] == [trials[0].values] * 3


@pytest.mark.slow
def test_a_trial_does_not_wait_for_an_equal_one_whose_process_has_died(trained: Project, start: Start) -> None:
    write(trained, "s", trials=2, space={"model.hidden_units": {"choices": [32, 64]}})
    queue(trained, "s", {"model.hidden_units": 32}, {"model.hidden_units": 32})
    process = start([sys.executable, *COMMAND[1:], "s", "--jobs", "1"], trained.root)
    end = time.monotonic() + 120
    while not any("run_id" in trial.user_attrs for trial in trials_of(trained, "s")):
        assert time.monotonic() < end
        time.sleep(0.05)
    process.kill()
    trained.succeed(*COMMAND, "s", "--jobs", "1")
    trials = counted(trials_of(trained, "s"))
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2
    assert sum("same_as" in trial.user_attrs for trial in trials) == 1
    _, runs = runs_of(trained, "s")
    assert "RUNNING" not in {run.info.status for run in runs.values()}


def test_the_best_are_compared_over_further_seeds(trained: Project) -> None:
    """The current settings take part. The figures of the search, by which the best were chosen, do not count."""
    write(trained, "s", trials=3, finalists=1, seeds=2)
    printed = trained.succeed(*COMMAND, "s", "--jobs", "2")
    trials = trials_of(trained, "s")
    best = max(trials, key=lambda trial: trial.values[0])
    storage = f"sqlite:///{trained.root}/.sweeps/s/study.db"
    (name,) = [name for name in optuna.get_all_study_names(storage) if name.startswith("s-finals-")]
    finals = optuna.load_study(study_name=name, storage=storage).trials
    names = ["current settings", f"trial {best.number}"]  # the first one wins if their means are equal
    assert {(trial.params["finalist"], trial.params["seed"]) for trial in finals} == set(product(names, (2, 3)))
    assert len(finals) == 4
    images = len(load_split(trained.root / ".sweeps/s/validation.npz").labels)
    for trial in finals:
        assert len(trial.user_attrs["wrong"]) == round((1 - trial.values[0]) * images)
    means = {
        name: statistics.mean(trial.values[0] for trial in finals if trial.params["finalist"] == name) for name in names
    }
    winner = max(means, key=lambda name: means[name])
    client = MlflowClient(f"sqlite:///{trained.root}/mlflow.db")
    (parent,) = client.search_runs([each.experiment_id for each in client.search_experiments()], "tags.sweep = 's'")
    assert parent.data.tags["sweep.best"] == winner
    assert parent.data.tags["sweep.best_run"] == (best.user_attrs["run_id"] if winner != "current settings" else "")
    assert parent.data.metrics["finals/val_accuracy_mean"] == pytest.approx(means[winner])
    again = trained.succeed(*COMMAND, "s")
    assert printed[printed.index("best trials") :] == again[again.index("best trials") :]
    assert len(optuna.load_study(study_name=name, storage=storage).trials) == 4


def test_another_space_under_the_same_name_is_refused(trained: Project) -> None:
    write(trained, "s", trials=1)
    trained.succeed(*COMMAND, "s")
    write(trained, "s", trials=2, space={"model.dropout": {"low": 0.1, "high": 0.2}})
    (line,) = trained.fail(*COMMAND, "s").splitlines()
    assert line.startswith("sweep: the study s was started with another space")
    trained.succeed(*COMMAND, "s", "--study", "t")
    assert len(trials_of(trained, "s")) == 1


@pytest.mark.parametrize("name", ["../../x", "a/b", "..", "a'b", "a b", "", "é"])
def test_a_study_has_the_name_of_a_folder(trained: Project, name: str) -> None:
    assert trained.fail(*COMMAND, "smoke", "--study", name).splitlines()[-1].endswith("use letters, digits, _, - and .")
    assert not (trained.root / ".sweeps").exists()


def test_several_objectives_give_a_front(trained: Project) -> None:
    """The winner is the best by the first objective, or the one that the user chooses."""
    space = {"model.hidden_units": {"low": 4, "high": 600, "log": True}}
    write(trained, "s", trials=4, objectives=["val_accuracy", "parameters"], space=space)
    printed = trained.succeed(*COMMAND, "s")
    trials = trials_of(trained, "s")
    for trial in trials:
        assert trial.values[1] > 10 * trial.params["model.hidden_units"]
    first = max(trials, key=lambda trial: (trial.values[0], -trial.values[1]))
    parent, _ = runs_of(trained, "s")
    assert parent.data.tags["sweep.best"] == f"trial {first.number}"
    assert f"  model.hidden_units: {first.params['model.hidden_units']}\n" in printed
    other = min(trials, key=lambda trial: trial.values[0])
    trained.succeed(*COMMAND, "s", "--choose", str(other.number), "--recipe", "chosen")
    recipe = yaml.safe_load((trained.root / "conf/recipe/chosen.yaml").read_text(encoding="utf-8"))
    assert recipe["model"]["hidden_units"] == other.params["model.hidden_units"]
    parent, _ = runs_of(trained, "s")
    assert parent.data.tags["sweep.best"] == f"trial {other.number}"
    assert [parent.data.metrics[name] for name in ("val_accuracy", "parameters")] == other.values
    assert "sweep: --choose 99: trial 99 is not complete, or repeats another one" in trained.fail(
        *COMMAND, "s", "--choose", "99"
    )
    parent, _ = runs_of(trained, "s")
    assert parent.info.status == "FINISHED"


def test_a_study_keeps_the_settings_with_which_it_was_started(trained: Project) -> None:
    """Also those of params.yaml, which --apply changes."""
    write(trained, "s", trials=2, finalists=1, seeds=2)
    first = trained.succeed(*COMMAND, "s", "--choose", "0", "--apply")
    applied = (trained.root / paths.PARAMS).read_text(encoding="utf-8")
    images = (trained.root / ".sweeps/s/validation.npz").read_bytes()
    again = trained.succeed(*COMMAND, "s", "--choose", "0", "--apply")
    assert (trained.root / paths.PARAMS).read_text(encoding="utf-8") == applied
    assert "params.yaml has changed since the study was started (" in again
    assert again.splitlines()[-1] == "params.yaml has the settings of trial 0"
    trained.params(**yaml.safe_load(applied) | {"seed": 50})
    later = trained.succeed(*COMMAND, "s")
    table = "finals with the seeds 2, 3 on the held-out images"
    assert later[later.index(table) :].splitlines()[:8] == first[first.index(table) :].splitlines()[:8]
    assert (trained.root / ".sweeps/s/validation.npz").read_bytes() == images
    trained.params(recipe="smoke", seed=50)
    assert (
        "has changed since the study was started"
        in trained.fail(*COMMAND, "s", "--choose", "0", "--apply").splitlines()[-1]
    )
    config = trained.root / "conf" / "recipe" / "smoke.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace("epochs: ", "epochs: 1"), encoding="utf-8")
    assert "conf/ or requirements.txt has changed since the study" in trained.fail(*COMMAND, "s").splitlines()[-1]


def test_a_finalist_that_equals_the_current_settings_is_not_trained_twice(trained: Project) -> None:
    trained.params(recipe="smoke", model={"name": "mlp", "hidden_units": 64})
    write(trained, "s", trials=2, finalists=2, seeds=2, space={"model.hidden_units": {"choices": [32, 64]}})
    queue(trained, "s", {"model.hidden_units": 64}, {"model.hidden_units": 32})
    printed = trained.succeed(*COMMAND, "s")
    finals = printed[printed.index("finals with") :]
    assert "│ trial 1 " in finals
    assert finals.count("│ trial ") == 1
    assert "│ current settings │" in finals


def test_a_refused_command_leaves_the_images_of_another_sweep(trained: Project) -> None:
    write(trained, "s", trials=1)
    trained.succeed(*COMMAND, "s")
    before = trained.files(".sweeps")
    write(trained, "t", settings={"recipe": "smoke", "training": {"validation_fraction": 0.3}})
    assert "was started with another space" in trained.fail(*COMMAND, "t", "--study", "s")
    assert trained.files(".sweeps") == before


def test_a_study_that_is_removed_during_the_sweep_stops_it_with_a_line(trained: Project, start: Start) -> None:
    write(trained, "s", trials=9)
    process = start([sys.executable, *COMMAND[1:], "s", "--jobs", "2"], trained.root)
    end = time.monotonic() + 120
    while started(trained, "s") < 2:
        assert time.monotonic() < end
        time.sleep(0.1)
    (trained.root / ".sweeps/s/study.db").write_bytes(b"")
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 1
    assert "Traceback" not in printed
    assert printed.splitlines()[-1].startswith("sweep: the sweep's database in .sweeps fails (")


def test_two_commands_share_the_trials(trained: Project, start: Start) -> None:
    write(trained, "s", trials=5)
    commands = [start([*COMMAND, "s"], trained.root) for _ in range(2)]
    printed = [command.communicate(timeout=120)[0] for command in commands]
    assert [command.returncode for command in commands] == [0, 0], printed
    assert [trial.state for trial in trials_of(trained, "s")] == [TrialState.COMPLETE] * 5
    _, runs = runs_of(trained, "s")
    assert len(runs) == 5
    assert all(text.splitlines()[-1].startswith("  ") for text in printed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.slow
def test_a_sweep_continues_where_it_was(trained: Project, start: Start, number: signal.Signals) -> None:
    write(trained, "s", trials=4)
    process = start([sys.executable, *COMMAND[1:], "s"], trained.root)
    end = time.monotonic() + 120
    while started(trained, "s") < 3:
        assert time.monotonic() < end
        time.sleep(0.1)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.kill()
    printed = process.communicate(timeout=60)[0]
    if number == signal.SIGINT:
        assert "Traceback" not in printed
        assert printed.splitlines()[-1] == "sweep: interrupted: the same command continues the sweep"
    trained.succeed(*COMMAND, "s")
    trials = counted(trials_of(trained, "s"))
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    parent, runs = runs_of(trained, "s")
    assert parent.info.status == "FINISHED"
    assert sorted(runs) == sorted(trial.number for trial in trials)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert all(runs[trial.number].info.run_id == trial.user_attrs["run_id"] for trial in trials)


def test_a_database_that_does_not_answer_is_named_without_its_password(trained: Project) -> None:
    write(trained, "s")
    address = f"postgresql+psycopg2://me:secret@127.0.0.1:{free_port()}/sweeps"
    printed = trained.fail(*COMMAND, "s", SWEEP_STORAGE=address)
    assert printed.splitlines()[-1].startswith("sweep: the sweep's database postgresql+psycopg2://***@127.0.0.1:")
    assert "secret" not in printed
    for address in ("nonsense", "mysql://me:secret@127.0.0.1/x", "postgresql+none://"):
        printed = trained.fail(*COMMAND, "s", SWEEP_STORAGE=address)
        assert len(printed.splitlines()) == 1
        assert printed.startswith("sweep: the sweep's database ")
        assert "secret" not in printed


@pytest.mark.parametrize(("number", "states"), [(9, ["COMPLETE", "FAIL"]), (signal.SIGINT, ["COMPLETE"] * 2)])
def test_a_killed_trial_fails_alone(trained: Project, start: Start, number: int, states: list[str]) -> None:
    """The kernel kills it if memory is exhausted. Ctrl-C is for the sweep, which ends its trials."""
    write(trained, "s", trials=2)
    process = start([sys.executable, *COMMAND[1:], "s"], trained.root)
    child = None
    end = time.monotonic() + 120
    while child is None:
        assert time.monotonic() < end
        time.sleep(0.05)
        child = next((each for each in psutil.Process(process.pid).children(True) if is_trial(each)), None)
    child.send_signal(number)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 0, printed
    assert sorted(trial.state.name for trial in trials_of(trained, "s")) == states
    assert ("its process was ended by signal 9" in printed) == ("FAIL" in states)


def is_trial(process: psutil.Process) -> bool:
    """Whether a process trains a trial."""
    with contextlib.suppress(psutil.Error):
        return "spawn_main" in " ".join(process.cmdline())
    return False


@pytest.mark.slow
def test_a_store_that_is_lost_stops_the_sweep(trained: Project, start: Start) -> None:
    """The trials that it recorded stay, and the others follow when it answers."""
    write(trained, "s", trials=3)
    port = free_port()
    server, own = serve_store(start, trained.root, port), {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
    process = start([sys.executable, *COMMAND[1:], "s"], trained.root, **own)
    end = time.monotonic() + 120
    while started(trained, "s") < 2:
        assert time.monotonic() < end
        time.sleep(0.1)
    kill_all(server)
    printed = process.communicate(timeout=300)[0]
    assert "Traceback" not in printed
    assert process.returncode == 1
    serve_store(start, trained.root, port)
    trained.succeed(*COMMAND, "s", **own)
    assert [trial.state for trial in counted(trials_of(trained, "s"))] == [TrialState.COMPLETE] * 3
    client = MlflowClient(own["MLFLOW_TRACKING_URI"])
    places = [each.experiment_id for each in client.search_experiments()]
    assert {run.info.status for run in client.search_runs(places)} == {"FINISHED"}


@pytest.mark.parametrize(
    ("package", "options", "said"),
    [
        ("optuna", [], "sweep: Optuna is not installed: pip install -r requirements-sweep.txt installs it"),
        ("ray", ["--ray", "auto"], "sweep: Ray is not installed: pip install -r requirements-ray.txt installs it"),
    ],
)
def test_a_missing_package_is_named(trained: Project, package: str, options: list[str], said: str) -> None:
    write(trained, "s")
    absent = f"import runpy, sys; sys.modules[{package!r}] = None; sys.argv = ['sweep', 's', *{options}]"
    printed = trained.fail(sys.executable, "-c", f"{absent}; runpy.run_module('pipeline.sweep', run_name='__main__')")
    assert printed.splitlines()[-1] == said


def test_an_impossible_size_is_a_failed_trial(trained: Project) -> None:
    """Memory for it is refused at once; the sweep goes on."""
    write(trained, "s", trials=2, space={"model.hidden_units": {"choices": [32, 1_000_000_000]}})
    queue(trained, "s", {"model.hidden_units": 1_000_000_000}, {"model.hidden_units": 32})
    printed = trained.succeed(*COMMAND, "s")
    assert [trial.state.name for trial in trials_of(trained, "s")] == ["FAIL", "COMPLETE"]
    assert "failed (memory is exhausted" in printed
    _, runs = runs_of(trained, "s")
    assert "memory" in runs[0].data.tags["sweep.reason"]


def test_a_full_disk_stops_the_sweep_with_a_line(trained: Project) -> None:
    """A limit on the size of files gives the same kind of error."""
    write(trained, "s", trials=3)
    limited = f"ulimit -f 1; trap '' XFSZ; exec {sys.executable} -m pipeline.sweep s"
    printed = trained.fail("bash", "-c", limited)
    assert printed.splitlines()[-1].startswith("sweep: ")
    trained.succeed(*COMMAND, "s")
    assert [trial.state for trial in counted(trials_of(trained, "s"))] == [TrialState.COMPLETE] * 3
