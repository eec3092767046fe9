"""The recorded commit, changes and commands reproduce a run."""

import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.core.files import md5
from pipeline.core.records import Provenance
from pipeline.tracking.provenance import PATCH, SOURCES, commands, find_provenance, to_overrides
from pipeline.tracking.runs import DESCRIPTION
from tests.commands.gate.command import edit
from tests.conftest import Project

HOSTILE = {
    "diff.noprefix": "true",
    "diff.mnemonicPrefix": "true",
    "diff.external": "false",
    "diff.context": "0",
    "diff.renames": "copies",
    "color.ui": "always",
    "color.diff": "always",
    "core.quotePath": "false",
    "core.safecrlf": "true",
    "apply.whitespace": "fix",
}
Change = Callable[[Path], object]


def committed(root: Path) -> Project:
    """A repository with a commit of short sources, in which every entry of `SOURCES` exists."""
    project = Project(root)
    for name, content in {
        "pipeline/code.py": b"".join(b"line %d\n" % number for number in range(20)),
        "pipeline/windows.py": b"one\r\ntwo\r\n",
        "pipeline/gone.py": b"gone\n",
        "conf/config.yaml": b"seed: 1\n",
        "params.yaml": b"# What to run.\nseed: 1\ntraining:\n  epochs: null\n",
        "dvc.yaml": b"stages: {}\n",
        "requirements.txt": b"numpy\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    project.succeed("git", "init", "-q")
    project.succeed("git", "config", "user.name", "tests")
    project.succeed("git", "config", "user.email", "tests@localhost")
    project.commit()
    return project


def test_files_that_look_like_secrets_are_not_recorded(sources: Project, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("conf/.env", "conf/my_token.yaml", "conf/id_ed25519", "conf/harmless.yaml"):
        (sources.root / name).write_text("hunter2\n" if name != "conf/harmless.yaml" else "seed: 3\n", encoding="utf-8")
    patch = find_provenance().patch
    assert "hunter2" not in patch
    assert "conf/harmless.yaml" in patch
    assert capsys.readouterr().out.count("looks like a secret") == 3
    sources.commit()
    (sources.root / "conf" / "my_token.yaml").write_text("it is committed\n", encoding="utf-8")
    assert "it is committed" in find_provenance().patch


def test_a_folder_of_another_user_is_reported(
    sources: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert find_provenance() == Provenance(commit="", patch="", overrides=None)
    assert f"git config --global --add safe.directory {sources.root}" in capsys.readouterr().out


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    folder = tmp_path / "sources"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return committed(folder)


def applied(project: Project, target: Path, patch: str, folder: str = ".") -> Project:
    """A clone at the commit, in which the printed command applied the patch that was made in `folder`."""
    # --no-local: a copy of the whole object store would contain the new files, and git would find them there
    project.succeed("git", "clone", "-q", "--no-local", str(project.root), str(target))
    clone = Project(target / folder)
    for name, value in HOSTILE.items():
        clone.succeed("git", "config", name, value)
    (clone.root / PATCH).parent.mkdir()
    (clone.root / PATCH).write_text(patch, encoding="utf-8", newline="")
    (command,) = [
        line
        for line in commands(Provenance(commit="abc", patch="diff", overrides=None), "1")
        if line.startswith("git apply")
    ]
    clone.succeed(*shlex.split(command))
    return clone


def edit_in_latin_1(root: Path) -> None:
    (root / "conf" / "größe.yaml").write_bytes("# Größe\n".encode("latin-1"))
    (root / "conf" / "config.yaml").write_bytes(b"seed: 2\n")
    (root / "conf" / "one").write_bytes(b"\xe9")
    (root / "conf" / os.fsdecode(b"gr\xf6\xdfe")).write_bytes(b"a name in Latin-1\n")


def edit_everything(root: Path) -> None:
    edit_code(root)
    (root / "params.yaml").write_bytes(b"seed: 2\r\n")
    (root / "pipeline" / "new.bin").write_bytes(bytes(range(256)) * 9)
    (root / "pipeline" / "windows.py").write_bytes(b"one\r\nthree\r\n")
    (root / "pipeline" / "gone.py").unlink()
    (root / "pipeline" / "größe.py").write_text("Größe = 1  \n\n\n\f# \u2028 no newline at the end", encoding="utf-8")


def edit_code(root: Path) -> None:
    path = root / "pipeline" / "code.py"
    path.write_text(path.read_text(encoding="utf-8").replace("line 9", "another"), encoding="utf-8")


CHANGES: dict[str, Change] = {
    "params alone": lambda root: (root / "params.yaml").write_bytes(b"seed: 2\ntraining:\n  epochs: null\n"),
    "code": edit_code,
    "a new binary file": lambda root: (root / "conf" / "new.bin").write_bytes(bytes(range(256))),
    "CRLF": lambda root: (root / "pipeline" / "windows.py").write_bytes(b"one\r\nthree\r\n"),
    "Latin-1": edit_in_latin_1,
    "Latin-1 params": lambda root: (root / "params.yaml").write_bytes("seed: 2 # größer\n".encode("latin-1")),
    "everything at once": edit_everything,
}


@pytest.mark.parametrize("settings", [{}, HOSTILE], ids=["plain", "hostile"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_patch_restores_the_sources(
    sources: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], change: Change
) -> None:
    for name, value in settings.items():
        sources.succeed("git", "config", name, value)
    if settings:
        monkeypatch.setenv("GIT_DIFF_OPTS", "--unified=0")
        monkeypatch.setenv("GIT_EXTERNAL_DIFF", "false")
    change(sources.root)
    index = (sources.root / ".git" / "index").read_bytes()
    provenance = find_provenance()
    assert (sources.root / ".git" / "index").read_bytes() == index, "the user's index is unchanged"
    assert provenance.commit == sources.succeed("git", "rev-parse", "HEAD").strip()
    clone = applied(sources, tmp_path / "clone", provenance.patch)
    assert clone.files(*SOURCES) == sources.files(*SOURCES)
    assert (clone.root / "params.yaml").read_bytes() == (sources.root / "params.yaml").read_bytes()
    assert provenance.overrides == (["seed=2"] if change is CHANGES["params alone"] else None)


def test_git_settings_that_refuse_line_endings(sources: Project, tmp_path: Path) -> None:
    for name, value in {"core.autocrlf": "input", "core.safecrlf": "true"}.items():
        sources.succeed("git", "config", name, value)
    edit_code(sources.root)
    (sources.root / "pipeline" / "new.py").write_bytes(b"one\r\n")
    clone = applied(sources, tmp_path / "clone", find_provenance().patch)
    as_committed = {"pipeline/new.py": b"one\n"}
    assert clone.files(*SOURCES) == sources.files(*SOURCES) | as_committed


def test_without_changes_the_provenance_is_the_commit(sources: Project) -> None:
    commit = sources.succeed("git", "rev-parse", "HEAD").strip()
    assert find_provenance() == Provenance(commit=commit, patch="", overrides=None)
    (sources.root / "README.md").write_text("no source\n", encoding="utf-8")
    assert find_provenance() == Provenance(commit=commit, patch="", overrides=None)


def test_a_project_in_a_subfolder_of_a_repository(
    tmp_path: Path, sources: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources.succeed("git", "config", "diff.relative", "true")
    inner = sources.root / "pipeline" / "inner"
    inner.mkdir()
    (inner / "params.yaml").write_text("seed: 1\n", encoding="utf-8")
    sources.commit()
    edit_code(sources.root)
    monkeypatch.chdir(inner)
    (inner / "params.yaml").write_text("seed: 2\n", encoding="utf-8")
    provenance = find_provenance()
    assert provenance.overrides == ["seed=2"]
    clone = applied(sources, tmp_path / "clone", provenance.patch, "pipeline/inner")
    assert (clone.root / "params.yaml").read_text(encoding="utf-8") == "seed: 2\n"
    assert "another" not in (clone.root.parent / "code.py").read_text(encoding="utf-8"), "not a source of this project"


def test_outside_git_there_is_no_provenance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert find_provenance() == Provenance(commit="", patch="", overrides=None)
    monkeypatch.setenv("PATH", "")
    assert find_provenance() == Provenance(commit="", patch="", overrides=None)
    assert commands(Provenance(commit="", patch="", overrides=None), "1") == ["dvc repro"]


def test_changed_params_become_overrides() -> None:
    before = b"recipe: a\ntraining: {epochs: null}\n"
    assert to_overrides(before, b"recipe: b\ntraining: {epochs: 5}\n") == ["recipe=b", "training.epochs=5"]
    assert to_overrides(before, b"recipe: a\ntraining: {epochs: null, batch_size: 64}\n") == ["+training.batch_size=64"]
    assert to_overrides(before, b"recipe: a\n") is None, "options cannot remove a key"
    assert to_overrides(before, b"recipe: 'a b'\ntraining: {epochs: 1}\n") is None, "nor hold every text safely"
    assert to_overrides(before, b"[recipe]") is None, "nor anything but a mapping"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"a: 1\n", b"a: 1\nx: [1, 2]\n"),
        (b"x: [1, 2]\n", b"x: [1, 3]\n"),
        (b"x: [1, 2]\n", b"x: [1]\n"),
        (b"x: [{b: 1}]\n", b"x: [{b: 2}]\n"),
        (b"a: {x: 1}\n", b"a: {x: [1]}\n"),
        (b"x: 1\n", b"x: 2026-01-02\n"),
    ],
)
def test_overrides_cannot_express_lists_and_dates(before: bytes, after: bytes) -> None:
    assert to_overrides(before, after) is None


def test_an_unchanged_list_needs_no_override() -> None:
    assert to_overrides(b"x: [1, {b: 'a b'}]\na: 1\n", b"x: [1, {b: 'a b'}]\na: 2\n") == ["a=2"]


def test_the_commands_depend_on_the_changes() -> None:
    assert commands(Provenance(commit="abc", patch="", overrides=None), "1") == ["git checkout abc", "dvc repro"]
    assert commands(Provenance(commit="abc", patch="", overrides=None), "1", "jax")[-1] == "KERAS_BACKEND=jax dvc repro"
    assert commands(Provenance(commit="abc", patch="diff", overrides=["seed=2"]), "1") == [
        "git checkout abc",
        "dvc exp run -S seed=2",
    ]
    assert (
        commands(Provenance(commit="abc", patch="diff", overrides=None), "1")[2]
        == "git apply --whitespace=nowarn code/uncommitted.patch"
    )


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["params", "code"])
def test_the_commands_on_a_runs_page_train_the_same_network(trained: Project, tmp_path: Path, changed: str) -> None:
    trained.params(recipe="smoke", training={"epochs": None, "deterministic": True}, optimizer=None)
    trained.commit()
    if changed == "params":
        trained.succeed("dvc", "exp", "run", "-S", "training.epochs=1")
    else:
        edit(trained, "pipeline/stages/train/network.py", "WHITE = 255", "WHITE = 200")
        trained.succeed("dvc", "repro")
    store = f"sqlite:///{trained.root}/mlflow.db"
    run = MlflowClient(store).get_run(trained.report("evaluation.json")["mlflow"]["run_id"])
    trained.succeed("git", "clone", "-q", str(trained.root), str(tmp_path / "again"))
    again = Project(tmp_path / "again")
    for command in run.data.tags[DESCRIPTION].split("```")[1].strip().splitlines():
        again.succeed(*shlex.split(command), MLFLOW_TRACKING_URI=store)
    assert md5(again.root / "models" / "model.keras") == run.data.tags["dvc.model"]
    assert again.report("evaluation.json")["test"] == trained.report("evaluation.json")["test"]
