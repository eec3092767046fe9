"""The whole pipeline, end to end: DVC commands in clones, on the small dataset, recorded in MLflow."""

import csv
import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline.core.dataset import load_split
from pipeline.stages.fetch.packaged import idx_bytes
from tests.conftest import PATH, Project, Start

# Run a stage, and print the heavy packages that it has imported when it exits.
IMPORTED = """
import os, runpy, sys
leave, heavy = os._exit, {"keras", "mlflow", "sklearn", "pandas", "matplotlib"}
os._exit = lambda code: print("imported:", sorted(heavy & {*sys.modules}), flush=True) or leave(code)
runpy.run_module("pipeline.stages.%s", run_name="__main__")
"""
STAGES = ("compose", "fetch", "preprocess", "train", "evaluate")
PICTURES = ("curves", "confusion_matrix", "worst_mistakes", "reliability")


def ran(output: str) -> list[str]:
    """The stages whose commands ran, in order."""
    return re.findall(r"^Running stage '(\w+)'", output, re.MULTILINE)


def client(project: Project) -> MlflowClient:
    return MlflowClient(f"sqlite:///{project.root}/mlflow.db")


def runs(project: Project) -> list[Run]:
    """All runs, newest first."""
    mlruns = client(project)
    return list(mlruns.search_runs([experiment.experiment_id for experiment in mlruns.search_experiments()]))


def snapshot(project: Project) -> dict[str, bytes]:
    files = project.files("composed", "data", "models", "reports")
    return files | {name: (project.root / name).read_bytes() for name in ("composed.yaml", "dvc.lock")}


# Results of one `dvc repro`.


def test_repro_runs_every_stage_and_ends_with_a_table(trained_once: Project) -> None:
    log = (trained_once.root / "repro.log").read_text(encoding="utf-8")
    assert ran(log) == list(STAGES)
    for row in ("test loss", "test accuracy", "95 % interval", "errors", "training", "make ui"):
        assert row in log
    assert len(re.findall(r"^epoch +\d/2 ", log, re.MULTILINE)) == 2, "one line per epoch without a terminal"
    assert "cuda" not in log.lower(), "TensorFlow's startup messages are suppressed"
    for folder in (".resume", ".unsent"):
        assert not list((trained_once.root / folder).glob("*/*")), "no temporary state remains"


def test_the_reports_are_about_every_test_image(trained_once: Project) -> None:
    test = trained_once.report("evaluation.json")["test"]
    with (trained_once.root / "reports" / "errors.csv").open(encoding="utf-8") as file:
        errors = list(csv.DictReader(file))
    labels = load_split(trained_once.root / "data" / "prepared" / "test.npz").labels
    assert test["images"] == sum(map(sum, test["confusion_matrix"])) == len(labels) == 500
    assert test["errors"] == len(errors) == 500 - np.trace(test["confusion_matrix"])
    assert test["accuracy"] == pytest.approx(1 - test["errors"] / 500)
    assert 0.6 < test["accuracy_low"] < test["accuracy"] < test["accuracy_high"] < 1
    assert all(int(row["label"]) == labels[int(row["index"])] != int(row["prediction"]) for row in errors)
    data = trained_once.report("data/statistics.json")
    assert [data[part]["images"] for part in ("train", "validation", "test")] == [1188, 109, 500]


