"""Documents about a trained network: the report, the model card and the description of its MLflow run."""

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

from pipeline.core import paths
from pipeline.core.config import Config, SeedNoise, flatten
from pipeline.core.records import DataStatistics, TestFigures, TrainingRun
from pipeline.stages.evaluate.drawing import History, draw_curve
from pipeline.stages.evaluate.scoring import Mistake, proportion_interval

TEMPLATES = Path(__file__).parent / "templates"
SURE_MISTAKES, CONFUSIONS = 40, 5
PARTS = ("train", "validation", "test")
VALIDATED = {
    "validation": "{:,} images were held out from training for validation.",
    "test": "The {:,} test images served as the validation set; nothing was selected on them.",
    "none": "No validation set was used.",
}


class Findings(NamedTuple):
    """Results and metadata of one trained network."""

    config: Config
    run: TrainingRun
    history: History
    data: DataStatistics
    figures: TestFigures
    wrong: list[Mistake]
    images: NDArray[np.uint8]  # test images (N, height, width)
    noise: SeedNoise | None = None  # None unless measured with these settings and test images


def run_markdown(findings: Findings) -> str:
    """Render the description of the MLflow run, in Markdown."""
    return _environment().get_template("run.md.j2").render(_context(findings))


def model_card(findings: Findings) -> str:
    """Render the model card, in Markdown."""
    return _environment().get_template("model_card.md.j2").render(_context(findings))


def report_page(findings: Findings, reliability: Figure, reproduce: list[str]) -> str:
    """Render the report as one self-contained HTML page."""
    run = findings.run
    page = {
        "curves": {
            name: as_svg(draw_curve(findings.history, name, findings.config.training.validate_on))
            for name in ("loss", "accuracy")
        },
        "reliability": as_svg(reliability),
        "samples": data_address(paths.SAMPLES_PICTURE.read_bytes(), "image/png"),
        "matrix": _matrix(np.array(findings.figures.confusion_matrix)),
        "mistakes": _most_confident(findings),
        "parts": {name: part for name in PARTS if (part := getattr(findings.data, name)).images},
        "environment": {
            "code": run.provenance.commit + (" with uncommitted changes" * bool(run.provenance.patch)),
            "machine": run.machine,
            "versions": run.versions,
            "device": f"{run.hardware} ({run.backend}, {run.precision})",
            "peak memory": f"{run.peak_memory_mib:,} MiB",
            "MLflow run": run.run_id,
        },
        "reproduce": reproduce,
        "settings": dict(flatten(findings.config.model_dump(by_alias=True, exclude={"gate"}))),
    }
    return _environment().get_template("report.html.j2").render(_context(findings) | page)


def as_svg(figure: Figure) -> str:
    """Return a figure as the data URL of an SVG image without background; the same figure gives the same text."""
    content = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "report"}):
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return data_address(content.getvalue(), "image/svg+xml")


def data_address(content: bytes, kind: str) -> str:
    """Return bytes as a data URL (RFC 2397)."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )


def _context(findings: Findings) -> dict[str, Any]:
    """Variables that the three templates share."""
    config, figures, data = findings.config, findings.figures, findings.data
    matrix = np.array(figures.confusion_matrix)
    return {
        "title": title(config),
        "config": config,
        "about": config.dataset.about,
        "noise": findings.noise,
        "run": findings.run,
        "data": data,
        "figures": figures,
        "images": f"{figures.images:,}",
        "parameters": f"{findings.run.parameters:,}",
        "shape": "×".join(map(str, findings.images.shape[1:])),
        "classes": range(len(matrix)),
        "accuracy": f"{figures.accuracy:.2%}",
        "interval": f"{figures.accuracy_low:.2%} … {figures.accuracy_high:.2%}",
        "validation": f"{VALIDATED[config.training.validate_on].format(data.validation.images)}{_mining(config)}",
        "per_class": _per_class(figures, matrix),
        "confusions": _confusions(matrix),
    }


def title(config: Config) -> str:
    """One-line title of a run."""
    return f"{config.recipe}: {config.model.name} on {config.dataset.name}, seed {config.seed}"


def _mining(config: Config) -> str:
    """Note that hard-example mining changes which images later epochs cover, which the curves do not show."""
    training = config.training
    if training.hard_example_fraction == 1 or training.full_epochs >= training.epochs:
        return ""
    later = training.full_epochs + 1
    share = f"{training.hard_example_fraction:.0%} of images with the highest loss"
    return f" From epoch {later} on (hard-example mining), the training curves cover only the {share}."


def _per_class(figures: TestFigures, matrix: NDArray[np.int64]) -> list[dict[str, Any]]:
    of = figures.per_class
    rows = []
    for label, images in enumerate(of.images):
        low, high = proportion_interval(int(matrix[label, label]), images) if images else (0.0, 1.0)
        shares = {name: f"{getattr(of, name)[label]:.2%}" for name in ("recall", "precision", "f1")}
        rows.append({"images": images, "interval": f"{low:.2%} … {high:.2%}", **shares})
    return rows


def _confusions(matrix: NDArray[np.int64]) -> list[dict[str, int]]:
    """The most frequent confusions, in descending order."""
    found = [
        {"label": label, "prediction": prediction, "count": int(count)}
        for (label, prediction), count in np.ndenumerate(matrix)
        if label != prediction and count
    ]
    return sorted(found, key=lambda each: -each["count"])[:CONFUSIONS]


def _matrix(matrix: NDArray[np.int64]) -> list[list[dict[str, Any]]]:
    """Cells with their count and, for errors, the color depth: the share of the row over the largest such share."""
    shares = np.where(np.eye(len(matrix), dtype=bool), 0, matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1))
    depth = shares / max(float(shares.max()), 1e-9)
    return [
        [
            {"count": int(count), "share": float(depth[row, column]), "right": row == column}
            for column, count in enumerate(counts)
        ]
        for row, counts in enumerate(matrix)
    ]


def _most_confident(findings: Findings) -> list[dict[str, Any]]:
    """The most confident errors, each with its picture."""
    errors = sorted(findings.wrong, key=lambda mistake: -mistake.probability)[:SURE_MISTAKES]
    return [vars(mistake) | {"picture": _png(findings.images[mistake.index])} for mistake in errors]


def _png(image: NDArray[np.uint8]) -> str:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return data_address(content.getvalue(), "image/png")
