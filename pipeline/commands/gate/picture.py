"""Draw the images that only one of the two models misclassifies."""

from matplotlib.figure import Figure

from pipeline.commands.gate.comparison import Comparison
from pipeline.core import paths
from pipeline.core.dataset import load_split
from pipeline.core.pictures import draw_grid

ROWS, COLUMNS = 2, 10  # per kind: newly misclassified, newly correct


def draw_disagreement(comparison: Comparison) -> Figure | None:
    """Draw images that only the candidate misclassifies above those that only the baseline does; None without any."""
    if comparison.baseline is None or not (comparison.newly_wrong or comparison.newly_right):
        return None
    images = load_split(paths.TEST).images
    figure = Figure(figsize=(COLUMNS * 1.0, ROWS * 2.7))
    kinds = (
        ("misclassified", comparison.newly_wrong, comparison.candidate),
        ("correct", comparison.newly_right, comparison.baseline),
    )
    for part, (kind, indices, results) in zip(figure.subfigures(2, 1, squeeze=False).flat, kinds, strict=True):
        shown = indices[: ROWS * COLUMNS]
        wrong = [results.first.wrong[index] for index in shown]
        titles = [f"{index}\n{r.label} as {r.prediction}" for index, r in zip(shown, wrong, strict=True)]
        count = f"{len(indices)} images" if len(shown) == len(indices) else f"{len(shown)} of {len(indices)} images"
        draw_grid(part, images[shown], titles, (ROWS, COLUMNS), f"Newly {kind}: {count}")
    return figure
