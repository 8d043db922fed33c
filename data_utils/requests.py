"""Rows that ask for calls, from a file in any layout, with or without answers."""

import contextlib
import math
from collections import Counter
from typing import NamedTuple

from data_utils.conversations import as_request
from data_utils.prompt import to_json
from data_utils.readers import read_file
from data_utils.rows import Row, validate
from data_utils.tool_calls import parse_json
from data_utils.tool_files import none_left
from data_utils.tool_formats import flat_tools
from run_utils.errors import UserError, say

MAX_NOTES = 20


class Request(NamedTuple):
    """One record of a file."""

    id: object  # the record's id, or its number in the file
    row: Row | None
    error: str  # the reason if row is None
    left_out: list[str]  # a line for each unreadable tool


def read_requests(path, tools):
    """A Request for each record of a file. Prints a line on stderr for each partly read or
    unreadable tool, with its number of rows. tools: for records without tools."""
    requests, notes = [], Counter()
    for number, (_, record) in enumerate(read_file(path), start=1):
        row_id = record.get("id") if isinstance(record, dict) else None
        # NaN is not JSON.
        if row_id is None or (isinstance(row_id, float) and not math.isfinite(row_id)):
            row_id = number
        left_out = []
        try:
            request = as_request(record, tools)
            # If it is not a list of tools, `validate` gives the reason.
            with contextlib.suppress(ValueError, TypeError):
                read = flat_tools(parse_json(request["tools"]), keep_going=True)
                request["tools"], left_out = to_json(read.tools), read.left_out
                notes.update(set(read.notes))
            if left_out and not read.tools:
                raise ValueError(none_left(left_out))
            requests.append(Request(row_id, validate(request), "", left_out))
        except ValueError as error:
            requests.append(Request(row_id, None, str(error), left_out))
        notes.update({f"left out: {reason}" for reason in left_out})
    if not requests:
        raise UserError(f"--input {path} has no rows")
    for note, rows in notes.most_common(MAX_NOTES):
        say(f"{path}: {note} ({rows} row{'s' * (rows > 1)})")
    if len(notes) > MAX_NOTES:
        say(f"{path}: {len(notes) - MAX_NOTES} more such lines")
    return requests
