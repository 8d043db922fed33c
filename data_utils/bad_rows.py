"""Errors of unreadable rows, and strictly parsed JSON values of records."""

import json
import math

from data_utils.prompt import to_json
from data_utils.tool_calls import RepeatedKey, parse_json


class BadRow(ValueError):
    """An unreadable row. reason: one text for all rows with this fault. place: the fault's place in
    the row."""

    def __init__(self, reason, place=""):
        super().__init__(f"{reason} ({place})" if place else reason)
        self.reason, self.place = reason, place


def not_json(where, error):
    """The BadRow of invalid JSON, with the parser's reason and position."""
    if isinstance(error, RepeatedKey):
        return BadRow(f"broken JSON in {where}: {error}", to_json(error.key)[:60])
    if not isinstance(error, json.JSONDecodeError):
        return BadRow(f"broken JSON in {where}: {error}")
    text = error.doc.rstrip()  # a trailing newline is not a second line
    end = min(error.pos, len(text))
    line = text.count("\n", 0, end) + 1
    return BadRow(
        f"broken JSON in {where}: {error.msg.removesuffix(' at')}",
        (f"line {line}, " if line > 1 else "") + f"column {end - text.rfind(chr(10), 0, end)}",
    )


def json_field(record, column):
    """The JSON value of a record's field, parsed from text or checked as strictly. Raises
    BadRow."""
    value = record[column]
    try:
        return parse_json(value if isinstance(value, str) else to_json(value))
    except ValueError as error:
        raise not_json(f"field '{column}'", error) from None


def list_field(record, column):
    value = json_field(record, column)
    if not isinstance(value, list):
        raise BadRow(f"field '{column}' is not a list")
    return value


def keys_of(value):
    return ", ".join(sorted(str(key) for key in value if value[key] is not None)) or "no keys"


def has_id(record):
    """Whether a record has an `id` that names it: NaN is a missing value too, as pandas writes
    it."""
    value = record.get("id")
    return value not in (None, "") and not (isinstance(value, float) and not math.isfinite(value))
