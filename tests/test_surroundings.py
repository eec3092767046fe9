"""Surroundings that people have: docs/surroundings.md lists them."""

import json
import sys
from pathlib import Path

from tests.conftest import PATH, Project

PROXY = "http://127.0.0.1:9"


def hostile(folder: Path) -> dict[str, str]:
    """Every setting at once that must not matter."""
    home = folder / "home"
    (home / ".keras").mkdir(parents=True)
    keras = {"image_data_format": "channels_first", "floatx": "float16", "epsilon": 0.1, "backend": "torch"}
    (home / ".keras" / "keras.json").write_text(json.dumps(keras), encoding="utf-8")
    proxies = {"HTTP_PROXY": PROXY, "http_proxy": PROXY, "NO_PROXY": "example.org"}
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    notebook = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    return {"HOME": str(home), "DEVICE": "", **proxies, **ascii_alone, **notebook}


def test_a_training_is_the_same_whatever_surrounds_it(trained: Project, tmp_path: Path) -> None:
    before = trained.report("metrics.json")
    settings = hostile(tmp_path)
    for stage in ("compose", "preprocess", "train", "evaluate"):
        trained.succeed(sys.executable, "-m", f"pipeline.{stage}", PATH=PATH, **settings)
    after = trained.report("metrics.json")
    assert after["test"] == before["test"]
    trained.commit()
    status = trained.run(sys.executable, "-m", "pipeline.gate", "--base", "HEAD", PATH=PATH, **settings)
    assert status.returncode in (0, 2), status.stdout  # 2: a stage was run by hand, and DVC has not seen it
    assert "Traceback" not in status.stdout


def test_dvc_composes_nothing_into_params_yaml(project: Project, tmp_path: Path) -> None:
    """Though the user's own settings have it do so for other projects."""
    settings = tmp_path / "config"
    settings.mkdir()
    (settings / "config").write_text("[hydra]\n    enabled = true\n", encoding="utf-8")
    told = project.succeed("dvc", "config", "hydra.enabled", DVC_GLOBAL_CONFIG_DIR=str(settings))
    assert told.strip() == "false"


def test_line_ends_are_those_of_the_repository(project: Project) -> None:
    project.succeed("git", "config", "core.autocrlf", "true")
    for name in ("params.yaml", "conf/config.yaml", "pipeline/train/fitting.py"):
        (project.root / name).unlink()
    project.succeed("git", "checkout", "--", ".")
    assert b"\r" not in (project.root / "pipeline" / "train" / "fitting.py").read_bytes()
    assert project.succeed("git", "status", "--short") == ""
