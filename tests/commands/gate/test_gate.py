"""The gate end to end: the command in clones whose models did or did not get worse, on the small dataset."""

import json
import re
import shutil
import sys
import time
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from tests.commands.gate.command import GATE, edit, edit_metrics, failed, gate, judge, refusal
from tests.conftest import Project, clone, copy, once


@pytest.fixture(scope="session")
def digits_once(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone with recipe=baseline trained on the small dataset and committed."""
    return once(tmp_path_factory, "digits", train_digits)


def train_digits(folder: Path) -> None:
    """Train recipe=baseline on the small dataset in a clone, and commit it."""
    project = clone(folder)
    # The tests share DVC's cache, so that each model is trained once.
    project.succeed("dvc", "config", "--local", "cache.dir", str(folder.parent / "cache"))
    project.params(recipe="baseline", dataset="digits", seed=1, training={"epochs": None}, optimizer=None)
    project.succeed("dvc", "repro")
    project.commit()


@pytest.fixture
def digits(digits_once: Project, tmp_path: Path) -> Project:
    """A copy of `digits_once`, for tests that change something."""
    return copy(digits_once, tmp_path / "project")


@pytest.fixture(scope="session")
def another_seed_once(digits_once: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """`digits_once` with an uncommitted model of another seed in the working tree."""
    return once(tmp_path_factory, "digits-2", lambda folder: retrain(copy(digits_once, folder), seed=2))


@pytest.fixture
def another_digits_seed(another_seed_once: Project, tmp_path: Path) -> Project:
    """A copy of `another_seed_once`, for tests that change something."""
    return copy(another_seed_once, tmp_path / "project")


def retrain(project: Project, **params: object) -> None:
    """Train recipe=baseline on the small dataset with these parameters."""
    project.params(**{"recipe": "baseline", "dataset": "digits", "seed": 1} | params)
    project.succeed("dvc", "repro")


@pytest.fixture
def smoke(trained: Project) -> Project:
    """A clone with recipe=smoke trained and committed."""
    trained.commit()
    return trained


# Changes that the gate stops, and changes that pass.


def test_one_epoch_instead_of_all_is_stopped(digits: Project) -> None:
    retrain(digits, training={"epochs": 1})
    verdict = judge(digits)
    assert verdict["status"] == 1
    assert failed(verdict) >= {"floor", "accuracy"}
    assert verdict["changed_params"] == {"training.epochs": [20, 1]}


def test_a_far_too_high_learning_rate_is_stopped(digits: Project) -> None:
    retrain(digits, optimizer={"name": None, "learning_rate": 0.3})
    verdict = judge(digits)
    assert verdict["status"] == 1
    assert "accuracy" in failed(verdict)


def test_a_class_missing_from_training_is_stopped(digits: Project) -> None:
    edit(
        digits,
        "pipeline/stages/preprocess/__main__.py",
        "    train = Split(everything.images[kept], everything.labels[kept])\n",
        "    kept = kept[everything.labels[kept] != 3]\n"
        "    train = Split(everything.images[kept], everything.labels[kept])\n",
    )
    digits.succeed("dvc", "repro")
    verdict = judge(digits)
    assert verdict["status"] == 1
    assert failed(verdict) == {"accuracy", "recall"}
    assert next(check for check in verdict["checks"] if check["name"].startswith("recall"))["candidate"] == "0.00 %"
    assert "recall of 3" in gate(digits)[1]


def test_scaling_the_inputs_twice_is_stopped(digits: Project) -> None:
    edit(
        digits,
        "pipeline/stages/evaluate/evaluation.py",
        "predict(test.images, batch",
        "predict(test.images / 255, batch",
    )
    digits.succeed("dvc", "repro")
    verdict = judge(digits)
    assert verdict["status"] == 1
    assert failed(verdict) == {"floor", "accuracy", "recall"}


def test_another_seed_passes(another_digits_seed: Project) -> None:
    check_that_seeds_pass(another_digits_seed)


def test_a_third_seed_passes(digits: Project) -> None:
    retrain(digits, seed=3)
    check_that_seeds_pass(digits)


def check_that_seeds_pass(project: Project) -> None:
    verdict = judge(project)
    assert verdict["status"] == 0
    assert verdict["newly_wrong"], "it is another model"
    source = "estimated from the record of recipe baseline (standard deviation 0.97 points over 20 seeds)"
    assert any(source in note for note in verdict["notes"])


def test_a_refactoring_passes(digits: Project) -> None:
    file = digits.root / "pipeline" / "stages" / "train" / "fitting.py"
    file.write_text(re.sub(r"\bprint_epoch\b", "tell_epoch", file.read_text(encoding="utf-8")), encoding="utf-8")
    assert "pipeline/stages/train" in digits.succeed("dvc", "status", "train")
    digits.succeed("dvc", "repro")
    verdict = judge(digits)
    assert verdict["status"] == 0
    assert verdict["changed_params"] == {}


def test_a_better_model_passes(digits: Project) -> None:
    retrain(digits, training={"epochs": 40})
    verdict = judge(digits)
    assert verdict["status"] == 0
    assert verdict["figures"]["accuracy"] > verdict["figures"]["baseline_accuracy"]


# Baselines, reports and settings.


def test_an_unchanged_model_passes_and_is_tagged_in_mlflow(digits: Project) -> None:
    status, output = gate(digits, "--markdown", "gate.md")
    assert status == 0
    assert "PASS: the working tree against HEAD at" in output
    assert "newly misclassified: 0 images" in output
    assert "![" not in (digits.root / "gate.md").read_text(encoding="utf-8"), "the models do not disagree"
    client = MlflowClient(f"sqlite:///{digits.root}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    for _ in range(120):
        tags = {key: value for key, value in client.get_run(run.info.run_id).data.tags.items() if "gate." in key}
        if tags:
            break
        time.sleep(0.5)
    assert (tags["gate.verdict"], tags["gate.failed"], tags["gate.p_mcnemar"]) == ("pass", "", "1")
    assert float(tags["gate.p_worse"]) > 0.5
    assert float(tags["gate.accuracy"]) == run.data.metrics["test/accuracy"]
    assert tags["gate.baseline_run"] == run.info.run_id


@pytest.mark.long
def test_experiments_of_which_only_some_stages_ran_are_not_counted(smoke: Project) -> None:
    """Their reports are those of another training."""
    run = ("dvc", "exp", "run", "--temp", "-n")
    smoke.succeed(*run, "composed", "-S", "++seed=7", "compose")
    smoke.succeed(*run, "fitted", "-S", "++seed=8", "train")
    smoke.succeed(*run, "whole", "-S", "++seed=9")
    smoke.params(recipe="smoke", training={"epochs": 3})
    smoke.succeed("dvc", "repro")
    figures = judge(smoke)["figures"]
    assert (figures["baseline_runs"], figures["runs"]) == (2, 1)


def test_a_configuration_that_was_edited_after_the_training(smoke: Project) -> None:
    edit(smoke, "composed.yaml", "  epochs: 2\n", "  epochs: 4\n")
    smoke.commit()
    smoke.succeed("dvc", "repro")
    assert "composed.yaml at " in (line := refusal(smoke))
    assert "does not match dvc.lock there" in line


def test_tagging_an_unknown_run_fails(digits: Project) -> None:
    command = ("python", "-m", "pipeline.commands.runs", "tag")
    assert re.search(
        r"^tracking: sqlite:.*mlflow\.db has no run 0123", digits.fail(*command, "0123", "{}"), re.MULTILINE
    )
    assert "argument tags: invalid loads value: 'oops'" in digits.fail(*command, "0123", "oops")


def test_the_report_shows_what_changed(another_digits_seed: Project) -> None:
    digits = another_digits_seed
    gate(digits, "--markdown", "out/gate.md", MLFLOW_TRACKING_URI="http://me:secret@127.0.0.1:9")
    report = (digits.root / "out" / "gate.md").read_text(encoding="utf-8")
    assert "### Gate: PASS" in report
    assert "| `seed` | `1` | `2` |" in report
    assert "![Images that only one of the two models misclassifies](gate.png)" in report
    assert (digits.root / "out" / "gate.png").read_bytes().startswith(b"\x89PNG")
    assert re.search(r"MLflow run of the working tree: http://127\.0\.0\.1:9/#/experiments/1/runs/\w{32}\?", report)
    assert "secret" not in report
    gate(digits, "--markdown", "gate.md", "--picture-url", "https://example.org/gate.png")
    assert "(https://example.org/gate.png)" in (digits.root / "gate.md").read_text(encoding="utf-8")
    shutil.rmtree(digits.root / "data" / "prepared")
    assert "data/prepared/test.npz" in refusal(digits, "--markdown", "gate.md")
    report = (digits.root / "gate.md").read_text(encoding="utf-8")
    assert "### Gate: not compared\n\nthe reports do not match the" in report, "the report replaces the earlier verdict"


def test_a_report_does_not_delete_unrelated_files(smoke: Project) -> None:
    (smoke.root / "notes.png").write_bytes(b"mine")
    assert "git does not know the revision" in refusal(smoke, "--markdown", "notes.md", base="nonexistent")
    assert "### Gate: not compared" in (smoke.root / "notes.md").read_text(encoding="utf-8")
    assert (smoke.root / "notes.png").read_bytes() == b"mine"


def test_a_report_goes_to_a_pipe_or_through_a_link(smoke: Project) -> None:
    status, output = gate(smoke, "--markdown", "/dev/stdout")
    assert (status, "### Gate: PASS" in output) == (0, True)
    (smoke.root / "target.md").touch()
    (smoke.root / "link.md").symlink_to("target.md")
    gate(smoke, "--markdown", "link.md")
    assert "### Gate: PASS" in (smoke.root / "target.md").read_text(encoding="utf-8")
    assert (smoke.root / "link.md").is_symlink()
    for folder in (".", "/", "conf"):
        status, output = gate(smoke, "--markdown", folder)
        assert (status, output.splitlines()[-1]) == (
            2,
            f"python -m pipeline.commands.gate: error: argument --markdown: {folder!r} is a folder",
        )


def test_an_environment_without_packages_is_not_a_worse_model(smoke: Project) -> None:
    for command in ("gate", "reproduce"):
        lacking = "import sys; sys.modules['psutil'] = sys.modules['yaml'] = None; import runpy; "
        run = f"{lacking} runpy.run_module('pipeline.commands.{command}', run_name='__main__')"
        result = smoke.run("python", "-c", run)
        assert result.returncode == 2, result.stdout
        assert f"{command}: unexpected error ModuleNotFoundError" in result.stdout


def test_a_reason_with_an_undecodable_name_is_written(smoke: Project) -> None:
    (smoke.root / "b\udcff" / "reports").mkdir(parents=True)
    status, output = gate(smoke, "--markdown", "gate.md", base="b\udcff")
    assert (status, "Traceback" in output) == (2, False)
    assert "b\\udcff/reports/evaluation.json is missing" in (smoke.root / "gate.md").read_text(encoding="utf-8")


def test_an_unexpected_error_replaces_an_earlier_verdict(digits: Project) -> None:
    (digits.root / "gate.md").write_text("### Gate: PASS", encoding="utf-8")
    (digits.root / "gate.png").write_bytes(b"PNG")
    edit(
        digits,
        "pipeline/commands/gate/verdict.py",
        "    floor = check_floor(candidate, gate)\n",
        "    raise ValueError('odd')\n",
    )
    status, output = gate(digits, "--markdown", "gate.md")
    assert status == 2
    assert "Traceback" in output, "a bug needs its traceback"
    report = (digits.root / "gate.md").read_text(encoding="utf-8")
    assert "### Gate: not compared\n\nunexpected error ValueError('odd'): see the traceback in the log" in report
    assert not (digits.root / "gate.png").exists()


def test_the_baseline_is_the_merge_base(another_digits_seed: Project) -> None:
    digits = another_digits_seed
    digits.succeed("git", "switch", "-qc", "work")
    digits.commit()
    digits.succeed("git", "switch", "-q", "main")
    (digits.root / "reports" / "evaluation.json").unlink()
    digits.commit()
    digits.succeed("git", "switch", "-q", "work")
    fork = digits.succeed("git", "rev-parse", "main~1").strip()
    verdict = judge(digits, base="main")
    assert (verdict["status"], verdict["baseline"]["name"]) == (0, f"main at {fork[:7]}")


def test_a_folder_can_be_the_baseline(digits: Project, tmp_path: Path) -> None:
    shutil.copytree(digits.root / "reports", tmp_path / "earlier" / "reports")
    verdict = judge(digits, base=str(tmp_path / "earlier"))
    assert (verdict["status"], verdict["changed_params"]) == (0, {})
    shutil.copytree(digits.root / "conf", tmp_path / "earlier" / "conf")
    shutil.copy(digits.root / "composed.yaml", tmp_path / "earlier")
    assert "the record of recipe baseline" in gate(digits, base=str(tmp_path / "earlier"))[1]
    assert "is missing: --base must name a folder that contains reports/" in refusal(digits, base=str(tmp_path))


def test_reports_of_earlier_versions_are_read(digits: Project, tmp_path: Path) -> None:
    """They had the evaluation in metrics.json, with other keys in its place today."""
    reports = tmp_path / "earlier" / "reports"
    shutil.copytree(digits.root / "reports", reports)
    evaluation = json.loads((reports / "evaluation.json").read_text(encoding="utf-8"))
    for name in ("accuracy_low", "accuracy_high", "confusion_matrix"):
        del evaluation["test"][name]
    (reports / "evaluation.json").unlink()
    line = refusal(digits, base=str(tmp_path / "earlier"))
    assert "reports/evaluation.json is missing in " in line, "today's metrics.json is not an evaluation"
    assert line.endswith("but reports/metrics.json exists")
    (reports / "metrics.json").write_text(json.dumps({"test": evaluation["test"]}), encoding="utf-8")
    assert "reports/metrics.json in " in (line := refusal(digits, base=str(tmp_path / "earlier")))
    assert line.endswith("dataset: is missing")
    (reports / "metrics.json").write_text(json.dumps(evaluation), encoding="utf-8")
    verdict = judge(digits, base=str(tmp_path / "earlier"))
    assert (verdict["status"], verdict["newly_wrong"], verdict["baseline"]["run_id"]) == (
        *(0, []),
        evaluation["mlflow"]["run_id"],
    )


def test_without_a_baseline_the_floor_decides(digits: Project) -> None:
    digits.succeed("git", "switch", "-q", "--orphan", "first")
    digits.succeed("git", "checkout", "-q", "main", "--", ".")
    digits.succeed("git", "rm", "-rqf", "--cached", "reports")
    digits.succeed("git", "commit", "-qm", "no reports yet")
    status, output = gate(digits)
    assert status == 0
    assert "against the floor alone" in output
    assert "no baseline: reports/evaluation.json does not exist yet at" in output


def test_a_change_cannot_loosen_its_own_gate(digits: Project) -> None:
    conf = digits.root / "conf" / "config.yaml"
    text = conf.read_text(encoding="utf-8")
    conf.write_text(text.replace("alpha: 0.05", "alpha: 1.0e-9").replace("digits: 0.8", "digits: 0"), encoding="utf-8")
    recipe = digits.root / "conf" / "recipe" / "baseline.yaml"
    loosened = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    loosened["gate"]["seed_noise"]["digits"]["accuracy_std"] = 0.5
    recipe.write_text(f"# @package _global_\n{yaml.safe_dump(loosened)}", encoding="utf-8")
    retrain(digits, training={"epochs": 1})
    verdict = judge(digits)
    assert verdict["status"] == 1
    assert failed(verdict) >= {"floor", "accuracy"}
    assert any("judged by the gate settings of HEAD" in note for note in verdict["notes"])


def test_a_recipe_cannot_bring_its_own_record(digits: Project) -> None:
    recipes = digits.root / "conf" / "recipe"
    mine = (recipes / "baseline.yaml").read_text(encoding="utf-8").replace("recipe: baseline", "recipe: mine")
    (recipes / "mine.yaml").write_text(re.sub(r"accuracy_std: .*", "accuracy_std: 0.5", mine), encoding="utf-8")
    retrain(digits, recipe="mine", training={"epochs": 1})
    verdict = judge(digits)
    assert "accuracy" in failed(verdict)
    assert any("no record of seed noise for recipe mine" in note for note in verdict["notes"])


def test_a_recipe_without_a_record_is_judged_by_mcnemar_alone(smoke: Project) -> None:
    recipe = smoke.root / "conf" / "recipe" / "smoke.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8").partition("gate:")[0], encoding="utf-8")
    smoke.succeed("dvc", "repro")
    smoke.commit()
    verdict = judge(smoke)
    assert any("the baseline has no record of seed noise for recipe smoke" in note for note in verdict["notes"])
    assert verdict["figures"]["p_worse"] == verdict["figures"]["p_mcnemar"]


# Bad input: status 2 and a one-line error.


def test_missing_reports(smoke: Project) -> None:
    (smoke.root / "reports" / "errors.csv").unlink()
    assert "reports/errors.csv is missing in the working tree" in refusal(smoke)
    (smoke.root / "reports" / "evaluation.json").unlink()
    line = refusal(smoke)
    assert "reports/evaluation.json is missing in the working tree, but reports/metrics.json exists" in line
    (smoke.root / "reports" / "metrics.json").unlink()
    assert "reports/evaluation.json is missing in the working tree: run `dvc repro`" in refusal(smoke)


@pytest.mark.parametrize("name", ["evaluation.json", "errors.csv"])
def test_truncated_reports(smoke: Project, name: str) -> None:
    path = smoke.root / "reports" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert f"reports/{name} in the working tree" in refusal(smoke)


def test_a_wrong_image_index(smoke: Project) -> None:
    path = smoke.root / "reports" / "errors.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    beyond = re.sub(r"^\d+", "500", lines[-1])
    path.write_text("\n".join([*lines[:-1], beyond]), encoding="utf-8")
    assert f"line {len(lines)}: image 500 is not one of the 500 test images" in refusal(smoke)


def test_the_index_of_another_image(smoke: Project, tmp_path: Path) -> None:
    shutil.copytree(smoke.root / "reports", tmp_path / "other" / "reports")
    path = tmp_path / "other" / "reports" / "errors.csv"
    header, *rows = (line.split(",") for line in path.read_text(encoding="utf-8").splitlines())
    swapped = next(row for row in rows[1:] if row[1] != rows[0][1])
    rows[0][0], swapped[0] = swapped[0], rows[0][0]
    path.write_text("\n".join(",".join(row) for row in [header, *rows]), encoding="utf-8")
    assert "one has wrong image indices" in refusal(smoke, base=str(tmp_path / "other"))


def test_reports_older_than_the_configuration(smoke: Project) -> None:
    smoke.params(recipe="smoke", seed=7)
    line = refusal(smoke)
    assert (
        "the reports do not match the current code, configuration and data: compose (changed deps: params.yaml)" in line
    )
    assert line.endswith("Run `dvc repro`, then this command again")


def test_reports_edited_by_hand(smoke: Project) -> None:
    path = smoke.root / "reports" / "evaluation.json"
    path.write_text(
        re.sub(r'"loss": [\d.]+', '"loss": 0.0001', path.read_text(encoding="utf-8"), count=1), encoding="utf-8"
    )
    assert "evaluate (changed outs: reports/evaluation.json)" in refusal(smoke)
    smoke.commit()
    smoke.succeed("dvc", "repro")
    assert "does not match dvc.lock there: it was edited, or committed without dvc.lock" in refusal(smoke)


def test_another_test_set_and_another_dataset(smoke: Project, tmp_path: Path) -> None:
    shutil.copytree(smoke.root / "reports", tmp_path / "other" / "reports")
    metrics = tmp_path / "other" / "reports" / "evaluation.json"
    edit_metrics(metrics, test_md5="0123456789")
    line = refusal(smoke, base=str(tmp_path / "other"))
    assert "different test sets of digits cannot be compared: MD5" in line
    assert "0123456 in" in line
    edit_metrics(metrics, name="mnist")
    line = refusal(smoke, base=str(tmp_path / "other"))
    assert "different datasets cannot be compared: digits (500 test images) in the working tree, mnist (500)" in line


def test_a_new_dataset_needs_a_floor(smoke: Project) -> None:
    (smoke.root / "conf" / "dataset" / "digits.yaml").rename(smoke.root / "conf" / "dataset" / "ours.yaml")
    edit(smoke, "conf/dataset/ours.yaml", "name: digits\n", "name: ours\n")
    edit(smoke, "conf/recipe/smoke.yaml", "override /dataset: digits", "override /dataset: ours")
    smoke.succeed("dvc", "repro")
    assert "different datasets cannot be compared: ours" in refusal(smoke), "another name does not make the dataset new"
    edit(smoke, "conf/dataset/ours.yaml", "test_count: 500", "test_count: 400")
    smoke.succeed("dvc", "repro")
    line = refusal(smoke)
    assert "dataset ours does not exist yet at" in line
    assert "the dataset has no floor: add gate.floor.ours to conf/config.yaml" in line
    edit(smoke, "conf/config.yaml", "    digits: 0.8\n", "    digits: 0.8\n    ours: 0.7\n")
    smoke.succeed("dvc", "repro")
    status, output = gate(smoke)
    assert status == 0
    assert "so only the floor applies" in output


def test_an_unknown_revision(smoke: Project) -> None:
    assert "git does not know the revision 'nope'; fetch it, or name another revision" in refusal(smoke, base="nope")
    for arguments, revision in (((), "origin/main"), (("--base=--all",), "--all"), (("--base=dddddddd",), "dddddddd")):
        result = smoke.run(*GATE, *arguments)
        assert result.returncode == 2
        assert f"git does not know the revision '{revision}'" in result.stdout


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        ("0" * 40, "the branch is new: no commit precedes this push"),
        ("0" * 64, "the branch is new: no commit precedes this push"),
        ("d" * 40, "git does not have commit ddddddd: a force-push replaced it, or it was not fetched"),
    ],
)
def test_after_a_first_push_or_a_force_push_the_floor_decides(smoke: Project, base: str, reason: str) -> None:
    command = (*GATE, "--before", base, "--markdown", "gate.md")
    output = smoke.succeed(*command, COLUMNS="200")
    for text in (output, (smoke.root / "gate.md").read_text(encoding="utf-8")):
        assert f"no baseline: {reason}, so only the floor applies" in text
        assert "against the floor alone" in text
    assert "git does not know the revision" in refusal(smoke, base=base), "with --base, an unknown revision is an error"
    edit(smoke, "conf/config.yaml", "    digits: 0.8\n", "    digits: 0.99\n")
    smoke.succeed("dvc", "repro")
    assert smoke.run(*command).returncode == 1, "the floor decides"


def test_an_existing_commit_before_a_push_is_the_baseline(smoke: Project) -> None:
    commit = smoke.succeed("git", "rev-parse", "HEAD").strip()
    assert f"against {commit} at {commit[:7]}" in smoke.succeed(*GATE, "--before", commit, COLUMNS="200")
    result = smoke.run(*GATE, "--before", "nope")
    assert (result.returncode, "git does not know the revision 'nope'" in result.stdout) == (2, True)


def test_a_shallow_clone_without_the_merge_base(smoke: Project, tmp_path: Path) -> None:
    smoke.succeed("git", "switch", "-qc", "work")
    smoke.succeed("git", "commit", "-q", "--allow-empty", "-m", "work")
    smoke.succeed("git", "switch", "-q", "main")
    smoke.succeed("git", "commit", "-q", "--allow-empty", "-m", "main goes on")
    shallow = tmp_path / "shallow"
    address = smoke.root.as_uri()
    smoke.succeed("git", "clone", "-q", "--depth", "1", "--no-single-branch", "--branch", "work", address, str(shallow))
    shutil.rmtree(smoke.root / ".git")
    shutil.copytree(shallow / ".git", smoke.root / ".git")
    line = refusal(smoke, base="origin/main")
    assert "this clone is shallow: fetch its full history (fetch-depth: 0 in CI, or `git fetch --unshallow`)" in line
    assert "fetch-depth: 0" in refusal(smoke, base="HEAD~1")
    result = smoke.run(*GATE, "--before", "d" * 40)
    assert (result.returncode, "fetch-depth: 0" in result.stdout) == (2, True), "the commit may not be fetched yet"


def test_a_baseline_that_git_cannot_read(smoke: Project) -> None:
    (smoke.root / "params.yaml").write_text("recipe: smoke # the same\n", encoding="utf-8")
    smoke.succeed("dvc", "repro")
    blob = smoke.succeed("git", "rev-parse", "HEAD:reports/evaluation.json").strip()
    (smoke.root / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    assert "git cannot read reports/evaluation.json at" in refusal(smoke)


@pytest.mark.parametrize("content", ["stages: {train: {deps: [x]}}", "stages: {evaluate: {outs: [1]}}", "- 1", "{"])
def test_a_damaged_lock(smoke: Project, tmp_path: Path, content: str) -> None:
    shutil.copytree(smoke.root / "reports", tmp_path / "other" / "reports")
    (tmp_path / "other" / "dvc.lock").write_text(content, encoding="utf-8")
    assert f"dvc.lock in {tmp_path}/other is damaged" in refusal(smoke, base=str(tmp_path / "other"))


def test_an_import_error_is_not_a_regression(smoke: Project) -> None:
    edit(smoke, "pipeline/commands/gate/verdict.py", "def judge(", "import nothing_like_it\n\n\ndef judge(")
    status, output = gate(smoke)
    assert status == 2
    assert "nothing_like_it" in output


def test_before_the_first_commit_the_floor_decides(smoke: Project) -> None:
    shutil.rmtree(smoke.root / ".git")
    smoke.succeed("git", "init", "-q")
    status, output = gate(smoke)
    assert status == 0, output
    assert "no baseline: the repository has no commits yet, so only the floor applies" in output


def test_an_unusable_store_does_not_matter(smoke: Project) -> None:
    assert gate(smoke, MLFLOW_TRACKING_URI="./mlruns")[0] == 0


def test_unrelated_histories(smoke: Project) -> None:
    tree = smoke.succeed("git", "rev-parse", "HEAD^{tree}").strip()
    stranger = smoke.succeed("git", "commit-tree", tree, "-m", "stranger").strip()
    assert f"HEAD and '{stranger}' have no commit in common" in refusal(smoke, base=stranger)


def test_no_git(smoke: Project, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n', encoding="utf-8")
    (tmp_path / "bin" / "python").chmod(0o755)
    assert "git is not installed" in refusal(smoke, PATH=str(tmp_path / "bin"))
    shutil.rmtree(smoke.root / ".git")
    assert "is not a usable git repository (fatal: not a git repository" in refusal(smoke)


def test_a_report_that_cannot_be_written(smoke: Project) -> None:
    (smoke.root / "file").touch()
    status, output = gate(smoke, "--markdown", "file/gate.md")
    assert status == 2
    assert output.splitlines()[-1].startswith("gate: file")
    assert "Traceback" not in output


def test_invalid_settings_fail_in_compose(smoke: Project) -> None:
    edit(smoke, "conf/config.yaml", "alpha: 0.05", "alpha: 5")
    assert "conf/: gate.alpha: got 5; " in smoke.fail("dvc", "repro")


def test_a_record_needs_ten_seeds(smoke: Project) -> None:
    reason = "recipe smoke has 1 of the 10 seeds that a record needs: run `make seeds N=10` first"
    assert reason in refusal(smoke, "--record")
