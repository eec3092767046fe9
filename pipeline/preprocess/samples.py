"""The picture of what the classes look like."""

import numpy as np
from matplotlib.figure import Figure

from pipeline.dataset import Split
from pipeline.pictures import montage

SAMPLES = 10


def draw_samples(split: Split, classes: int) -> Figure:
    """The first ten images of each class, one class a row."""
    images = np.zeros((classes, SAMPLES, *split.images.shape[1:]), np.uint8)
    for label in range(classes):
        found = split.images[split.labels == label][:SAMPLES]
        images[label, : len(found)] = found
    figure = Figure(figsize=(5, 5.3), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(montage(images.reshape(-1, *split.images.shape[1:]), SAMPLES), cmap="gray")
    axes.set_yticks((np.arange(classes) + 0.5) * (split.images.shape[1] + 1), [str(label) for label in range(classes)])
    axes.set_xticks([])
    axes.set_ylabel("class")
    axes.set_title("Ten training images of each class")
    return figure