def test_the_pictures_are_drawn_and_are_dvc_plots(trained: Project) -> None:
    for name in ("data/samples", *(f"pictures/{name}" for name in PICTURES)):
        assert (trained.root / "reports" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    trained.succeed("dvc", "plots", "show")
    page = (trained.root / "dvc_plots" / "index.html").read_text(encoding="utf-8")
    for plot in ("samples.png", "reliability.png", "val_accuracy"):
        assert plot in page


def test_one_mlflow_run_records_everything(trained_once: Project) -> None:
    (run,) = runs(trained_once)
    test = trained_once.report("evaluation.json")["test"]
    assert (run.info.run_name, run.info.status) == ("smoke-mlp-seed-1", "FINISHED")
    started = time.mktime(time.strptime(run.data.tags["started"], "%Y-%m-%d %H:%M:%S"))
    assert started == pytest.approx(run.info.start_time / 1000, abs=30)
    composed = yaml.safe_load((trained_once.root / "composed.yaml").read_text(encoding="utf-8"))
    for key, value in (("model.name", "mlp"), ("training.epochs", "2"), ("model.layers.1.units", "512")):
        assert run.data.params[key] == value
    assert run.data.params["optimizer.learning_rate"] == str(composed["optimizer"]["learning_rate"])
    for name in ("accuracy", "loss", "errors"):
        assert run.data.metrics[f"test/{name}"] == test[name]
    for name in ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "train/learning_rate"):
        history = client(trained_once).get_metric_history(run.info.run_id, name)
        assert sorted(point.step for point in history) == [1, 2]
    assert any(name.startswith("system/cpu") for name in run.data.metrics)
    lock = yaml.safe_load((trained_once.root / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    hashes = {out["path"]: out["md5"] for stage in lock.values() for out in stage["outs"]}
    assert run.data.tags["dvc.model"] == hashes["models/model.keras"]
    assert run.data.tags["dvc.train"] == hashes["data/prepared/train.npz"]
    assert run.data.tags["dvc.test"] == hashes["data/prepared/test.npz"]
    assert run.data.tags["git.commit"] == trained_once.succeed("git", "rev-parse", "HEAD").strip()
    assert (run.data.tags["device"], run.data.tags["keras.backend"]) == ("cpu", "tensorflow")
    assert run.data.tags["precision"] == "float32"
    inputs = {item.tags[0].value: item.dataset.digest for item in run.inputs.dataset_inputs}
    assert inputs == {name: hashes[f"data/prepared/{name}.npz"] for name in ("train", "validation", "test")}
    files = {
        file.path
        for folder in ("plots", "reports")
        for file in client(trained_once).list_artifacts(run.info.run_id, folder)
    }
    assert {"plots/curves.png", "plots/samples.png", "plots/worst_mistakes.png", "reports/errors.csv"} <= files
    assert "model_summary.txt" in {file.path for file in client(trained_once).list_artifacts(run.info.run_id)}


def test_the_logged_model_takes_raw_images(trained_once: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = runs(trained_once)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{trained_once.root}/mlflow.db")
    location = f"runs:/{run.info.run_id}/model"
    loaded = mlflow.pyfunc.load_model(location)
    test = load_split(trained_once.root / "data" / "prepared" / "test.npz")
    wrong = np.flatnonzero(loaded.predict(test.images).argmax(axis=1) != test.labels)
    with (trained_once.root / "reports" / "errors.csv").open(encoding="utf-8") as file:
        assert wrong.tolist() == [int(row["index"]) for row in csv.DictReader(file)]
    folder = Path(mlflow.artifacts.download_artifacts(location))
    assert not (trained_once.root / "mlruns").exists() or not any((trained_once.root / "mlruns").iterdir())
    assert (folder / "data" / "model.keras").read_bytes() == (trained_once.root / "models" / "model.keras").read_bytes()
    requirements = (folder / "requirements.txt").read_text(encoding="utf-8").split()
    assert all("==" in requirement for requirement in requirements)
    assert {requirement.split("==")[0] for requirement in requirements} >= {"keras", "tensorflow", "mlflow"}


def test_a_second_repro_runs_no_stage(trained: Project) -> None:
    assert ran(trained.succeed("dvc", "repro")) == []


# Only stages with changed inputs run again.


def test_a_changed_value_in_conf_runs_the_stages_that_depend_on_it(trained: Project) -> None:
    path = trained.root / "conf" / "model" / "mlp.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("hidden_units: 512", "hidden_units: 32"), encoding="utf-8")
    assert ran(trained.succeed("dvc", "repro")) == ["compose", "train", "evaluate"]
    assert runs(trained)[0].data.params["model.hidden_units"] == "32"


def test_a_changed_comment_in_conf_runs_only_compose(trained: Project) -> None:
    path = trained.root / "conf" / "config.yaml"
    path.write_text(f"# A new comment.\n{path.read_text(encoding='utf-8')}", encoding="utf-8")
    assert ran(trained.succeed("dvc", "repro")) == ["compose"]


def test_params_that_are_changed_back_restore_the_model_from_the_cache(trained: Project) -> None:
    before = (trained.root / "models" / "model.keras").read_bytes()
    first = runs(trained)[0].info.run_id
    trained.params(recipe="smoke", seed=2)
    assert ran(trained.succeed("dvc", "repro")) == ["compose", "preprocess", "train", "evaluate"]
    assert (trained.root / "models" / "model.keras").read_bytes() != before
    trained.params(recipe="smoke")
    output = trained.succeed("dvc", "repro")
    assert "Stage 'train' is cached - skipping run" in output
    assert (trained.root / "models" / "model.keras").read_bytes() == before
    assert len(runs(trained)) == 2
    assert (
        trained.report("evaluation.json")["test"]["accuracy"]
        == client(trained).get_run(first).data.metrics["test/accuracy"]
    )


# Experiments.


@pytest.mark.long
def test_exp_run_selects_a_recipe_sets_a_value_and_keeps_comments(project: Project) -> None:
    command = ("dvc", "exp", "run", "-n", "mine", "-S", "recipe=smoke", "-S", "training.epochs=1")
    output = project.succeed(*command, PATH=PATH)  # every stage in a new interpreter
    assert "Ran experiment(s): mine" in output
    assert ran(output) == list(STAGES)
    assert "cuda" not in output.lower(), "TensorFlow's startup messages are suppressed"
    params = (project.root / "params.yaml").read_text(encoding="utf-8")
    assert "# Settings of the run." in params
    assert yaml.safe_load(params)["training"]["epochs"] == 1
    (run,) = runs(project)
    assert (run.info.run_name, run.data.tags["dvc.experiment"]) == ("smoke-mlp-seed-1 (mine)", "mine")
    difference = project.succeed("dvc", "params", "diff", "--targets", "composed.yaml")
    assert re.search(r"training\.epochs +20 +1", difference)
    header = columns(project.succeed("dvc", "exp", "show", "--no-pager", COLUMNS="3000"))
    assert header[:5] == ["Experiment", "Created", "accuracy", "ci_low", "ci_high"]
    assert len(header) <= 40, header


def test_exp_run_in_a_temporary_folder_records_to_the_real_root(trained: Project) -> None:
    trained.commit()
    trained.succeed("dvc", "exp", "run", "--temp", "-n", "aside", "-S", "training.epochs=1")
    assert sorted(run.info.run_name for run in runs(trained)) == ["smoke-mlp-seed-1", "smoke-mlp-seed-1 (aside)"]
    assert len(client(trained).list_artifacts(runs(trained)[0].info.run_id, "plots")) == 5, (
        "they are not in the folder that DVC deleted"
    )
    assert trained.report("evaluation.json")["training"]["epochs"] == 2, "the workspace is unchanged"
    table = trained.succeed("dvc", "exp", "show", "--only-changed", "--no-pager", COLUMNS="3000")
    assert "aside" in table
    changed = columns(table)
    assert changed[:3] == ["Experiment", "Created", "accuracy"]
    assert changed[-3:] == ["training.epochs", "composed/train.yaml", "models"]
    assert len(changed) <= 14, changed
    header, values = trained.succeed("dvc", "metrics", "show").splitlines()
    assert header.split() == ["Path", "accuracy", "ci_high", "ci_low", "ece", "errors", "fit_s", "loss", "params"]
    assert max(len(header), len(values)) <= 100


def columns(table: str) -> list[str]:
    """The header of a table that DVC printed."""
    return re.split(r" {2,}", table.splitlines()[1].strip())


@pytest.mark.long
def test_queued_experiments_run_side_by_side(trained: Project) -> None:
    trained.succeed("dvc", "exp", "run", "--queue", "-S", "training.epochs=choice(1,3)", "-S", "optimizer=adamw")
    trained.succeed("dvc", "queue", "start", "-j", "2")
    for _ in range(150):
        status = trained.succeed("dvc", "queue", "status")
        if "Running" not in status and "Queued" not in status:
            break
        time.sleep(2)
    assert status.count("Success") == 2, status
    queued = [run for run in runs(trained) if run.data.params["optimizer.name"] == "adamw"]
    assert sorted(run.data.params["training.epochs"] for run in queued) == ["1", "3"]
    assert all("test/accuracy" in run.data.metrics for run in queued)
    trained.run("dvc", "queue", "stop", "--kill")


# Killed trainings, and models without a run.


@pytest.mark.long
def test_the_next_repro_resumes_an_interrupted_training(trained: Project, start: Start) -> None:
    trained.params(
        recipe="smoke", training={"epochs": 15, "deterministic": True}, model={"name": None, "hidden_units": 64}
    )
    trained.succeed("dvc", "repro", "compose")
    process = start([sys.executable, "-m", "pipeline.stages.train"], trained.root, PYTHONUNBUFFERED="1")
    assert process.stdout
    next(line for line in process.stdout if line.startswith("epoch   3/15"))
    process.send_signal(signal.SIGINT)
    assert process.wait() != 0
    assert "Traceback" not in process.stdout.read()
    assert runs(trained)[0].info.status == "KILLED"
    output = trained.succeed("dvc", "repro")
    assert re.search(r"resuming after epoch \d+ of 15", output)
    check_resumed(trained, 2)
    assert list((trained.root / ".resume").iterdir()) == []


def check_resumed(project: Project, count: int) -> None:
    """Check that the newest of `count` runs is a finished training of 15 epochs, with each epoch once."""
    newest = runs(project)[0]
    assert len(runs(project)) == count, "the run is resumed, too"
    assert newest.info.status == "FINISHED"
    history = client(project).get_metric_history(newest.info.run_id, "train/loss")
    assert sorted(point.step for point in history) == list(range(1, 16)), "each epoch once"


def test_a_resumed_training_under_another_name_or_code_is_described_as_such(trained: Project, start: Start) -> None:
    smoke = (trained.root / "conf" / "recipe" / "smoke.yaml").read_text(encoding="utf-8")
    (trained.root / "conf" / "recipe" / "mine.yaml").write_text(
        smoke.replace("recipe: smoke", "recipe: mine"), encoding="utf-8"
    )
    training = {"epochs": 15}
    trained.params(recipe="smoke", training=training)
    trained.succeed("dvc", "repro", "compose")
    for recipe, threads in (("smoke", "1"), ("smoke", "2"), ("mine", "2")):
        trained.params(recipe=recipe, training=training)
        trained.succeed("python", "-m", "pipeline.stages.compose")
        settings = {"PYTHONUNBUFFERED": "1", "TF_NUM_INTEROP_THREADS": threads}
        process = start([sys.executable, "-m", "pipeline.stages.train"], trained.root, **settings)
        assert process.stdout
        next(line for line in process.stdout if line.startswith("epoch "))
        process.kill()
        process.wait()
        run = runs(trained)[0]
        assert f"TF_NUM_INTEROP_THREADS={threads}" in run.data.tags["environment"]
        assert (run.data.params["recipe"], run.info.run_name.partition("-")[0]) == (recipe, recipe)
    trained.succeed("dvc", "repro")
    newest, earlier, *others = runs(trained)
    assert (newest.info.status, earlier.info.status, len(others)) == ("FINISHED", "KILLED", 1)
    history = client(trained).get_metric_history(newest.info.run_id, "train/loss")
    assert sorted(point.step for point in history) == list(range(1, 16)), "each epoch once"


def test_a_killed_training_resumes_to_the_same_model_and_dvc_notices(trained: Project, start: Start) -> None:
    trained.params(
        recipe="smoke", training={"epochs": 15, "deterministic": True}, model={"name": None, "hidden_units": 64}
    )
    trained.succeed("dvc", "repro")
    whole = (trained.root / "models" / "model.keras").read_bytes()
    process = start([sys.executable, "-m", "pipeline.stages.train"], trained.root, PYTHONUNBUFFERED="1")
    assert process.stdout
    next(line for line in process.stdout if line.startswith("epoch   3/15"))
    process.kill()
    assert "Traceback" not in process.stdout.read()
    assert runs(trained)[0].info.status == "RUNNING"
    output = trained.succeed("dvc", "repro", "--force", "--single-item", "train")
    assert re.search(r"resuming after epoch \d+ of 15", output)
    check_resumed(trained, 3)
    assert (trained.root / "models" / "model.keras").read_bytes() == whole
    again = trained.succeed("dvc", "repro", "--force", "--single-item", "train")
    assert "resuming" not in again, "DVC has recorded the model"
    check_resumed(trained, 4)
    changed = trained.succeed("dvc", "status", "evaluate")
    assert "modified:           models" in changed
    assert ran(trained.succeed("dvc", "repro")) == ["evaluate"], "the new run gets its metrics"
    assert "test/accuracy" in runs(trained)[0].data.metrics


def test_a_terminal_shows_keras_progress_bar_and_train_imports_no_unused_packages(trained: Project) -> None:
    terminal = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
    output = trained.succeed("python", "-c", terminal, sys.executable, "-c", IMPORTED % "train")
    assert "imported: ['keras']" in output
    assert "Epoch 2/2" in output
    assert "━" in output
    assert "epoch   2/2" not in output


def test_a_model_without_a_run_in_this_store_gets_a_restored_run(trained: Project) -> None:
    (before,) = runs(trained)
    other = f"sqlite:///{trained.root}/other.db"
    command = ("dvc", "repro", "--force", "--single-item", "evaluate")
    output = trained.succeed(*command, MLFLOW_TRACKING_URI=other)
    assert "recording a restored run for this model" in output
    store = MlflowClient(other)
    (run,) = store.search_runs([store.get_experiment_by_name("digits").experiment_id])
    assert (run.data.tags["restored"], run.data.tags["restored.from"]) == ("true", before.info.run_id)
    trained.succeed(*command, MLFLOW_TRACKING_URI=other)
    (again,) = store.search_runs([run.info.experiment_id])
    assert again.info.run_id == run.info.run_id, "it is used again"
    assert (run.data.tags["device"], run.data.tags["precision"]) == ("cpu", "float32")
    assert run.data.params == before.data.params
    for name in ("test/accuracy", "train/loss", "val/accuracy"):
        assert run.data.metrics[name] == pytest.approx(before.data.metrics[name])
    assert len(run.outputs.model_outputs) == 1
    report = (trained.root / "reports" / "report.html").read_text(encoding="utf-8")
    assert run.info.run_id in report
    assert before.info.run_id not in report, "the original run is not in this store"


# Invalid input: one clear line, an exit code, and all earlier results intact.


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"recipe": "nope"}, "compose: params.yaml: recipe: 'nope' is not one of conf/recipe/: "),
        ({"training": {"epoch": 3}}, "compose: params.yaml: training.epoch: unknown key 'epoch'"),
        ({"training": {"epochs": 0}}, "compose: params.yaml: training.epochs: got 0; "),
    ],
)
def test_invalid_params_stop_repro_in_its_first_stage(trained: Project, params: dict[str, Any], message: str) -> None:
    before = snapshot(trained)
    trained.params(**params)
    output = trained.fail("dvc", "repro")
    assert message in output
    assert ran(output) == ["compose"]
    assert snapshot(trained) == before


