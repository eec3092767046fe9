"""Two processes train one network together: on the loopback interface, and in two network namespaces."""

import csv
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from tests.conftest import PATH, Project, Start, clone, free_port

EPOCHS = 12
AGAIN = "Run the same command on every machine again: training continues after the last finished epoch"
TRAIN = (sys.executable, "-m", "pipeline.stages.train")
ALONE = {"KERAS_BACKEND": "jax", "DEVICE": "cpu", "PATH": PATH}
Process = "subprocess.Popen[str]"


def cluster(process: int, port: int, host: str = "127.0.0.1") -> dict[str, str]:
    """Environment of one of two processes."""
    settings = {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(process), "JAX_COORDINATOR_ADDRESS": f"{host}:{port}"}
    return ALONE | settings


@pytest.fixture
def leader(trained: Project) -> Project:
    """The project of process 0, with a longer training. Its last batch is odd: 37 of 1,188 images."""
    trained.params(recipe="smoke", training={"epochs": EPOCHS, "batch_size": 72, "validation_fraction": 0.08333})
    trained.succeed("python", "-m", "pipeline.stages.compose")
    return trained


@pytest.fixture
def peer(tmp_path: Path) -> Project:
    """The project of process 1: code without data."""
    return clone(tmp_path / "peer")


def history(project: Project) -> list[float]:
    """Losses of every epoch."""
    rows = csv.DictReader((project.root / "models" / "history.csv").read_text(encoding="utf-8").splitlines())
    return [float(row[name]) for row in rows for name in ("loss", "val_loss")]


