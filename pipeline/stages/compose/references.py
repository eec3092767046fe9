"""The references of a configuration to its other values, such as ${model.dropout}."""

import re
from typing import Any

from pipeline.core.config import flatten

REFERENCE = re.compile(r"\$\{([^${}:.\s][^${}:]*)\}")  # from the top level, without a resolver or a reference inside it
OPENING = "${"
OTHERS = 12  # references of a configuration that has other ones, which expand twelve to 81 times their length at most
LONGEST = 500  # characters
EXPANSION, SMALL = 10, 1 << 16  # times the length of the configuration, and characters that are allowed in any case


def check_texts(values: Any) -> None:
    """Raise ValueError if a text with a reference is long, or has many: OmegaConf's parser takes quadratic time."""
    for key, text in flatten([values]):
        if isinstance(text, str) and OPENING in text and (len(text) > LONGEST or text.count(OPENING) > OTHERS):
            raise ValueError(
                f"{key.removeprefix('0.')}: a text with an interpolation (${{…}}) can have at most "
                f"{LONGEST} characters and {OTHERS} interpolations"
            )


def check_references(values: Any) -> None:
    """Raise ValueError if the references in unresolved values expand to far more text than the values have.

    References to references double the length at each step, as aliases in YAML do.
    """
    texts = [text for _, text in flatten(values) if isinstance(text, str) and OPENING in text]
    total = sum(text.count(OPENING) for text in texts)
    if total > OTHERS and total != sum(len(REFERENCE.findall(text)) for text in texts):
        raise ValueError(f"more than {OTHERS} interpolations (${{…}}) must all have the form ${{model.dropout}}")
    most = max(SMALL, EXPANSION * len(str(values)))
    if texts and _size(values, values, {}) > most:
        raise ValueError(f"its interpolations (${{…}}) expand to more than {most:,} characters")


def _size(node: Any, values: Any, sizes: dict[int, int]) -> int:
    """Characters of a value with its references expanded. A reference to itself counts once: OmegaConf refuses it."""
    if id(node) not in sizes:
        sizes[id(node)] = 1
        if isinstance(node, dict | list):
            children = node.values() if isinstance(node, dict) else node
            size = 1 + sum(_size(child, values, sizes) for child in children)
        elif isinstance(node, str):
            found = REFERENCE.findall(node) if OPENING in node else []
            size = 1 + len(node) + sum(_size(_target(key, values), values, sizes) for key in found)
        else:
            size = 1
        sizes[id(node)] = size
    return sizes[id(node)]


def _target(key: str, values: Any) -> Any:
    """The value of a dotted key, or what a part of the key refers to; None if there is none."""
    node = values
    for part in filter(None, re.split(r"[.\[\]]", key.strip())):
        if isinstance(node, dict):
            node = node.get(part, node.get(int(part)) if part.isdecimal() else None)
        elif isinstance(node, list) and part.isdecimal() and int(part) < len(node):
            node = node[int(part)]
        elif not isinstance(node, str):
            return None
    return node
