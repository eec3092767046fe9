"""Layout and architecture: folders, dvc.yaml, paths, imports and configuration agree."""

import ast
import os
import re
import subprocess
import sys
from collections import Counter
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.utils import canonicalize_name

from pipeline.core import paths
from pipeline.core.config import Config
from pipeline.core.machine import pinned_versions
from pipeline.core.settings import USED, settings_of
from pipeline.stages.compose.composition import compose_config, to_yaml
from tests.conftest import FORKING, ROOT, Project, opened_by

STAGES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
COMMANDS = ["gate", "promote", "reproduce", "serve", "runs", "doctor"]
LIGHT = ["sweep", "stages.compose", "stages.fetch", "stages.preprocess", *(f"commands.{name}" for name in COMMANDS)]
HEAVY_MODULES = ["keras", "tensorflow", "mlflow"]


def names(entries: list[Any]) -> set[str]:
    return {name for entry in entries for name in (entry if isinstance(entry, dict) else [entry])}


def outputs(stage: str) -> set[str]:
    return {name for kind in ("outs", "metrics", "plots") for name in names(STAGES[stage].get(kind, []))}


def test_a_stage_is_a_folder_and_a_command() -> None:
    assert list(STAGES) == ["compose", "fetch", "preprocess", "train", "evaluate"]
    assert set(STAGES) == folders("stages")
    for name, stage in STAGES.items():
        assert stage["cmd"] == f"python -m pipeline.stages.{name}"
        assert (ROOT / "pipeline" / "stages" / name / "__main__.py").is_file()
        assert {"pipeline/core", f"pipeline/stages/{name}"} <= set(stage["deps"])


def test_a_command_is_a_folder() -> None:
    assert set(COMMANDS) == folders("commands")
    for name in COMMANDS:
        assert (ROOT / "pipeline" / "commands" / name / "__main__.py").is_file()


def folders(room: str) -> set[str]:
    return {path.name for path in (ROOT / "pipeline" / room).iterdir() if path.is_dir() and path.name[0] != "_"}


def test_dvc_yaml_and_paths_agree() -> None:
    in_paths = {str(value) for name, value in vars(paths).items() if name.isupper() and isinstance(value, Path)}
    in_paths -= {str(paths.CHECKPOINTS), str(paths.COMPILED)}  # not results
    in_paths |= set(map(str, paths.SETTINGS.values()))
    declared = set().union(*(outputs(name) | set(stage["deps"]) for name, stage in STAGES.items()))
    declared |= set().union(*(names(stage.get("params", [])) for stage in STAGES.values()))
    assert in_paths <= declared
    whole = {"models", str(paths.STATISTICS.parent)}  # folders of which evaluate uses every file
    assert {path for path in declared - whole if not path.startswith("pipeline/")} <= in_paths


NO_DEPENDENCY = {  # imports of the stages that are not in their `deps`, and the reasons
    "pipeline/repository": "queries to git, and checks of dvc.lock that only stop a stage",
    "pipeline/tracking": "records results, and creates no output that DVC tracks",
}


SOURCE = re.compile(r"/__pycache__/(\w+)\.cpython-\d+\.pyc$")
NAME = re.compile(r"\w+(?:\.\w+)+")  # of a module or of an object in it
TARGET = re.compile(r"_target_: (pipeline(?:\.\w+)+)")


def imported(path: Path) -> set[Path]:
    """Files of the project that a file imports in any scope, or names in a string, such as those of programs."""
    return files_of(imported_names(path) | named(path))


def imported_names(path: Path) -> set[str]:
    """Full names of the modules that a file imports in any scope, and of the objects that it imports from them."""
    names, package = set(), path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()  # of a relative import
            module = ".".join([*above, *filter(None, [node.module])])
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def named(path: Path) -> set[str]:
    """What may be a module, or an object in it, among the strings of a file."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    texts = [text for text in texts if NAME.fullmatch(text)]
    return {*texts, *(text.rpartition(".")[0] for text in texts)}


def files_of(names: set[str]) -> set[Path]:
    """Files of the project's modules among some names."""
    places = [ROOT / name.replace(".", "/") for name in names]
    files = {place.with_suffix(".py") for place in places} | {place / "__init__.py" for place in places}
    return {file for file in files if file.is_file()}


def reached(stage: str) -> set[Path]:
    """Files of the pipeline that a stage imports, directly or indirectly."""
    found, waiting = set(), {ROOT / "pipeline" / "stages" / stage / "__main__.py"}
    if stage == "train":
        waiting |= configured()
    while waiting:
        path = waiting.pop()
        found.add(path)
        waiting |= imported(path) - found
    return found