def test_a_refused_setting_says_how_to_restore_params(project: Project) -> None:
    """`dvc exp run -S` leaves the setting in params.yaml, where every later command finds it."""
    restore = "git checkout HEAD params.yaml"
    refused = ("dvc", "exp", "run", "-S", "model.name=cnn", "-S", "+model.hidden_units=256", "compose")
    assert restore not in project.fail(*refused, "--temp")
    assert project.succeed("git", "status", "--short") == ""
    assert restore in project.fail(*refused)
    assert restore in project.fail("dvc", "repro", "compose")
    project.succeed("git", "add", "params.yaml")
    assert restore in project.fail("dvc", "repro", "compose")
    project.succeed(*restore.split())
    project.succeed("dvc", "repro", "compose")
    project.params(recipe="absent")
    assert "'absent'" in project.fail(sys.executable, "-m", "pipeline.stages.compose", PATH="/nowhere"), (
        "there is no git"
    )
    project.commit()
    assert restore not in project.fail("dvc", "repro", "compose"), "the committed params.yaml is invalid, too"
    shutil.rmtree(project.root / ".git")
    assert restore not in project.fail("python", "-m", "pipeline.stages.compose")


def test_repro_restores_edited_and_deleted_results(trained: Project) -> None:
    before = snapshot(trained)
    (trained.root / "composed.yaml").write_text("edited: true\n", encoding="utf-8")
    (trained.root / "models" / "model.keras").write_bytes(b"edited")
    (trained.root / "data" / "prepared" / "test.npz").unlink()
    trained.succeed("dvc", "repro")
    assert snapshot(trained) == before


