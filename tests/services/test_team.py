"""Two people share a server and a store: nobody trains what somebody else has trained, and nothing is lost."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tests.services.conftest import Join
from tests.services.services import Member, Team

pytestmark = pytest.mark.services

CHECK = ("python", "-m", "pipeline.commands.runs", "check")
SEND = ("python", "-m", "pipeline.commands.runs", "send")
TRAIN = ("python", "-m", "pipeline.stages.train")
DOWNLOAD = "import mlflow; print(mlflow.artifacts.download_artifacts(run_id='{run}', artifact_path='model'))"
LONG = 100  # epochs


def test_a_colleague_gets_everything_without_training(author: Member, join: Join, client: MlflowClient) -> None:
    colleague, runs = join("colleague"), count_runs(client, "digits")
    colleague.succeed("dvc", "pull")
    assert colleague.files("models", "reports", "data") == author.files("models", "reports", "data")
    assert "Running stage" not in colleague.succeed("dvc", "repro")
    assert colleague.succeed("dvc", "metrics", "show") == author.succeed("dvc", "metrics", "show")
    assert "1 joined, 0 unmatched" in colleague.succeed(*CHECK)
    colleague.succeed("dvc", "repro", "--force", "--single-item", "evaluate")  # continues the other user's run
    colleague.succeed("python", "-m", "pipeline.commands.gate", "--base", "HEAD")
    assert count_runs(client, "digits") == runs == 1


def test_the_model_of_a_run_needs_no_key_of_the_store(author: Member, join: Join) -> None:
    run = author.report("evaluation.json")["mlflow"]["run_id"]
    keys = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"), "")
    printed = join("colleague").succeed("python", "-c", DOWNLOAD.format(run=run), **keys)
    folder = Path(printed.splitlines()[-1])
    assert (folder / "data" / "model.keras").read_bytes() == author.files("models")["models/model.keras"]


def test_two_people_train_and_push_at_once(join: Join, client: MlflowClient) -> None:
    people = {"author": join("author"), "colleague": join("colleague")}
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda each: train_on_branch(each[1], each[0], 2 + len(each[0]), "at-once"), people.items()))
        list(threads.map(lambda person: person.succeed("dvc", "push"), people.values()))
    third = join("reader")
    for name, person in people.items():
        third.succeed("git", "switch", "-q", name)
        third.succeed("dvc", "pull")
        assert third.files("models", "reports") == person.files("models", "reports")
        assert "2 joined, 0 unmatched" in third.succeed(*CHECK, MLFLOW_EXPERIMENT_NAME="at-once")
    client.create_run(client.get_experiment_by_name("at-once").experiment_id, tags={"mlflow.user": "somebody else"})
    assert "2 joined, 0 unmatched" in third.succeed(*CHECK, MLFLOW_EXPERIMENT_NAME="at-once"), "their clone has it"


def train_on_branch(person: Member, branch: str, seed: int, experiment: str) -> None:
    """Train another seed in a branch, and push it with git."""
    person.succeed("git", "switch", "-qc", branch)
    person.params(recipe="smoke", seed=seed)
    person.succeed("dvc", "repro", MLFLOW_EXPERIMENT_NAME=experiment)
    person.commit()
    person.succeed("git", "push", "-q", "origin", branch)


def test_an_experiment_goes_to_a_colleague(join: Join) -> None:
    author, colleague = join("author"), join("colleague")
    own = {"MLFLOW_EXPERIMENT_NAME": "experiments"}
    author.succeed("dvc", "pull")
    author.succeed("dvc", "exp", "run", "--name", "longer", "-S", "+training.epochs=3", **own)
    author.succeed("dvc", "exp", "push", "origin", "longer")
    colleague.succeed("dvc", "exp", "pull", "origin", "longer")
    colleague.succeed("dvc", "exp", "apply", "longer")
    assert "Running stage" not in colleague.succeed("dvc", "repro", **own)
    assert colleague.report("evaluation.json") == author.report("evaluation.json")
    assert "2 joined, 0 unmatched" in colleague.succeed(*CHECK, **own)


@pytest.mark.parametrize(("service", "epochs"), [("mlflow", LONG), ("mlflow", 20), ("postgres", 20), ("s3", 20)])
def test_an_outage_loses_nothing(team: Team, join: Join, client: MlflowClient, service: str, epochs: int) -> None:
    """A service is killed in mid-training, and is back long before the end of a long training, or after a short one."""
    author, own = join("author"), {"MLFLOW_EXPERIMENT_NAME": f"outage-{service}-{epochs}"}
    author.succeed("dvc", "pull")
    author.params(recipe="smoke", training={"epochs": epochs})
    author.succeed("python", "-m", "pipeline.stages.compose")
    with author.running(*TRAIN, **own) as training:
        training.wait_for("epoch   3/")
        with team.without(service):
            if epochs < LONG:
                assert training.finish() == 0, training.output
                assert training.output.count("kept in .unsent/") == 1, training.output
        assert training.finish() == 0, training.output
    author.succeed(*SEND, **own)
    author.succeed("python", "-m", "pipeline.stages.evaluate", **own)
    assert not [path for path in (author.root / ".unsent").glob("*/") if path.is_dir()]
    (run,) = client.search_runs([client.get_experiment_by_name(own["MLFLOW_EXPERIMENT_NAME"]).experiment_id])
    assert_complete(client, run, epochs)


def assert_complete(client: MlflowClient, run: Run, epochs: int) -> None:
    """Check that the store has everything of a run, and every epoch once."""
    assert run.info.status == "FINISHED"
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")]
    assert steps == [*range(1, epochs + 1)]
    assert {"training.epochs", "model.name"} <= run.data.params.keys()
    assert "test/accuracy" in run.data.metrics
    assert {"config", "model_summary.txt", "report.html"} <= {
        file.path for file in client.list_artifacts(run.info.run_id)
    }
    (model,) = run.outputs.model_outputs
    assert client.get_logged_model(model.model_id).status == "READY"


def test_a_push_continues_after_the_store_was_down(team: Team, join: Join) -> None:
    author = join("author")
    author.succeed("dvc", "pull")
    train_on_branch(author, "after-the-store-was-down", 9, "push")
    with team.without("s3"):
        assert "Could not connect" in author.fail("dvc", "push")
    author.succeed("dvc", "push")
    other = join("colleague")
    other.succeed("git", "switch", "-q", "after-the-store-was-down")
    other.succeed("dvc", "pull")
    assert other.files("models") == author.files("models")


def count_runs(client: MlflowClient, experiment: str) -> int:
    """The number of runs in an experiment."""
    return len(client.search_runs([client.get_experiment_by_name(experiment).experiment_id]))
