import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import environment

NAME = "TF_ENABLE_ONEDNN_OPTS"
IMPORT = "import os; from pipeline.core.process.stage import run_stage"
SHOW = f"{IMPORT}; run_stage('x', 'x', lambda: print(os.environ['{NAME}']))"


@pytest.mark.parametrize(("chosen", "expected"), [({}, "1"), ({NAME: "0"}, "0")])
def test_onednn_is_enabled_unless_the_environment_disables_it(chosen: dict[str, str], expected: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if name != NAME} | chosen
    result = subprocess.run([sys.executable, "-c", SHOW], env=inherited, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == expected


ABSENT = """
import sys
from pipeline.core.process.stage import absent
with absent("csv", "json"):
    for name in ("csv", "json"):
        try:
            __import__(name)
            print(name, "there")
        except ImportError:
            print(name, "not there")
import csv, json
print(csv.__name__, json.__name__)
"""


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_hidden_packages_cannot_be_imported_until_the_block_ends() -> None:
    assert python(ABSENT).splitlines() == ["csv not there", "json not there", "csv json"]


QUIETLY = """
import os, sys
from pipeline.core.process.stage import stderr_held
with stderr_held():
    os.write(2, b"held back")
os.write(2, b"said after ")
try:
    with stderr_held():
        os.write(2, b"shown")
        raise ValueError
except ValueError:
    os.write(2, b" and after that")
"""


def test_standard_error_is_shown_only_if_the_block_fails() -> None:
    result = subprocess.run([sys.executable, "-c", QUIETLY], capture_output=True, text=True, check=True)
    assert result.stderr == "said after shown and after that"


@pytest.mark.parametrize(
    ("death", "crashed"), [("os.abort()", True), ("ctypes.string_at(0)", True), ("os.kill(os.getpid(), 9)", False)]
)
def test_buffered_output_is_shown_if_the_process_crashes(tmp_path: Path, death: str, crashed: bool) -> None:
    imports = "import ctypes, os\nfrom pipeline.core.process.stage import stderr_held"
    code = f"{imports}\nwith stderr_held():\n    os.write(2, b'no AVX')\n    {death}"
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode < 0
    assert ("no AVXFatal Python error: " in result.stderr) == crashed
    assert crashed or not result.stderr
    assert not [*tmp_path.iterdir()]


def test_without_a_shell_only_the_crash_output_is_lost(tmp_path: Path) -> None:
    code = "from pipeline.core.process.stage import stderr_held\nwith stderr_held():\n    print(1)"
    environment = os.environ | {"PATH": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("1\n", "")


def test_descriptors_of_closed_streams_are_not_reused() -> None:
    """C++ code writes to descriptors 1 and 2, whatever they refer to."""
    code = (
        "import os; from pipeline.core.process.surroundings import settle; settle(); print(os.open('/dev/zero', 0) > 2)"
    )
    for closed in ("0<&-", "2>&-", "0<&- 2>&-"):
        command = ["sh", "-c", f'"{sys.executable}" -c "{code}" {closed}']
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True\n", closed


def test_the_backend_in_keras_json_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "keras.json").write_text('{"backend": "jax"}', encoding="utf-8")
    code = "from pipeline.core.process.stage import *\nwith importing_keras():\n    import keras"
    inherited = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    command = [sys.executable, "-c", f"{code}\nprint(keras.backend.backend())"]
    inherited |= {"KERAS_HOME": str(tmp_path)}
    result = subprocess.run(command, env=inherited, capture_output=True, text=True, check=True)
    assert result.stdout == "tensorflow\n"


def test_a_closed_standard_error_is_not_buffered() -> None:
    code = "from pipeline.core.process.stage import stderr_held\nwith stderr_held(): print(1)"
    command = ["sh", "-c", f"{sys.executable} -c '{code}' 2>&-"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "1\n"


def test_packages_that_are_already_imported_are_not_hidden() -> None:
    assert python(f"import csv, json\n{ABSENT}").splitlines() == ["csv there", "json there", "csv json"]


def test_packages_that_another_backend_needs_are_not_hidden() -> None:
    """JAX needs SciPy; Keras on TensorFlow does not."""
    imports = "with importing_keras():\n    import scipy.sparse, scipy.linalg\nprint('imported')"
    assert python(f"from pipeline.core.process.stage import importing_keras\n{imports}") == "imported\n"


def test_commands_of_tests_do_not_inherit_the_backend_of_earlier_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a backend in its environment, a command would start an interpreter instead of a fork."""
    monkeypatch.setenv("KERAS_BACKEND", "other")
    assert environment({}).get("KERAS_BACKEND") != "other"
    assert environment({"KERAS_BACKEND": "other"})["KERAS_BACKEND"] == "other"