@pytest.mark.parametrize(
    ("path", "content", "stage", "message"),
    [
        ("composed.yaml", None, "train", "train: composed.yaml is missing"),
        ("composed.yaml", b"seed: [", "fetch", "fetch: composed.yaml is not YAML"),
        (
            "composed.yaml",
            b"seed: 1",
            "preprocess",
            "composed.yaml is generated from conf/ and params.yaml: remove it and run `dvc repro`",
        ),
        (
            "data/raw/t10k-labels-idx1-ubyte.gz",
            b"<html>",
            "preprocess",
            "labels-idx1-ubyte.gz: not an intact gzip file",
        ),
        ("data/raw/t10k-labels-idx1-ubyte.gz", idx_bytes(np.zeros(499, np.uint8)), "preprocess", "has 499 labels"),
        (
            "data/raw/t10k-labels-idx1-ubyte.gz",
            idx_bytes(np.full(500, 10, np.uint8)),
            "preprocess",
            "label 10 at index 0",
        ),
        (
            "composed/train.yaml",
            None,
            "train",
            "train: composed/train.yaml does not match composed.yaml: remove both and run `dvc repro`",
        ),
        ("composed/fetch.yaml", b"a: [", "fetch", "fetch: composed/fetch.yaml does not match composed.yaml: remove"),
        ("data/prepared/train.npz", None, "train", "train: data/prepared/train.npz is missing: run `dvc repro`"),
        ("data/prepared/test.npz", b"PK", "evaluate", "evaluate: data/prepared/test.npz cannot be read"),
        ("models/model.keras", None, "evaluate", "evaluate: models/model.keras is missing: run `dvc repro`"),
        (
            "models/model.keras",
            b"edited",
            "evaluate",
            "evaluate: models/model.keras is not the file that train wrote: ",
        ),
        ("models/run.json", b"{}", "evaluate", "evaluate: models/run.json: run_id: is missing: remove it and run"),
        ("models/run.json", None, "evaluate", "evaluate: models/run.json cannot be read (No such file"),
        ("reports/data/statistics.json", b"[]", "evaluate", "evaluate: reports/data/statistics.json: the file: "),
        ("models/history.csv", b"a\n1\n", "evaluate", "evaluate: models/history.csv cannot be read"),
        ("models/run.json", b"[" * 9999, "evaluate", "evaluate: models/run.json is damaged ("),
        ("models/run.json", b"{", "evaluate", "evaluate: models/run.json is damaged ("),
        ("models/history.csv", b"", "evaluate", "evaluate: models/history.csv cannot be read"),
    ],
)
def test_a_single_stage_reports_invalid_input(
    trained: Project, path: str, content: bytes | None, stage: str, message: str
) -> None:
    before = snapshot(trained)
    target = trained.root / path
    target.unlink()
    if content is not None:
        target.write_bytes(content)
    assert message in trained.fail("python", "-m", f"pipeline.stages.{stage}")
    target.write_bytes(before[path])
    assert snapshot(trained) == before


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"fit_seconds": ', '"fit_seconds": 1e999, "old": ', "models/run.json: fit_seconds: got inf"),
        ('"versions": "', '"versions": "\\ud800', "models/run.json is damaged ("),
        ('"epochs": 2', '"epochs": NaN', "models/run.json: epochs: got nan"),
    ],
)
def test_figures_that_are_none_are_reported(trained: Project, before: str, after: str, message: str) -> None:
    path = trained.root / "models" / "run.json"
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1
    path.write_text(text.replace(before, after), encoding="utf-8")
    assert message in trained.fail("python", "-m", "pipeline.stages.evaluate")


