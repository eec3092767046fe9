"""Sources of the dataset that fail, each with a real HTTP server."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import web
from tests.faults.conftest import Tell
from tests.faults.trial import Trial

FILES = 4
Misbehavior = Callable[[web.Handler, bytes], None]
TRANSIENT = [web.overload, web.stop_half_way, web.hang_up, web.redirect]  # a second request succeeds
HARMLESS = [web.trickle, web.declare_gzip, web.declare_x_gzip, web.compress_again]
PERMANENT = [web.refuse, web.flip_a_byte, web.send_another_file]


def named(answer: Misbehavior) -> str:
    return answer.__name__.replace("_", " ")


def source(folder: str, misbehave: Misbehavior, when: Callable[[int], bool]) -> web.Answer:
    """A source that has the files of a folder, and misbehaves for some requests."""

    def answer(request: web.Handler, number: int) -> None:
        content = (Path(folder) / request.path.rpartition("/")[2]).read_bytes()
        misbehave(request, content) if when(number) else request.send(content)

    return answer


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("misbehave", [*TRANSIENT, *HARMLESS, *PERMANENT], ids=named)
def test_a_source_misbehaves_for_a_while(trial: Trial, tell: Tell, misbehave: Misbehavior, seed: int) -> None:
    """For one request, or for all after it until someone repairs the server."""
    chosen = random.Random(f"{misbehave.__name__} {seed}").randrange(FILES)
    misbehaved: list[int] = []

    def when(number: int) -> bool:
        misbehaved.extend([number] * (number == chosen if seed else number >= chosen))
        return number in misbehaved

    faulty = source(trial.settings["DATASET_MIRROR"], misbehave, when)
    with web.serving(faulty) as address:
        first = trial.project.run("dvc", "repro", DATASET_MIRROR=address)
    assert "Traceback" not in first.stdout
    assert misbehaved
    succeeds = misbehave in HARMLESS or (seed and misbehave in TRANSIENT)
    assert (first.returncode == 0) == bool(succeeds), first.stdout
    if not succeeds:
        assert f"{address}: " in first.stdout, "the message names the source"
    trial.recover()
    outcome = "the download succeeded" if succeeds else "fetch named the source and the reason; with a good source,"
    outcome += "" if succeeds else " `dvc repro` fetched the missing files"
    tell(f"source: {named(misbehave)}", "HTTP server on loopback; one request, or all from one on", outcome)


@pytest.mark.faults
def test_a_source_does_not_respond(trial: Trial, tell: Tell) -> None:
    silent: list[int] = []

    def when(number: int) -> bool:
        silent.extend([number] * (number == 1))
        return number in silent

    faulty = source(trial.settings["DATASET_MIRROR"], web.say_nothing, when)
    with web.serving(faulty) as address:
        output = trial.project.succeed("dvc", "repro", DATASET_MIRROR=address)
    assert silent
    assert "trying the next source" not in output
    trial.recover()
    tell("source: no response", "HTTP server that accepts one request in silence", "fetch tried again after 20 s")


@pytest.mark.faults
def test_a_source_refuses_connections(trial: Trial, tell: Tell) -> None:
    output = trial.project.fail("dvc", "repro", DATASET_MIRROR="http://127.0.0.1:9/mnist")
    assert "http://127.0.0.1:9/mnist: cannot be reached (4 attempts)" in output
    trial.recover()
    tell("source: refused connection", "a port without a server", "fetch named the source and the reason")


@pytest.mark.faults
@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_a_source_has_a_self_signed_certificate(trial: Trial, tell: Tell, tmp_path: Path) -> None:
    certificate = web.make_certificate(tmp_path)
    faulty = source(trial.settings["DATASET_MIRROR"], web.trickle, lambda number: False)
    with web.serving(faulty, certificate) as address:
        output = trial.project.fail("dvc", "repro", DATASET_MIRROR=address)
        assert f"{address}: its certificate is not trusted" in output
        trial.project.succeed("dvc", "repro", DATASET_MIRROR=address, REQUESTS_CA_BUNDLE=str(certificate))
    trial.recover()
    tell("source: self-signed certificate", "HTTPS server on loopback", "fetch named the reason and the remedy")
