"""The frame of every script: arguments, the launch, records of origin, checkpoints, progress."""

import importlib.util
import sys
from pathlib import Path


def name_missing_environment(kind, error, traceback):
    """A line instead of a traceback, if a script runs outside the environment with its packages."""
    if issubclass(kind, ModuleNotFoundError) and importlib.util.find_spec("torch") is None:
        remedy = "type `. .venv/bin/activate` first, or pip install -r requirements.txt"
        print(f"{Path(sys.argv[0]).name}: error: {sys.executable} has no {error.name}: {remedy}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = name_missing_environment