def test_no_result_is_recorded_under_other_settings(trained: Project) -> None:
    """`git checkout` restores composed.yaml, but not composed/, which DVC compares."""
    trained.commit()
    trained.params(recipe="smoke", training={"epochs": 3})
    trained.succeed("dvc", "repro", "compose")
    trained.succeed("git", "checkout", "-q", ".")
    assert "composed/train.yaml does not match composed.yaml" in trained.fail("dvc", "repro", "-s", "train")
    assert ran(trained.succeed("dvc", "repro")) == ["compose"], "the earlier results come from the cache"
    assert trained.report("evaluation.json")["training"]["epochs"] == 2


def test_other_files_in_the_folders_of_results_make_no_difference(trained: Project) -> None:
    for path in ("models/.DS_Store", "models/notes.txt", "reports/data/Thumbs.db"):
        (trained.root / path).write_text("not a result", encoding="utf-8")
    assert "up to date" in trained.succeed("dvc", "status")
    (trained.root / "models" / "history.csv").write_text("edited", encoding="utf-8")
    assert "modified:           models" in trained.succeed("dvc", "status")


def test_a_flipped_byte_in_the_model_is_detected(trained: Project) -> None:
    path = trained.root / "models" / "model.keras"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    message = trained.fail("python", "-m", "pipeline.stages.evaluate")
    assert "evaluate: models/model.keras is not the file that train wrote: its MD5 is" in message
    assert "Remove it and run `dvc repro`" in message


