"""Files that are whole or not there, and folders that one process works in."""

import hashlib
import json
import os
from pathlib import Path

from run_utils.arguments import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCKED = {}  # what this process holds: the open folder by its path


def write_text(path, text):
    """A kill or a full disk leaves the old file or the new one."""
    unfinished = Path(f"{path}.incomplete")
    try:
        unfinished.write_text(text, encoding="utf-8", newline="\n")
        unfinished.replace(path)
    except (OSError, ValueError):  # a full disk, half a surrogate pair
        unfinished.unlink(missing_ok=True)
        raise


def write_json(path, value):
    write_text(path, json.dumps(value, indent=2) + "\n")


def file_hash(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lock_folder(folder):
    """Keep other processes out of a folder until this one ends, however it ends. UserError where another is in it."""
    folder = Path(folder).resolve()
    if fcntl is None or folder in LOCKED:
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(f"another process is working in {folder}: wait for its end, or choose another place") from None
    except OSError:  # a file system without locks
        os.close(handle)
        return
    LOCKED[folder] = handle
