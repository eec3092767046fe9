import os
import subprocess
import sys
from pathlib import Path

import pytest

NAME = "TF_ENABLE_ONEDNN_OPTS"
SHOW = f"import os; from pipeline.stage import run_stage; run_stage('x', 'x', lambda: print(os.environ['{NAME}']))"


@pytest.mark.parametrize(("chosen", "expected"), [({}, "1"), ({NAME: "0"}, "0")])
def test_convolutions_are_quick_unless_somebody_says_otherwise(chosen: dict[str, str], expected: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != NAME} | chosen
    told = subprocess.run([sys.executable, "-c", SHOW], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == expected


ABSENT = """
import sys
from pipeline.stage import absent
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


def test_what_is_absent_is_not_imported_until_the_block_ends() -> None:
    assert python(ABSENT).splitlines() == ["csv not there", "json not there", "csv json"]


QUIETLY = """
import os, sys
from pipeline.stage import quietly
with quietly():
    os.write(2, b"held back")
os.write(2, b"said after ")
try:
    with quietly():
        os.write(2, b"shown")
        raise ValueError
except ValueError:
    os.write(2, b" and after that")
"""


def test_standard_error_is_held_back_unless_the_block_fails_and_no_longer_than_that() -> None:
    result = subprocess.run([sys.executable, "-c", QUIETLY], capture_output=True, text=True, check=True)
    assert result.stderr == "said after shown and after that"


@pytest.mark.parametrize(
    ("death", "crashed"), [("os.abort()", True), ("ctypes.string_at(0)", True), ("os.kill(os.getpid(), 9)", False)]
)
def test_what_was_held_back_is_shown_if_the_process_crashes(tmp_path: Path, death: str, crashed: bool) -> None:
    imports = "import ctypes, os\nfrom pipeline.stage import quietly"
    code = f"{imports}\nwith quietly():\n    os.write(2, b'no AVX')\n    {death}"
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode < 0
    assert ("no AVXFatal Python error: " in result.stderr) == crashed
    assert crashed or not result.stderr
    assert not [*tmp_path.iterdir()]


def test_without_a_shell_nothing_is_shown_and_all_else_works(tmp_path: Path) -> None:
    code = "from pipeline.stage import quietly\nwith quietly():\n    print(1)"
    environment = os.environ | {"PATH": str(tmp_path)}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (told.stdout, told.stderr) == ("1\n", "")


def test_streams_that_are_closed_are_no_files_for_others() -> None:
    """C++ code writes to the numbers 1 and 2 whatever they are."""
    code = "import os; from pipeline.surroundings import settle; settle(); print(os.open('/dev/zero', 0) > 2)"
    for closed in ("0<&-", "2>&-", "0<&- 2>&-"):
        command = ["sh", "-c", f'"{sys.executable}" -c "{code}" {closed}']
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True\n", closed


def test_a_backend_in_keras_s_own_file_of_settings_is_not_heeded(tmp_path: Path) -> None:
    (tmp_path / "keras.json").write_text('{"backend": "jax"}', encoding="utf-8")
    code = "from pipeline.stage import *\ncheck_backend()\nwith importing_keras():\n    import keras"
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    command = [sys.executable, "-c", f"{code}\nprint(keras.backend.backend())"]
    environment |= {"KERAS_HOME": str(tmp_path)}
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert told.stdout == "tensorflow\n"


def test_a_standard_error_that_is_closed_holds_nothing_back() -> None:
    code = "from pipeline.stage import quietly\nwith quietly(): print(1)"
    command = ["sh", "-c", f"{sys.executable} -c '{code}' 2>&-"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "1\n"


def test_what_was_imported_before_stays() -> None:
    assert python(f"import csv, json\n{ABSENT}").splitlines() == ["csv there", "json there", "csv json"]


def test_what_another_backend_needs_is_not_hidden_from_it() -> None:
    """JAX needs SciPy, which Keras on TensorFlow does not."""
    imports = "with importing_keras():\n    import scipy.sparse, scipy.linalg\nprint('imported')"
    assert python(f"from pipeline.stage import importing_keras\n{imports}") == "imported\n"
