"""The texts of evaluate.py's --retention by name."""

import itertools
from pathlib import Path

from demo.corpus import documents


def english():
    """Plain English prose, written for this project."""
    return Path(__file__).with_name("retention.txt").read_text(encoding="utf-8")


def of_the_demo():
    """New documents like those of the demo's base, which knows no English."""
    return "\n\n".join(document.given + document.told for document in itertools.islice(documents("retention"), 20))


TEXTS = {"english": english, "demo": of_the_demo}
