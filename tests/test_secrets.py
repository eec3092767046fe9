"""No password of an address is in anything that is written, but for the one file that needs it."""

import stat

from tests.conftest import Project

MARKER = "".join(("hunter2", "secret"))  # so that the clone, which has this file, does not have it


def test_a_password_is_in_no_output_and_in_no_file_that_others_may_read(trained: Project) -> None:
    store = {"MLFLOW_TRACKING_URI": f"http://me:{MARKER}@127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    mirror = {"DATASET_MIRROR": f"http://me:{MARKER}@127.0.0.1:9/mnist"}
    told = [
        trained.fail("python", "-m", "pipeline.train", **store),
        trained.succeed("python", "-m", "pipeline.evaluate", **store),
        trained.fail("python", "-m", "pipeline.tracking", "send", **store),
        trained.fail("python", "-m", "pipeline.promote", "--base", "HEAD", **store),
        trained.run("python", "-m", "pipeline.gate", "--base", "HEAD", "--markdown", "gate.md", **store).stdout,
    ]
    trained.params(recipe="baseline")
    told += [
        trained.succeed("python", "-m", "pipeline.compose"),
        trained.run("python", "-m", "pipeline.fetch", **mirror).stdout,
    ]
    assert not [text for text in told if MARKER in text]
    held = [path for path in trained.root.rglob("*") if path.is_file() and MARKER.encode() in path.read_bytes()]
    assert held
    assert {path.name for path in held} == {"uri"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in held} == {0o600}
