"""Validated rows, their tokens and near-repeats on disk: only the first run over 60,000 rows waits.

A file's name is a hash of everything that determines its content, including the code of this
folder: an edited prompt, other rows or another tokenizer get a new file."""

import contextlib
import hashlib
import os
from pathlib import Path

from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from run_utils.files import apply_umask

FROM_ROWS = 2000  # fewer rows are ready in a second


def file_of(kind, ingredients):
    """The path of the arrays that `ingredients` (each bytes) determine."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    for ingredient in ingredients:
        digest.update(hashlib.sha256(ingredient).digest())
    return Path(HF_HOME) / "tool_call_cache" / f"{kind}-{digest.hexdigest()[:32]}.safetensors"


def load(path):
    """The arrays given to `save`, by name, or None if the file is missing or broken."""
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        return None


def save(path, arrays):
    """Save arrays by name. A full or read-only disk costs only the cache."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(arrays, unfinished)
        apply_umask(unfinished)
        unfinished.replace(path)
    except (OSError, SafetensorError):
        with contextlib.suppress(OSError):  # a folder of another user
            unfinished.unlink()
