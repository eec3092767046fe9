"""Run atheris on the parsers: inputs that reach new branches are kept and changed further.

`python -m tests.fuzzing` fuzzes all parsers, `python -m tests.fuzzing TARGET [libFuzzer's options]` one of them. An
input that fails is left in the current folder, after the traceback.
"""

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.core.containers import usable_cores
from tests.fuzzing.folder import VARIABLE, make_folder

INPUTS = 12_000
OPTIONS = (f"-runs={INPUTS}", "-timeout=20", "-rss_limit_mb=2048", "-max_len=4096", "-verbosity=0")


def fuzz(name: str, options: list[str]) -> None:
    """Fuzz one parser from its intact files on, and end the process."""
    import atheris

    with atheris.instrument_imports(include=["pipeline"], enable_loader_override=False):
        from tests.fuzzing.targets import FOLDER, TARGETS
    target = TARGETS[name]
    corpus = Path(tempfile.mkdtemp(prefix="corpus-", dir=FOLDER))
    for number, content in enumerate(target.intact):
        (corpus / str(number)).write_bytes(content)
    words = FOLDER / "words"
    lines = ('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in target.words)
    words.write_text("".join(lines), encoding="ascii")

    def parse(content: bytes) -> None:
        target.parse(content)

    atheris.Setup([sys.argv[0], *OPTIONS, f"-dict={words}", *options, str(corpus)], parse)
    atheris.Fuzz()


def fuzz_in_child(name: str, options: list[str], output: int | None = None) -> "subprocess.CompletedProcess[bytes]":
    """Fuzz one parser in another process, which atheris ends before it could remove its files."""
    command = [sys.executable, "-m", "tests.fuzzing", name, *options]
    with tempfile.TemporaryDirectory(dir=make_folder()) as folder:
        settings = os.environ | {VARIABLE: folder}
        return subprocess.run(command, env=settings, stdout=output, stderr=output and subprocess.STDOUT, check=False)


def fuzz_all() -> int:
    """Fuzz each parser in its own process, one per core at a time, and return the number of those that failed."""
    from tests.fuzzing.targets import TARGETS

    failed = 0
    with ThreadPoolExecutor(usable_cores()) as pool:
        results = pool.map(lambda name: fuzz_in_child(name, [], subprocess.PIPE), TARGETS)
        for name, result in zip(TARGETS, results, strict=True):
            failed += result.returncode != 0
            print(f"{name}: {f'{INPUTS:,} inputs' if result.returncode == 0 else 'FAILED'}", flush=True)
            if result.returncode:
                print(result.stdout.decode(errors="replace"))
    return failed


if __name__ == "__main__":
    if VARIABLE in os.environ:
        fuzz(sys.argv[1], sys.argv[2:])
    sys.exit(fuzz_in_child(sys.argv[1], sys.argv[2:]).returncode if sys.argv[1:] else fuzz_all())