def configured() -> set[Path]:
    """Files of the pipeline that conf/ names."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "conf").rglob("*.yaml")]
    return files_of({target.rpartition(".")[0] for text in texts for target in TARGET.findall(text)})


def test_names_in_strings_and_in_conf_count_as_imports() -> None:
    train = ROOT / "pipeline" / "stages" / "train"
    assert train / "batch_size.py" in imported(train / "batch_size.py"), "the program that it starts"
    assert {train / "convnet.py", train / "augmentation.py"} <= configured()


def test_every_kind_of_import_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    files = [tmp_path / "pipeline" / name for name in ("a/b.py", "a/c.py", "d.py", "e/__init__.py")]
    files += [tmp_path / "benchmarks" / f"{number}.py" for number in "xyz"]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    imports = ("from . import c", "from ..d import F", "from .. import e", "import benchmarks.x")
    strings = ("'benchmarks.y'", "'benchmarks.z.F'", "'pipeline.nothing'")
    files[0].write_text("\n".join([*imports, "from benchmarks import nothing", *strings]), encoding="utf-8")
    assert imported(files[0]) == set(files[1:])


DEVELOPMENT = ("requirements-dev.txt", "requirements-team.txt", "requirements-uv.txt")  # not of the pipeline


def test_imports_are_of_the_standard_library_or_pinned() -> None:
    files = [path for path in ROOT.glob("requirements*.txt") if path.name not in DEVELOPMENT]
    pinned = {canonicalize_name(name) for path in files for name in pinned_versions(path)}
    found = packages_distributions().items()
    installed = {module for module, packages in found if pinned & set(map(canonicalize_name, packages))}
    known = {"pipeline", *sys.stdlib_module_names, *installed, *pinned}
    for path in modules():
        assert {name.partition(".")[0] for name in imported_names(path)} <= known, path


@pytest.mark.parametrize("stage", STAGES)
def test_all_code_that_affects_a_result_is_a_dependency(stage: str) -> None:
    deps = [ROOT / dep for dep in STAGES[stage]["deps"]]
    left_out = {ROOT / path for path in NO_DEPENDENCY}
    known = [*deps, *left_out]
    unknown = {
        str(path.relative_to(ROOT))
        for path in reached(stage)
        if path.stat().st_size and not any(path == place or place in path.parents for place in known)
    }
    assert unknown == set()
    assert not left_out & set(deps), "a file is either a dependency or excluded"


HARMLESS = {  # other files that stages open and that are not in their `deps`, and the reasons
    ("fetch", "composed.yaml"): "checked against composed/fetch.yaml, as those below",
    ("preprocess", "composed.yaml"): "",
    ("train", "composed.yaml"): "",
    ("evaluate", "composed.yaml"): "",
    ("preprocess", "dvc.lock"): "tells whether earlier stages ran with the current configuration, which is below",
    ("train", "dvc.lock"): "and whether DVC recorded an earlier training, which then is not continued",
    ("evaluate", "dvc.lock"): "and whether earlier outputs are damaged",
    ("preprocess", "composed/fetch.yaml"): "",
    ("train", "composed/fetch.yaml"): "",
    ("train", "composed/preprocess.yaml"): "",
    ("evaluate", "composed/fetch.yaml"): "",
    ("evaluate", "composed/preprocess.yaml"): "",
    ("evaluate", "composed/train.yaml"): "",
    ("train", "params.yaml"): "provenance of the run",
    ("train", "requirements.txt"): "the stage stops if other versions are installed",
    ("evaluate", "requirements.txt"): "",
}


@pytest.mark.skipif(FORKING not in os.environ, reason="the fork server records which files are opened")
def test_all_files_that_a_stage_opens_are_dependencies(trained_once: Project) -> None:
    """At run time: also packages' data, templates, modules that importlib imports, and what child processes open."""
    seen = opened_files(trained_once)
    unknown = {(stage, path) for stage, path in seen if not any(map(Path(path).is_relative_to, known_to(stage)))}
    assert unknown == HARMLESS.keys()
    assert ("evaluate", "pipeline/stages/evaluate/templates/model_card.md.j2") in seen, "a template"
    assert ("train", "pipeline/core/backends/tensorflow.py") in seen, "imported by importlib"
    assert ("train", "pipeline/tracking/recorder.py") in seen, "imported by a child process"


def opened_files(project: Project) -> set[tuple[str, str]]:
    """Stage and path of each file in the project that a stage opened; not of temporary and empty ones."""
    opened: Counter[tuple[str, str, bool]] = Counter()
    for line in opened_by(project).read_text(encoding="utf-8").splitlines():
        stage, _, name = line.partition("\t")
        path = Path(SOURCE.sub(r"/\1.py", name))  # an import opens bytecode, even if it does not exist
        if stage in STAGES and path.is_relative_to(project.root) and path.is_file() and path.stat().st_size:
            opened[stage, str(path.relative_to(project.root)), name.endswith(".py")] += 1
    # train also opens all sources, to name its checkpoint: each as often as those that it does not use.
    sources = {key for key in opened if key[0] == "train" and key[2] and key[1].startswith("pipeline/")}
    listed = min((opened[key] for key in sources), default=0) if len(sources) == len(modules()) else 0
    return {key[:2] for key, count in opened.items() if count > listed or key not in sources}


