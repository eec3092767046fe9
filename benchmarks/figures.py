"""Figures by name: every value that was measured, and their unit."""

Figures = dict[str, tuple[list[float], str]]


def add(figures: Figures, name: str, value: float, unit: str) -> None:
    """Note one more value."""
    figures.setdefault(name, ([], unit))[0].append(value)
