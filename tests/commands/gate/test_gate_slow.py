"""The gate on the real MNIST, and with as many seeds as a record needs."""

import pytest
import yaml

from tests.commands.gate.command import edit, failed, judge
from tests.conftest import CONF, MIRROR, Project

pytestmark = pytest.mark.slow

TRAIN = "    train = Split(everything.images[kept], everything.labels[kept])\n"
SHUFFLE = """    import numpy as np
    random = np.random.default_rng(0)
    tenth = random.random(len(train.labels)) < 0.1
    train.labels[tenth] = random.permutation(train.labels[tenth])
"""


def test_shuffling_a_tenth_of_the_training_labels_is_stopped(mnist: Project) -> None:
    edit(mnist, "pipeline/stages/preprocess/__main__.py", TRAIN, TRAIN + SHUFFLE)
    mnist.succeed("dvc", "repro", **MIRROR)
    verdict = judge(mnist)
    assert verdict["status"] == 1
    assert "accuracy" in failed(verdict)
    assert verdict["newly_wrong"]


def test_another_seed_passes_on_mnist(mnist: Project) -> None:
    mnist.params(recipe="fast", seed=2)
    mnist.succeed("dvc", "repro", **MIRROR)
    verdict = judge(mnist)
    assert verdict["status"] == 0
    assert verdict["newly_wrong"], "it is another model"
    assert verdict["changed_params"] == {"seed": [1, 2]}


@pytest.mark.long
def test_seeds_are_found_counted_and_recorded(trained: Project) -> None:
    (trained.root / "params.yaml").write_text("recipe: smoke\nseed: 1\ntraining:\n  epochs: null\n", encoding="utf-8")
    trained.succeed("dvc", "repro")
    trained.commit()
    trained.succeed("dvc", "exp", "run", "--queue", "-S", "seed=range(2,11)")
    trained.succeed("dvc", "exp", "run", "--run-all")
    assert "over 10 seeds" in trained.succeed("python", "-m", "pipeline.commands.gate", "--record")
    recipe = (trained.root / "conf" / "recipe" / "smoke.yaml").read_text(encoding="utf-8")
    comments = (CONF / "recipe" / "smoke.yaml").read_text(encoding="utf-8").partition("\nrecipe:")[0]
    assert comments.count("# ") > 1
    assert recipe.startswith(comments), "the comments stay"
    noise = yaml.safe_load(recipe)["gate"]["seed_noise"]["digits"]
    assert noise["seeds"] == 10
    assert noise["accuracy_std"] > 0
    trained.succeed("dvc", "repro")
    trained.commit()
    assert any("estimated from the record of recipe smoke" in note for note in judge(trained)["notes"])

    trained.succeed("dvc", "exp", "run", "--queue", "-S", "training.epochs=1", "-S", "seed=range(1,4)")
    trained.succeed("dvc", "exp", "run", "--run-all")
    trained.succeed("dvc", "exp", "run", "-S", "training.epochs=1")
    verdict = judge(trained)
    assert verdict["status"] == 1
    assert (verdict["figures"]["baseline_runs"], verdict["figures"]["runs"]) == (10, 3)
    accuracy = next(check for check in verdict["checks"] if check["name"] == "accuracy")
    assert accuracy["outcome"] == "FAIL"
    assert "±" in accuracy["baseline"]
    assert "±" in accuracy["candidate"]
    assert "recipe smoke has 3 of the 10 seeds" in trained.fail("python", "-m", "pipeline.commands.gate", "--record")