def wait_for(process: Any, text: str) -> str:
    """Read the output of a process up to a line with a text."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return "".join(lines)
    raise AssertionError("".join(lines))


def finish(process: Any) -> tuple[int, str]:
    """Exit status and remaining output of a process."""
    output = process.communicate(timeout=120)[0]
    assert "Traceback" not in output
    return process.returncode, output


@pytest.mark.jax
def test_two_processes_train_as_one(leader: Project, peer: Project, start: Start) -> None:
    """Process 0 runs under DVC; its peer needs neither DVC nor data."""
    port = free_port()
    helping = start(TRAIN, peer.root, **cluster(1, port))
    training = start((sys.executable, "-m", "dvc", "repro", "-s", "train"), leader.root, **cluster(0, port))
    status, output = finish(training)
    assert status == 0, output
    assert f"train: process 0 waits for 1 other process at 127.0.0.1:{port}" in output
    status, output = finish(helping)
    assert (status, "process 1 has finished, and process 0 has recorded the results" in output) == (0, True), output
    assert not (peer.root / "models").exists()
    assert not (peer.root / "mlflow.db").exists()
    run = json.loads((leader.root / "models" / "run.json").read_text(encoding="utf-8"))
    assert (run["devices"], run["device"], run["backend"]) == (2, "cpu", "jax")
    assert "JAX_NUM_PROCESSES=2" in run["environment"]
    together = history(leader)
    leader.succeed(*TRAIN, **ALONE)
    assert together == pytest.approx(history(leader), rel=1e-4)


@pytest.mark.jax
@pytest.mark.parametrize("killed", [0, 1])
def test_one_of_two_processes_is_killed(leader: Project, peer: Project, start: Start, killed: int) -> None:
    """The other one ends with a message, and the same commands continue after the last finished epoch."""
    port = free_port()
    processes = [start(TRAIN, root, **cluster(index, port)) for index, root in enumerate((leader.root, peer.root))]
    wait_for(processes[0], f"epoch   2/{EPOCHS}")
    processes[killed].send_signal(signal.SIGKILL)
    status, output = finish(processes[1 - killed])
    lost = (
        "train: another process was lost ("
        if killed
        else f"train: process 0 ended, or the connection to 127.0.0.1:{port}"
    )
    assert status == 1
    assert output.strip().splitlines()[-1].startswith(lost)
    assert AGAIN in output
    port = free_port()
    if killed:  # the peer is replaced; otherwise process 0 continues alone
        processes[1] = start(TRAIN, peer.root, **cluster(1, port))
    output = leader.succeed(*TRAIN, **(cluster(0, port) if killed else ALONE))
    assert "train: resuming after epoch" in output
    assert "epoch   1/" not in output
    if killed:
        assert finish(processes[1])[0] == 0
    run = json.loads((leader.root / "models" / "run.json").read_text(encoding="utf-8"))
    tags = MlflowClient(f"sqlite:///{leader.root}/mlflow.db").get_run(run["run_id"]).data.tags
    assert (run["devices"], tags["devices"]) == (1 + killed, str(1 + killed))
    together = history(leader)
    leader.succeed(*TRAIN, **ALONE)
    assert together == pytest.approx(history(leader), rel=1e-4)
    assert not list((leader.root / ".resume").glob("*"))


@pytest.mark.jax
def test_a_terminal_of_one_process_makes_no_difference(leader: Project, peer: Project, start: Start) -> None:
    """Process 0 shows progress bars, for which it computes an epoch in parts."""
    port = free_port()
    helping = start(TRAIN, peer.root, **cluster(1, port))
    training = start(("script", "-qec", shlex.join(TRAIN), "/dev/null"), leader.root, **cluster(0, port))
    status, output = finish(training)
    assert (status, f"Epoch {EPOCHS}/{EPOCHS}" in output) == (0, True), output
    assert finish(helping)[0] == 0


@pytest.mark.jax
@pytest.mark.parametrize(("process", "number"), [(0, signal.SIGTERM), (1, signal.SIGTERM), (1, signal.SIGINT)])
def test_a_signal_ends_all_processes_and_leaves_no_files(
    leader: Project, peer: Project, start: Start, tmp_path: Path, process: int, number: signal.Signals
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    port = free_port()
    projects = leader, peer
    processes = [
        start(TRAIN, project.root, TMPDIR=str(temporary), **cluster(index, port))
        for index, project in enumerate(projects)
    ]
    wait_for(processes[0], f"epoch   2/{EPOCHS}")
    processes[process].send_signal(number)
    outcomes = [finish(each) for each in processes]
    assert (
        outcomes[process][0]
        == {(0, signal.SIGTERM): -15, (1, signal.SIGTERM): 143, (1, signal.SIGINT): 1}[process, number]
    )
    assert outcomes[1 - process][0] == 1
    assert AGAIN in outcomes[1 - process][1]
    assert list(temporary.iterdir()) == []


@pytest.mark.jax
def test_exhausted_memory_is_one_line_in_every_process(leader: Project, peer: Project, start: Start) -> None:
    layers = [{"_target_": "keras.layers.Flatten"}, {"_target_": "keras.layers.Dense", "units": 30_000_000}]
    leader.params(recipe="smoke", model={"name": "mlp", "layers": layers}, training={"epochs": 1, "batch_size": 72})
    leader.succeed("python", "-m", "pipeline.stages.compose")
    port, limited = free_port(), ("prlimit", f"--as={12_000_000_000}", *TRAIN)
    processes = [start(limited, project.root, **cluster(index, port)) for index, project in enumerate((leader, peer))]
    for process in processes:
        status, output = finish(process)
        assert status == 1
        assert re.search("^train: (memory was exhausted: set a|another process was lost|process 0)", output, re.M)


@pytest.mark.jax
def test_a_peer_explains_that_its_child_was_killed(leader: Project, peer: Project, start: Start) -> None:
    port = free_port()
    training, helping = start(TRAIN, leader.root, **cluster(0, port)), start(TRAIN, peer.root, **cluster(1, port))
    wait_for(training, f"epoch   2/{EPOCHS}")
    (child,) = psutil.Process(helping.pid).children()
    child.kill()
    status, output = finish(helping)
    message = "train: process 1 was ended by SIGKILL (is there enough memory?). "
    assert (status, f"{message}{AGAIN}" in output) == (1, True), output
    assert finish(training)[0] == 1


@pytest.mark.jax
def test_a_peer_with_other_code_is_refused(leader: Project, peer: Project, start: Start) -> None:
    with (peer.root / "pipeline" / "core" / "paths.py").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    port = free_port()
    training = start(TRAIN, leader.root, **cluster(0, port))
    output = peer.fail(*TRAIN, **cluster(1, port))
    assert "train: process 1 has another version of this project than process 0" in output
    wait_for(training, "train: refused a process: process 1 has another version of this project")


@pytest.mark.jax
def test_a_training_that_diverges_ends_all_processes(leader: Project, peer: Project, start: Start) -> None:
    leader.params(
        recipe="smoke", training={"epochs": 2, "batch_size": 72}, optimizer={"name": None, "learning_rate": 1e30}
    )
    leader.succeed("python", "-m", "pipeline.stages.compose")
    port = free_port()
    helping = start(TRAIN, peer.root, **cluster(1, port))
    assert "the training diverged" in leader.fail(*TRAIN, **cluster(0, port))
    status, output = finish(helping)
    assert (status, "the training diverged" in output) == (1, True)


@pytest.mark.parametrize("backend", ["tensorflow", "torch"])
def test_other_backends_train_in_one_process(trained: Project, backend: str) -> None:
    if backend == "torch":
        pytest.importorskip("torch")
    for process in (0, 1):
        settings = cluster(process, free_port()) | {"KERAS_BACKEND": backend}
        message = f"train: JAX_NUM_PROCESSES=2: {backend} trains in one process; use BACKEND=jax"
        assert message in trained.fail(sys.executable, "-m", "pipeline.stages.train", **settings)


def test_a_peer_does_not_run_under_dvc(trained: Project) -> None:
    output = trained.fail("dvc", "repro", "-s", "-f", "train", **cluster(1, free_port()))
    assert "train: process 1 trains along without DVC: run `make repro` or `python -m pipeline.stages.train`" in output


@pytest.fixture
def network() -> Iterator[Callable[[int], tuple[str, ...]]]:
    """Two network namespaces, connected by a cable; returns the prefix of a command in one of them."""
    names = [f"digits{free_port()}{end}" for end in "ab"]
    first, second = names
    commands = [
        *(f"netns add {name}" for name in names),
        f"link add one netns {first} type veth peer name two netns {second}",
        *(f"-n {name} link set lo up" for name in names),
        *(f"-n {first} addr add 10.77.0.1/24 dev one", f"-n {first} link set one up"),
        *(f"-n {second} addr add 10.77.0.2/24 dev two", f"-n {second} link set two up"),
    ]
    try:
        if shutil.which("ip") is None:
            pytest.skip("needs iproute2")
        for command in commands:
            made = subprocess.run(["ip", *command.split()], capture_output=True, text=True, check=False)
            if made.returncode:
                pytest.skip(f"needs permission to create network namespaces: {made.stderr}")
        yield lambda process: ("ip", "netns", "exec", names[process])
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


@pytest.mark.jax
@pytest.mark.parametrize("fault", ["kill", pytest.param("cut", marks=pytest.mark.slow)])
def test_machines_in_a_network(
    leader: Project, peer: Project, start: Start, network: Callable[[int], tuple[str, ...]], fault: str
) -> None:
    """A peer is killed, or the cable is cut, after which no packet says that a machine is lost."""
    settings = [cluster(process, 1234, "10.77.0.1") for process in (0, 1)]
    roots = leader.root, peer.root
    processes = [start((*network(index), *TRAIN), roots[index], **settings[index]) for index in (0, 1)]
    wait_for(processes[0], f"epoch   2/{EPOCHS}")
    began = time.monotonic()
    if fault == "kill":
        processes[1].send_signal(signal.SIGKILL)
    else:
        subprocess.run([*network(0), "ip", "link", "set", "one", "down"], check=True)
    status, output = finish(processes[0])
    assert (status, "lost the connection to process 1" in output, AGAIN in output) == (1, True, True), output
    if fault == "cut":
        assert time.monotonic() - began > 10
        status, output = finish(processes[1])
        assert (status, "train: process 0 ended, or the connection to 10.77.0.1:1234 was lost" in output) == (1, True)
        subprocess.run([*network(0), "ip", "link", "set", "one", "up"], check=True)
    processes = [start((*network(index), *TRAIN), roots[index], **settings[index]) for index in (0, 1)]
    status, output = finish(processes[0])
    assert (status, "train: resuming after epoch" in output) == (0, True), output
    assert finish(processes[1])[0] == 0