@pytest.mark.parametrize(
    ("stage", "values", "changed"),
    [("train", {"dataset": "mnist"}, "fetch"), ("evaluate", {"seed": 7}, "preprocess"), ("preprocess", {}, "")],
)
def test_a_stage_does_not_use_results_of_another_configuration(
    trained: Project, stage: str, values: dict[str, Any], changed: str
) -> None:
    trained.params(**{"recipe": "smoke", "training": {"epochs": None}, "optimizer": None} | values)
    trained.succeed("dvc", "repro", "--single-item", "compose")
    if changed:
        output = trained.fail("dvc", "repro", "--force", "--single-item", stage)
        wanted = f"{stage}: {changed} ran with another configuration: its composed/{changed}.yaml has changed. Run"
        assert wanted in output
    else:
        trained.succeed("dvc", "repro", "--force", "--single-item", stage)


@pytest.mark.parametrize("package", ["keras", "tensorflow"])
def test_dvc_does_not_record_results_of_another_version_than_the_pinned_one(trained: Project, package: str) -> None:
    path = trained.root / "requirements.txt"
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(rf"^{package}==\S+", f"{package}==99.1", text, flags=re.MULTILINE), encoding="utf-8")
    output = trained.fail("dvc", "repro")
    assert re.search(rf"train: {package} \S+ is installed, but requirements.txt pins 99.1: DVC would take", output)
    trained.succeed("dvc", "checkout", "train")
    assert "pins 99.1: results may differ" in trained.succeed("python", "-m", "pipeline.stages.evaluate")


