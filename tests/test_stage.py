import os
import subprocess
import sys

import pytest

NAME = "TF_ENABLE_ONEDNN_OPTS"
SHOW = f"import os; from pipeline.stage import run_stage; run_stage('x', 'x', lambda: print(os.environ['{NAME}']))"


@pytest.mark.parametrize(("chosen", "expected"), [({}, "1"), ({NAME: "0"}, "0")])
def test_convolutions_are_quick_unless_somebody_says_otherwise(chosen: dict[str, str], expected: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != NAME} | chosen
    told = subprocess.run([sys.executable, "-c", SHOW], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == expected
