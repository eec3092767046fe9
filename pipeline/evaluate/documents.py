"""What people read about a trained network: the report, the model card, and the text on its run's page."""

import base64
import io
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from pipeline import paths
from pipeline.config import Config, SeedNoise, flatten
from pipeline.evaluate.drawing import History, draw_curve
from pipeline.evaluate.scoring import Mistake, proportion_interval

TEMPLATES = Path(__file__).parent / "templates"
SURE_MISTAKES, CONFUSIONS = 40, 5
PARTS = ("train", "validation", "test")
WATCHED = {
    "validation": "{:,} of the training images were held out and watched.",
    "test": "The {:,} test images were watched during training; nothing was selected on them.",
    "none": "No images were watched during training.",
}


class Findings(NamedTuple):
    """Everything that is known about one trained network."""

    config: Config
    facts: dict[str, Any]  # of the training: models/run.json
    history: History
    data: dict[str, Any]  # reports/data.json
    figures: dict[str, Any]  # of the test
    wrong: list[Mistake]
    images: NDArray[np.uint8]  # of the test, (N, height, width)
    noise: SeedNoise | None = None  # of these settings on these test images, if it was measured


def run_markdown(findings: Findings) -> str:
    """The table of results for the run's page."""
    return _environment().get_template("run.md.j2").render(_context(findings))


def model_card(findings: Findings) -> str:
    """The model card, in Markdown."""
    return _environment().get_template("model_card.md.j2").render(_context(findings))


def report_page(findings: Findings, reliability: Figure, reproduce: list[str]) -> str:
    """The report: one HTML page that needs nothing beside it."""
    facts = findings.facts
    page = {
        "curves": {
            name: as_svg(draw_curve(findings.history, name, findings.config.training.validate_on))
            for name in ("loss", "accuracy")
        },
        "reliability": as_svg(reliability),
        "samples": data_address(paths.SAMPLES_PICTURE.read_bytes(), "image/png"),
        "matrix": _matrix(np.array(findings.figures["confusion_matrix"])),
        "mistakes": _surest(findings),
        "parts": {name: findings.data[name] for name in PARTS if findings.data[name]["images"]},
        "environment": {
            "code": facts["provenance"]["commit"]
            + (" and what was not committed" * bool(facts["provenance"]["patch"])),
            "machine": facts["machine"],
            "versions": facts["versions"],
            "device": f"{facts['device']} ({facts['backend']}, {facts['precision']})",
            "memory": f"{facts['peak_memory_mib']:,} MiB at most",
            "MLflow run": facts["run_id"],
        },
        "reproduce": reproduce,
        "settings": dict(flatten(findings.config.model_dump(by_alias=True, exclude={"gate"}))),
    }
    return _environment().get_template("report.html.j2").render(_context(findings) | page)


def as_svg(figure: Figure) -> str:
    """A figure without background as the address of an SVG image; the same figure gives the same text."""
    content = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "report"}):
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return data_address(content.getvalue(), "image/svg+xml")


def data_address(content: bytes, kind: str) -> str:
    """Bytes as an address that a page can hold (RFC 2397)."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )


def _context(findings: Findings) -> dict[str, Any]:
    """What the three have in common."""
    config, figures, data = findings.config, findings.figures, findings.data
    matrix = np.array(figures["confusion_matrix"])
    return {
        "title": title(config),
        "config": config,
        "about": config.dataset.about,
        "noise": findings.noise,
        "facts": findings.facts,
        "data": data,
        "figures": figures,
        "images": f"{figures['images']:,}",
        "parameters": f"{findings.facts['parameters']:,}",
        "shape": "×".join(map(str, findings.images.shape[1:])),
        "classes": range(len(matrix)),
        "accuracy": f"{figures['accuracy']:.2%}",
        "interval": f"{figures['accuracy_low']:.2%} … {figures['accuracy_high']:.2%}",
        "watched": f"{WATCHED[config.training.validate_on].format(data['validation']['images'])}{_hardest(config)}",
        "per_class": _per_class(figures, matrix),
        "confusions": _confusions(matrix),
    }


def title(config: Config) -> str:
    """A run in one line."""
    return f"{config.recipe}: {config.model.name} on {config.dataset.name}, seed {config.seed}"


def _hardest(config: Config) -> str:
    """What the curves do not tell by themselves: that later epochs are of other images than the first ones."""
    training = config.training
    if training.hard_example_fraction == 1 or training.full_epochs >= training.epochs:
        return ""
    later = training.full_epochs + 1
    return f" From epoch {later} on, the curves are of the hardest {training.hard_example_fraction:.0%} of the images."


def _per_class(figures: dict[str, Any], matrix: NDArray[np.int64]) -> list[dict[str, Any]]:
    of = figures["per_class"]
    rows = []
    for label, images in enumerate(of["images"]):
        low, high = proportion_interval(int(matrix[label, label]), images) if images else (0.0, 1.0)
        shares = {name: f"{of[name][label]:.2%}" for name in ("recall", "precision", "f1")}
        rows.append({"images": images, "interval": f"{low:.2%} … {high:.2%}", **shares})
    return rows


def _confusions(matrix: NDArray[np.int64]) -> list[dict[str, int]]:
    """The most frequent mistakes, the most frequent first."""
    found = [
        {"label": label, "prediction": prediction, "count": int(count)}
        for (label, prediction), count in np.ndenumerate(matrix)
        if label != prediction and count
    ]
    return sorted(found, key=lambda each: -each["count"])[:CONFUSIONS]


def _matrix(matrix: NDArray[np.int64]) -> list[list[dict[str, Any]]]:
    """Cells with their count, and how deep a mistake is to be coloured: its share of the row over the largest one."""
    shares = np.where(np.eye(len(matrix), dtype=bool), 0, matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1))
    depth = shares / max(float(shares.max()), 1e-9)
    return [
        [
            {"count": int(count), "share": float(depth[row, column]), "right": row == column}
            for column, count in enumerate(counts)
        ]
        for row, counts in enumerate(matrix)
    ]


def _surest(findings: Findings) -> list[dict[str, Any]]:
    """The mistakes of which the network was surest, each with its picture."""
    surest = sorted(findings.wrong, key=lambda mistake: -mistake.probability)[:SURE_MISTAKES]
    return [vars(mistake) | {"picture": _png(findings.images[mistake.index])} for mistake in surest]


def _png(image: NDArray[np.uint8]) -> str:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return data_address(content.getvalue(), "image/png")