def test_damage_that_dvc_does_not_see_is_named(trained: Project) -> None:
    """A file of the same size and time of modification, which evaluate could read."""
    path = trained.root / "models" / "history.csv"
    trained.succeed("dvc", "status")  # computes the MD5 of the copied files
    before, content = path.stat(), path.read_bytes()
    path.write_bytes(content.replace(b"\n1,", b"\n9,"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "up to date" in trained.succeed("dvc", "status")
    output = trained.fail("dvc", "repro", "--force", "--single-item", "evaluate")
    assert "evaluate: models/history.csv is damaged, or of another commit: its MD5 is not the one in dvc.lock" in output
    path.unlink()
    trained.succeed("dvc", "repro")
    assert path.read_bytes() == content


def test_repro_restores_a_deleted_folder(trained: Project) -> None:
    before = snapshot(trained)
    shutil.rmtree(trained.root / "models")
    assert ran(trained.succeed("dvc", "repro")) == []
    assert snapshot(trained) == before


def test_without_an_intact_source_fetch_says_what_to_do(project: Project) -> None:
    composed = project.root / "conf" / "dataset" / "mnist.yaml"
    text = re.sub(r"https://[^\s]+", "http://127.0.0.1:9/", composed.read_text(encoding="utf-8"))
    composed.write_text(text, encoding="utf-8")
    nowhere = str(project.root / "nowhere")
    output = project.fail("dvc", "repro", DATASET_MIRROR=nowhere)
    assert f"{nowhere}: no such folder" in output
    assert "http://127.0.0.1:9/: cannot be reached (4 attempts)" in output
    assert "dvc exp run -S dataset=digits" in output
    assert ran(output) == ["compose", "fetch"]


def test_a_failed_training_leaves_the_earlier_model_in_the_cache(trained: Project) -> None:
    before = snapshot(trained)
    trained.params(recipe="smoke", optimizer={"name": None, "learning_rate": 1e30})
    output = trained.fail("dvc", "repro")
    assert "train: the loss is nan in epoch 1: the training diverged" in output
    assert "`dvc checkout` restores the earlier results" in output
    assert runs(trained)[0].info.status == "FAILED"
    trained.params(recipe="smoke")
    trained.succeed("dvc", "repro")
    assert snapshot(trained) == before | {"dvc.lock": snapshot(trained)["dvc.lock"]}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"DEVICE": "gpu"}, "train: DEVICE=gpu, but tensorflow sees no GPU: "),
        ({"DEVICE": "tpu"}, "train: DEVICE=tpu: must be one of auto, cpu, gpu"),
        (
            {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"},
            "train: MLFLOW_TRACKING_URI=http://127.0.0.1:9: the tracking server",
        ),
        ({"MLFLOW_TRACKING_URI": "./mlruns"}, "train: MLFLOW_TRACKING_URI=./mlruns: MLflow 3 no longer keeps runs in"),
        ({"MLFLOW_TRACKING_URI": "./mlruns", "DEVICE": "tpu"}, "train: MLFLOW_TRACKING_URI=./mlruns: MLflow 3 no"),
    ],
)
def test_the_environment_is_checked_before_training(
    trained: Project, environment: dict[str, str], message: str
) -> None:
    if environment.get("DEVICE") == "gpu" and shutil.which("nvidia-smi"):
        pytest.skip("this machine has a GPU")
    before = snapshot(trained)
    output = trained.fail("python", "-m", "pipeline.stages.train", **environment)
    assert message in output
    assert "epoch" not in output
    assert snapshot(trained) == before