def known_to(stage: str) -> set[str]:
    """Files and folders that DVC compares before it runs a stage, its outputs, and code without effect on them."""
    return {*STAGES[stage]["deps"], *names(STAGES[stage].get("params", [])), *outputs(stage), *NO_DEPENDENCY}


SHARED = {"core", "repository", "tracking"}
MAY_IMPORT = {  # docs/architecture.md
    "core": {"core"},
    "repository": {"core", "repository"},
    "tracking": SHARED,
    "registry": SHARED | {"registry"},
    **{f"stages/{name}": SHARED | {f"stages/{name}"} for name in STAGES},
    "sweep": SHARED
    | {
        "commands/parser.py",
        "commands/gate",
        "stages/compose",
        "stages/preprocess",
        "stages/train",
        "stages/evaluate",
        "sweep",
    },
    "commands/parser.py": {"core"},
    "commands/ports.py": {"core"},
    "commands/doctor": SHARED | {"commands/parser.py", "commands/doctor"},
    "commands/gate": SHARED | {"commands/parser.py", "commands/gate"},
    "commands/promote": SHARED | {"registry", "commands/parser.py", "commands/gate", "commands/promote"},
    "commands/reproduce": SHARED | {"commands/parser.py", "commands/doctor", "commands/gate", "commands/reproduce"},
    "commands/runs": SHARED | {"commands/parser.py", "commands/ports.py", "commands/gate", "commands/runs"},
    "commands/serve": SHARED | {"registry", "commands/parser.py", "commands/ports.py", "commands/serve"},
}


def part(path: Path) -> str:
    """The folder below pipeline/ that a file belongs to; `outside` for other files of the project."""
    if not path.is_relative_to(ROOT / "pipeline"):
        return "outside"
    found = path.relative_to(ROOT / "pipeline").parts
    return "/".join(found[:2]) if found[0] in ("stages", "commands") else found[0]


def modules() -> list[Path]:
    """All modules of the pipeline but the empty ones."""
    return [path for path in (ROOT / "pipeline").rglob("*.py") if path.stat().st_size]


def test_imports_follow_the_architecture() -> None:
    for path in modules():
        assert {part(file) for file in imported(path) if file.stat().st_size} <= MAY_IMPORT[part(path)], path


def test_few_folders_import_mlflow() -> None:
    importing = {
        part(path)
        for path in modules()
        if "import mlflow" in (text := path.read_text(encoding="utf-8")) or "from mlflow" in text
    }
    assert importing == {"tracking", "registry", "commands/runs", "commands/doctor"}


def test_training_does_not_know_who_records_it() -> None:
    folder = ROOT / "pipeline" / "stages" / "train"
    recording = {path.name for path in folder.glob("*.py") if any("tracking" in file.parts for file in imported(path))}
    assert recording == {"__main__.py", "recording.py"}


def test_functions_are_short() -> None:
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 45, f"{path}: {node.name}"


def test_stages_use_keys_of_the_configuration() -> None:
    composed = yaml.safe_load((ROOT / "composed.yaml").read_text(encoding="utf-8"))
    assert set(composed) == set(Config.model_fields)
    assert set(USED) == set(paths.SETTINGS) == set(STAGES) - {"compose"}
    for stage, path in paths.SETTINGS.items():
        assert str(path) in STAGES[stage]["deps"]
        assert list(settings_of(stage, composed)) == list(USED[stage])


def test_the_committed_configuration_is_up_to_date() -> None:
    assert (ROOT / "composed.yaml").read_text(encoding="utf-8") == to_yaml(
        compose_config(ROOT / "conf", ROOT / "params.yaml")
    )


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_import_nothing_heavy(module: str) -> None:
    """Importing Keras takes four to twelve seconds, MLflow two to three."""
    code = (
        f"import sys, runpy; runpy.run_module('pipeline.{module}.__main__', run_name='imported'); "
        f"print([name for name in {HEAVY_MODULES} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "module", ["sweep", *(f"stages.{name}" for name in STAGES), *(f"commands.{name}" for name in COMMANDS)]
)
def test_help_shows_the_command_and_its_purpose(module: str) -> None:
    command = [sys.executable, "-m", f"pipeline.{module}", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"python -m pipeline.{module}" in result.stdout
    assert len(result.stdout.splitlines()) >= 4
