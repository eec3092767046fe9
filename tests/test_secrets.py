"""Passwords in URLs do not appear in any output or file, except in the one file that needs them."""

import stat

from tests.conftest import Project

MARKER = "".join(("hunter2", "secret"))  # in two parts, so that the cloned copy of this file does not contain it


def test_a_password_is_in_no_output_and_in_no_file_readable_by_others(trained: Project) -> None:
    store = {"MLFLOW_TRACKING_URI": f"http://me:{MARKER}@127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    mirror = {"DATASET_MIRROR": f"http://me:{MARKER}@127.0.0.1:9/mnist"}
    outputs = [
        trained.fail("python", "-m", "pipeline.stages.train", **store),
        trained.succeed("python", "-m", "pipeline.stages.evaluate", **store),
        trained.fail("python", "-m", "pipeline.commands.runs", "send", **store),
        trained.fail("python", "-m", "pipeline.commands.promote", "--base", "HEAD", **store),
        trained.run(
            "python", "-m", "pipeline.commands.gate", "--base", "HEAD", "--markdown", "gate.md", **store
        ).stdout,
    ]
    trained.params(recipe="baseline")
    outputs += [
        trained.succeed("python", "-m", "pipeline.stages.compose"),
        trained.run("python", "-m", "pipeline.stages.fetch", **mirror).stdout,
    ]
    assert not [text for text in outputs if MARKER in text]
    containing = [path for path in trained.root.rglob("*") if path.is_file() and MARKER.encode() in path.read_bytes()]
    assert containing
    assert {path.name for path in containing} == {"uri"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in containing} == {0o600}
