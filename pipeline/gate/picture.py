"""Draw the images that only one of the two models misclassifies."""

from matplotlib.figure import Figure

from pipeline import paths
from pipeline.dataset import load_split
from pipeline.gate.outcome import Outcome
from pipeline.pictures import draw_grid

ROWS, COLUMNS = 2, 10  # per kind: newly misclassified, newly correct


def draw_disagreement(outcome: Outcome) -> Figure | None:
    """Draw images that only the candidate misclassifies above those that only the baseline does; None without any."""
    if outcome.baseline is None or not (outcome.newly_wrong or outcome.newly_right):
        return None
    images = load_split(paths.TEST).images
    figure = Figure(figsize=(COLUMNS * 1.0, ROWS * 2.7))
    kinds = (
        ("misclassified", outcome.newly_wrong, outcome.candidate),
        ("correct", outcome.newly_right, outcome.baseline),
    )
    for part, (kind, indices, side) in zip(figure.subfigures(2, 1, squeeze=False).flat, kinds, strict=True):
        shown = indices[: ROWS * COLUMNS]
        readings = [side.first.wrong[index] for index in shown]
        titles = [f"{index}\n{r.label} as {r.prediction}" for index, r in zip(shown, readings, strict=True)]
        count = f"{len(indices)} images" if len(shown) == len(indices) else f"{len(shown)} of {len(indices)} images"
        draw_grid(part, images[shown], titles, (ROWS, COLUMNS), f"Newly {kind}: {count}")
    return figure
