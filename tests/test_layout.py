"""Layout and architecture: folders, dvc.yaml, paths, imports and configuration agree."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import paths
from pipeline.compose.composition import compose_config, to_yaml
from pipeline.config import Config
from tests.conftest import ROOT

STAGES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
LIGHT = ["compose", "fetch", "preprocess", "gate", "promote", "serve", "tracking"]
HEAVY_MODULES = ["keras", "tensorflow", "mlflow"]


def names(entries: list[Any]) -> set[str]:
    return {name for entry in entries for name in (entry if isinstance(entry, dict) else [entry])}


def outputs(stage: str) -> set[str]:
    return {name for kind in ("outs", "metrics", "plots") for name in names(STAGES[stage].get(kind, []))}


def test_a_stage_is_a_folder_and_a_command() -> None:
    assert list(STAGES) == ["compose", "fetch", "preprocess", "train", "evaluate"]
    for name, stage in STAGES.items():
        assert stage["cmd"] == f"python -m pipeline.{name}"
        assert (ROOT / "pipeline" / name / "__main__.py").is_file()
        assert f"pipeline/{name}" in stage["deps"]


def test_dvc_yaml_and_paths_agree() -> None:
    in_paths = {str(value) for name, value in vars(paths).items() if name.isupper() and isinstance(value, Path)}
    in_paths -= {str(paths.CHECKPOINTS), str(paths.COMPILED)}  # not results
    declared = set().union(*(outputs(name) | set(stage["deps"]) for name, stage in STAGES.items()))
    declared |= set().union(*(names(stage.get("params", [])) for stage in STAGES.values()))
    assert in_paths <= declared
    assert {path for path in declared if not path.startswith("pipeline/")} <= in_paths


NO_DEPENDENCY = {  # imports of the stages that are not in their `deps`, and the reasons
    "pipeline/errors.py": "messages only",
    "pipeline/files.py": "writes its arguments unchanged",
    "pipeline/paths.py": "dvc.yaml contains the same paths",
    "pipeline/stopwatch.py": "only measures seconds",
    "pipeline/tracking": "records results, and creates no output that DVC tracks",
    "pipeline/worker.py": "the process that records",
}
CHECKED = {"pipeline/config.py": "composed.yaml is complete, and its keys are DVC parameters"}
STARTED = {"pipeline/stage.py": "startup and exit of a stage", "pipeline/surroundings.py": "startup of a stage"}
NO_DEPENDENCY_OF = {
    "compose": STARTED | {"pipeline/repository.py": "a hint in an error message"},
    "fetch": STARTED | CHECKED,
    "preprocess": STARTED | CHECKED,
    "train": CHECKED,
    "evaluate": CHECKED | {"pipeline/machine.py": "only training chooses a precision"},
}


def imported(path: Path) -> set[Path]:
    """Files of the pipeline that a file imports, in any scope."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    places = [ROOT / name.replace(".", "/") for name in names if name.split(".")[0] == "pipeline"]
    files = {place.with_suffix(".py") for place in places} | {place / "__init__.py" for place in places}
    return {file for file in files if file.is_file()}


def reached(stage: str) -> set[Path]:
    """Files of the pipeline that a stage imports, directly or indirectly."""
    found, waiting = set(), {ROOT / "pipeline" / stage / "__main__.py"}
    while waiting:
        path = waiting.pop()
        found.add(path)
        waiting |= imported(path) - found
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_all_code_that_affects_a_result_is_a_dependency(stage: str) -> None:
    deps = [ROOT / dep for dep in STAGES[stage]["deps"]]
    left_out = {ROOT / path for path in {**NO_DEPENDENCY, **NO_DEPENDENCY_OF[stage]}}
    known = [*deps, *left_out]
    unknown = {
        str(path.relative_to(ROOT))
        for path in reached(stage)
        if path.stat().st_size and not any(path == place or place in path.parents for place in known)
    }
    assert unknown == set()
    assert not left_out & set(deps), "a file is either a dependency or excluded"


VALUES = {"config", "dataset", "errors", "files", "montage", "paths", "pictures"}
PROCESS = {"backends", "device", "machine", "repository", "stage", "stopwatch", "surroundings", "worker"}
RECORDING = VALUES | PROCESS | {"tracking"}
MAY_IMPORT = {  # docs/architecture.md
    **dict.fromkeys(VALUES, VALUES),
    **dict.fromkeys(PROCESS, VALUES | PROCESS),
    **dict.fromkeys([*STAGES, "tracking", "gate", "serve"], RECORDING),
    "promote": RECORDING | {"gate"},
}


def part(path: Path) -> str:
    """The folder or module below pipeline/ that a file belongs to."""
    return path.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py")


def test_imports_follow_the_architecture() -> None:
    for path in (ROOT / "pipeline").rglob("*.py"):
        if path != ROOT / "pipeline" / "__init__.py":
            parts = {part(file) for file in imported(path) if file != ROOT / "pipeline" / "__init__.py"}
            assert parts <= MAY_IMPORT[part(path)] | {part(path)}, path


def test_only_tracking_imports_mlflow() -> None:
    importing = {
        part(path)
        for path in (ROOT / "pipeline").rglob("*.py")
        if "import mlflow" in (text := path.read_text(encoding="utf-8")) or "from mlflow" in text
    }
    assert importing == {"tracking"}


def test_params_of_stages_are_keys_of_the_configuration() -> None:
    composed = yaml.safe_load((ROOT / "composed.yaml").read_text(encoding="utf-8"))
    assert set(composed) == set(Config.model_fields)
    for stage in STAGES.values():
        for entry in stage["params"]:
            for key in entry.get("composed.yaml") or []:
                node = composed
                for part in key.split("."):
                    assert part in node, key
                    node = node[part]


def test_the_committed_configuration_is_up_to_date() -> None:
    assert (ROOT / "composed.yaml").read_text(encoding="utf-8") == to_yaml(
        compose_config(ROOT / "conf", ROOT / "params.yaml")
    )


@pytest.mark.parametrize("stage", LIGHT)
def test_light_stages_import_nothing_heavy(stage: str) -> None:
    """Importing Keras takes four to twelve seconds, MLflow two to three."""
    code = (
        f"import sys, runpy; runpy.run_module('pipeline.{stage}.__main__', run_name='imported'); "
        f"print([name for name in {HEAVY_MODULES} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("module", [*STAGES, "gate", "promote", "serve", "tracking"])
def test_help_shows_the_command_and_its_purpose(module: str) -> None:
    command = [sys.executable, "-m", f"pipeline.{module}", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"python -m pipeline.{module}" in result.stdout
    assert len(result.stdout.splitlines()) >= 4
