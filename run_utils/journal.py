"""Journals: JSON lines, appended one by one, and read again after a kill."""

import json

from run_utils.errors import UserError
from run_utils.files import lock_folder


def append(path, records):
    """Append records (JSON values) to a file. Each record is flushed before the next one is
    requested."""
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read() != b"\n":  # a kill cut the last line short
                file.write(b"\n")
        for record in records:
            file.write(json.dumps(record).encode() + b"\n")
            file.flush()


def read(path):
    """Yields the records of a journal's whole lines. Lines cut by a kill are skipped."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            yield record


def open_journal(path, identity):
    """Lock a journal and return its records; a new journal has none. It begins with `identity`, a
    dict of all inputs of its records. Raises UserError if it begins with another identity."""
    try:
        path.touch()
        lock_folder(path)
        first, *records = list(read(path)) or [None]
        if path.stat().st_size == 0:
            append(path, [identity])
        elif first != identity:
            raise UserError(
                f"{path} has answers to other rows, or of another model or settings: remove it, or choose another "
                "--output"
            )
        return records
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
