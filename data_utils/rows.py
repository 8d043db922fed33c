"""A row in the xLAM schema: what makes it valid, and what it is known by.

A row is a `query`, the `tools` on offer and the `answers` (the calls to make), the last two as JSON strings. They stay
strings all the way to the prompt: parsed into columns, `datasets` would add every row's keys to every other row as
nulls (trl#5118).
"""

import hashlib
import json
from collections import Counter, defaultdict
from typing import NamedTuple

from data_utils.conversations import CONVERSATION, as_records
from data_utils.prompt import to_json
from data_utils.tool_calls import check_calls, parse_json
from data_utils.tool_formats import flat_calls, flat_tools

COLUMNS = ("query", "tools", "answers")
# May be there, for the evaluation alone: a kind of row, the values that the leaderboard accepts, and the arguments that are truly
# required. The last two are JSON strings; no model sees any of them.
EXTRA_COLUMNS = ("category", "acceptable", "required")


class Row(NamedTuple):
    id: str
    query: str
    tools: str  # JSON text as `to_json` renders it
    answers: str  # likewise
    # What the row is known by whatever its id, its other columns and the order of keys: see content_hash.
    fingerprint: str = ""
    category: str = ""  # the EXTRA_COLUMNS, empty where the row has none
    acceptable: str = ""
    required: str = ""
    conversation: str = ""  # what all turns of one conversation have in common

    def tool_names(self):
        return {tool["name"] for tool in json.loads(self.tools)}


def content_hash(query, tools, answers):
    """A hash of a row's content, tools and answers as parsed values: as with JSON's equality, keys have no order."""
    return hashlib.sha256(json.dumps([query, tools, answers], sort_keys=True).encode()).hexdigest()[:16]


def validate(record):
    """The record as a Row with canonical JSON; raises ValueError with the reason, the same text for the same kind."""
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    values = {}
    for column in COLUMNS:
        if record.get(column) is None:
            raise ValueError(f"missing field '{column}'")
        if not isinstance(record[column], str):
            raise ValueError(f"field '{column}' is not a string")
        try:
            record[column].encode()
            values[column] = record[column] if column == "query" else parse_json(record[column])
        except ValueError:  # UnicodeEncodeError, of half a surrogate pair, is one too
            raise ValueError(f"broken {'text' if column == 'query' else 'JSON'} in field '{column}'") from None
    extras = {column: record[column] for column in EXTRA_COLUMNS if isinstance(record.get(column), str)}
    for column in ("acceptable", "required"):
        try:
            value = parse_json(extras[column]) if extras.get(column) else None
        except ValueError:
            raise ValueError(f"broken JSON in field '{column}'") from None
        if column == "required" and value is not None and not names_by_tool(value):
            raise ValueError("field 'required' is not an object with a list of names for each tool")
    values["tools"] = flat_tools(values["tools"]).tools
    try:
        values["answers"] = flat_calls(values["answers"])
        check_calls(values["answers"])
        tools, answers = to_json(values["tools"]), to_json(values["answers"])
        # "\ud800" is an escape in the text and half a surrogate pair in the value.
        "".join([str(record.get("id")), tools, answers, *extras.values()]).encode()
    except UnicodeEncodeError:
        raise ValueError("half a surrogate pair in a string") from None
    if not {call["name"] for call in values["answers"]} <= {tool["name"] for tool in values["tools"]}:
        raise ValueError("a call to a tool that is not in its list")
    fingerprint = content_hash(**values)
    conversation = record.get(CONVERSATION, "")
    row_id = fingerprint if record.get("id") in (None, "") else str(record["id"])
    return Row(row_id, values["query"], tools, answers, fingerprint, **extras, conversation=conversation)


def names_by_tool(value):
    return isinstance(value, dict) and all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in value.values()
    )


def name_of(record, place):
    """The `id` of a record, or its place in its file if it has none."""
    has_id = isinstance(record, dict) and record.get("id") is not None
    return str(record["id"]) if has_id else place


def valid_rows(records):
    """The valid rows of `(place, record)` pairs, the bad ones as `{reason: [ids or places]}`, and how many records there were of each
    layout."""
    rows, bad, seen, layouts = [], defaultdict(list), set(), Counter()
    for place, record in records:
        try:
            layout, mine = as_records(record)
        except ValueError as error:
            bad[str(error)].append(name_of(record, place))
            continue
        layouts[layout] += 1
        for each in mine:
            try:
                row = validate(each)
                if row.id in seen:
                    raise ValueError("repeated id")
            except ValueError as error:
                bad[str(error)].append(name_of(each, place))
            else:
                rows.append(row)
                seen.add(row.id)
    return rows, dict(bad), dict(layouts)


def describe_bad_rows(bad):
    """`unknown tool: 2 rows (17, 29); missing field 'tools': 1 row (4)`, at most five ids a reason."""
    return "; ".join(
        f"{reason}: {len(ids)} row{'s' * (len(ids) > 1)} ({', '.join(ids[:5])}{', ...' * (len(ids) > 5)})"
        for reason, ids in sorted(bad.items(), key=lambda item: -len(item[1]))
    )