@pytest.mark.parametrize(
    ("stage", "kib"), [("compose", 0), ("fetch", 20), ("preprocess", 40), ("train", 2000), ("evaluate", 20)]
)
def test_a_full_disk_gives_one_clear_line_and_loses_nothing(trained: Project, stage: str, kib: int) -> None:
    """A file size limit simulates a full disk: the write fails halfway in the same place."""
    before = snapshot(trained)
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({kib} << 10,) * 2); "
    limited += f"import runpy, sys; sys.argv = ['x']; runpy.run_module('pipeline.stages.{stage}', run_name='__main__')"
    output = trained.fail("python", "-c", limited)
    assert "File too large" in output
    assert len([line for line in output.splitlines() if line.startswith(f"{stage}: ")]) == 1
    assert snapshot(trained) == before


def test_outside_git_make_repro_says_what_is_missing(project: Project) -> None:
    shutil.rmtree(project.root / ".git")
    environment = project.root / ".venv"
    environment.mkdir()
    (environment / "requirements.txt").touch()  # as after setup
    assert "is not a git repository, which DVC needs" in project.fail("make", "repro")
    assert "is not a git repository" in project.fail("dvc", "repro")


def test_evaluate_imports_no_unused_packages(trained: Project) -> None:
    assert "imported: ['keras', 'matplotlib']" in trained.succeed(sys.executable, "-c", IMPORTED % "evaluate")


def test_training_works_with_standard_output_closed(trained: Project) -> None:
    for stage in ("fetch", "train"):
        trained.succeed("sh", "-c", f"{sys.executable} -m pipeline.stages.{stage} >&-")


@pytest.mark.long
def test_an_ensemble_is_one_model(trained: Project) -> None:
    training = {"epochs": 8, "batch_size": 32, "precision": "mixed_bfloat16", "augmentation": []}
    small = {"name": None, "convolutions": [16, 16], "kernels": [3, 3], "units": 32, "members": 3}
    trained.params(recipe="champion", dataset="digits", training=training, model=small)
    trained.succeed("dvc", "repro")
    network = keras.saving.load_model(trained.root / "models" / "model.keras")
    members = [layer for layer in network.layers if layer.name.startswith("member_")]
    assert len(members) == 3
    assert {layer.compute_dtype for member in members for layer in member.layers[1:]} == {"float32"}
    facts = json.loads((trained.root / "models" / "run.json").read_text(encoding="utf-8"))
    assert facts["precision"] == "mixed_bfloat16"
    images = load_split(trained.root / "data" / "prepared" / "train.npz").images
    for member in members:
        (convolution, normalization) = member.layers[3:5]
        expected = keras.Model(member.input, convolution.output).predict(images, verbose=0).mean((0, 1, 2))
        np.testing.assert_allclose(normalization.moving_mean, expected, atol=1e-4, err_msg="not recalibrated")
    test = load_split(trained.root / "data" / "prepared" / "test.npz")
    right = network.predict(test.images, verbose=0).argmax(axis=1) == test.labels
    assert trained.report("evaluation.json")["test"]["accuracy"] == pytest.approx(right.mean())
    assert right.mean() > 0.8
