"""Flipped bits in files that a run reads later."""

import json
import os
import random
from pathlib import Path

import pytest

from tests.conftest import Start, free_port, kill_all, serve_store
from tests.faults.conftest import Tell
from tests.faults.trial import EPOCHS, Trial, results, runs_of, settings

pytestmark = pytest.mark.faults
OUTPUTS = {  # and the stage that reads them
    "data/prepared/train.npz": "train",
    "data/prepared/validation.npz": "train",
    "data/prepared/test.npz": "evaluate",
    "models/model.keras": "evaluate",
    "models/run.json": "evaluate",
    "models/history.csv": "evaluate",
    "composed.yaml": "train",
    "composed/train.yaml": "train",
    "reports/data/statistics.json": "evaluate",
}
CACHED = [path for path in OUTPUTS if path != "composed.yaml"]
ONE_BIT = "one random bit"
SEND = ("python", "-m", "pipeline.commands.runs", "send")


def flip(path: Path, seed: str, silently: bool = False) -> None:
    """Flip one bit of a file; silently, as a disk does: without a new time of modification."""
    chooser, before = random.Random(seed), path.stat()
    content = bytearray(path.read_bytes())
    content[chooser.randrange(len(content))] ^= 1 << chooser.randrange(8)
    path.chmod(0o600)
    path.write_bytes(content)
    path.chmod(before.st_mode)
    if silently:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("silently", [False, True])
@pytest.mark.parametrize("path", OUTPUTS)
def test_a_result_has_a_flipped_bit(trial: Trial, tell: Tell, path: str, silently: bool) -> None:
    """And the stage that reads it runs again."""
    trial.project.succeed("dvc", "repro", **trial.settings)
    flip(trial.root / path, f"{path} {silently}", silently)
    run = trial.project.run("dvc", "repro", "--force", "--single-item", OUTPUTS[path], **trial.settings)
    assert "Traceback" not in run.stdout
    if run.returncode:
        assert path in run.stdout or Path(path).parts[0] in run.stdout, "the message names the file"
        (trial.root / path).unlink()  # as the message says
    else:
        assert results(trial.project).metrics == trial.expected.metrics, "no wrong number"
    trial.project.succeed("dvc", "repro", **trial.settings)
    assert results(trial.project).metrics == trial.expected.metrics
    how = "found and named" if run.returncode else "rebuilt, or in a part of the file that nothing reads"
    when = "without a new time of modification" if silently else "with a new time of modification"
    tell(f"flipped bit in {Path(path).parts[0]}", f"{ONE_BIT}, {when}", how)


@pytest.mark.parametrize("path", CACHED)
def test_a_cached_file_has_a_flipped_bit(trial: Trial, tell: Tell, path: str) -> None:
    """And DVC restores it, when the parameters are changed back."""
    outputs = {out["path"]: out["md5"] for stage in trial.lock["stages"].values() for out in stage["outs"]}
    cached = trial.root / ".dvc" / "cache" / "files" / "md5" / outputs[path][:2] / outputs[path][2:]
    before = results(trial.project)
    trial.project.succeed("dvc", "repro", **trial.settings)
    flip(cached, f"cache {path}", silently=True)
    trial.project.params(**settings(dataset="digits", seed=1))
    run = trial.project.run("dvc", "repro", **trial.settings)
    assert "Traceback" not in run.stdout
    if not run.returncode:
        assert results(trial.project).metrics == before.metrics, "no wrong number"
    assert str(cached) in trial.project.run("python", "-m", "pipeline.commands.doctor", "--json").stdout
    cached.unlink()
    (trial.root / path).unlink(missing_ok=True)
    trial.project.succeed("dvc", "repro", **trial.settings)
    assert results(trial.project).metrics == before.metrics
    how = "a stage named the file" if run.returncode else "the metrics are right"
    tell("flipped bit in DVC's cache", f"{ONE_BIT} of a cached output", f"{how}; `make doctor` named the cached file")


@pytest.mark.parametrize("seed", range(9))
def test_a_checkpoint_has_a_flipped_bit(trial: Trial, tell: Tell, operations: dict[str, list[str]], seed: int) -> None:
    assert trial.kill(f"pipeline.stages.train {int(0.65 * len(operations['pipeline.stages.train']))}").returncode
    files = sorted(path for path in (trial.root / ".resume").glob("*/*") if path.stat().st_size)
    chosen = files[seed % len(files)]
    flip(chosen, f"checkpoint {seed}")
    trial.recover()
    how = "train named it and started again, in a new run" if trial.restarted else "the training continued"
    tell("flipped bit in `.resume/`", f"{ONE_BIT} of {chosen.stem.rstrip('0123456789-')}", how)


@pytest.mark.parametrize("seed", range(6))
def test_a_kept_record_has_a_flipped_bit(trial: Trial, tell: Tell, start: Start, tmp_path: Path, seed: int) -> None:
    """Of those that a server did not accept."""
    (tmp_path / "server").mkdir()
    port = free_port()
    server = serve_store(start, tmp_path / "server", port)
    uri = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
    trial.project.succeed("dvc", "repro", "train", **trial.settings, **uri)
    kill_all(server)
    trial.project.succeed("dvc", "repro", **trial.settings, **uri, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    kept = sorted(path for path in (trial.root / ".unsent").rglob("*") if path.is_file() and path.stat().st_size)
    chosen = random.Random(f"kept {seed}").choice(kept)
    event, intact = event_of(chosen), chosen.read_bytes()
    values = json.loads(event.read_bytes()).get("values", {}) if event else {}
    flip(chosen, f"kept {seed}")
    serve_store(start, tmp_path / "server", port)
    sent = trial.project.run(*SEND, **uri)
    assert "Traceback" not in sent.stdout
    if event:
        assert f"{event.name} is damaged" in sent.stdout, "the message names the file"
    else:
        assert "is still incomplete" in sent.stdout
        chosen.write_bytes(intact)
        trial.project.succeed(*SEND, **uri)
    from mlflow import MlflowClient

    client = MlflowClient(uri["MLFLOW_TRACKING_URI"])
    (run,) = runs_of(client)
    wanted = {f"test/{name}": trial.expected.metrics[name] for name in ("accuracy", "errors")}
    wanted = {name: value for name, value in wanted.items() if name not in values}
    assert {name: run.data.metrics[name] for name in wanted} == wanted, "everything else was sent"
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == EPOCHS
    assert [path.name for path in (trial.root / ".unsent").glob("*/")] == ["refused"] * bool(event)
    what = "an event or its file" if event else "the address"
    tell("flipped bit in `.unsent/`", f"{ONE_BIT} of {what}", "`make send` named it; everything else was sent")


def event_of(path: Path) -> Path | None:
    """The event that a file of the outbox belongs to; None for the address."""
    if path.name == "uri":
        return None
    return path if path.name.startswith("event-") else path.parents[1] / f"event-{int(path.parent.name[5:]):06}.json"
