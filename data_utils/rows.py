"""A row in the xLAM schema: what makes it valid, what it is known by, and on which side of the split it is.

A row is a `query`, the `tools` on offer and the `answers` (the calls to make), the last two as JSON strings. They stay
strings all the way to the prompt: parsed into columns, `datasets` would add every row's keys to every other row as
nulls (trl#5118).
"""

import hashlib
import json
from collections import Counter, defaultdict
from typing import NamedTuple

from data_utils.conversations import CONVERSATION, as_records
from data_utils.formats import NotFlat, flat_calls, flat_tools
from data_utils.prompt import to_json
from data_utils.tool_calls import check_calls, parse_json

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
    try:
        values["tools"], _ = flat_tools(values["tools"])
    except NotFlat:
        raise ValueError("tools that the flat form cannot say") from None
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


def bad_row_id(record):
    """The record's `id`, or a hash of what it holds where it has none."""
    if not isinstance(record, dict):
        return str(record)
    if record.get("id") is not None:
        return str(record["id"])
    return content_hash(*(str(record.get(column)) for column in COLUMNS))


def valid_rows(records):
    """The valid rows, the bad ones as `{reason: [ids]}`, and how many records there were of each layout."""
    rows, bad, seen, layouts = [], defaultdict(list), set(), Counter()
    for record in records:
        try:
            layout, mine = as_records(record)
        except ValueError as error:
            bad[str(error)].append(bad_row_id(record))
            continue
        layouts[layout] += 1
        for each in mine:
            try:
                row = validate(each)
                if row.id in seen:
                    raise ValueError("repeated id")
            except ValueError as error:
                bad[str(error)].append(bad_row_id(each))
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


def split_rows(rows, eval_fraction, seed, by="random"):
    """Training rows, evaluation rows, and rows in neither. A function of the seed and the rows alone, not their order.

    A row that repeats a held-out row's query, tools and answers under another id is in neither.
    `random`: the `round(eval_fraction * n)` rows whose hash of (seed, id) is smallest. `tools`: no tool of an
    evaluation row occurs in a training row. Tools are held out in the order of their hash until enough rows use held-out
    tools alone; rows that use both kinds are left out.
    """

    def order(name):
        return hashlib.sha256(f"{seed}:{name}".encode()).digest()

    ordered = sorted(rows, key=lambda row: order(row.conversation or row.id))
    wanted = round(eval_fraction * len(rows))
    while (
        0 < wanted < len(ordered)
        and ordered[wanted].conversation
        and same_conversation(*ordered[wanted - 1 : wanted + 1])
    ):
        wanted += 1  # all turns of one conversation on one side
    if by == "random":
        return without_repeats(ordered, ordered[wanted:], ordered[:wanted])

    tools = {row.id: row.tool_names() for row in ordered}
    open_tools = {row.id: len(tools[row.id]) for row in ordered}  # how many of a row's tools are not held out
    users = defaultdict(list)
    for row in ordered:
        for tool in tools[row.id]:
            users[tool].append(row.id)
    held_out, inside = set(), 0
    for tool in sorted(users, key=order):
        if inside >= wanted:
            break
        held_out.add(tool)
        for user in users[tool]:
            open_tools[user] -= 1
            inside += open_tools[user] == 0
    eval_rows = [row for row in ordered if tools[row.id] and open_tools[row.id] == 0][:wanted]
    train_rows = [row for row in ordered if not tools[row.id] & held_out]
    return without_repeats(ordered, train_rows, eval_rows)


def same_conversation(row, other):
    return row.conversation == other.conversation


def set_apart(rows, eval_rows, seed):
    """Like split_rows where the rows to evaluate come from another place: training rows, evaluation rows, both in the order of
    their hash, and rows in neither, which repeat one to evaluate."""

    def ordered(rows):
        return sorted(rows, key=lambda row: hashlib.sha256(f"{seed}:{row.id}".encode()).digest())

    held_out = {row.fingerprint for row in eval_rows}
    train_rows = [row for row in ordered(rows) if row.fingerprint not in held_out]
    return train_rows, ordered(eval_rows), [row for row in rows if row.fingerprint in held_out]


def without_repeats(ordered, train_rows, eval_rows):
    held_out = {row.fingerprint for row in eval_rows}
    train_rows = [row for row in train_rows if row.fingerprint not in held_out]
    kept = {row.id for row in eval_rows} | {row.id for row in train_rows}
    return train_rows, eval_rows, [row for row in ordered if row.id not in kept]


def find_held_out(rows, split):
    """The rows that a training held out, by content, in the order in which it did, and the ids of those that are gone.

    split: what train.py saves as split.json, `{"trained": {id: fingerprint}, "held_out": {id: fingerprint}}`.
    """
    by_content = defaultdict(list)
    for row in rows:
        by_content[row.fingerprint].append(row)
    contents = set(by_content)
    found, gone = [], []
    for row_id, fingerprint in split["held_out"].items():
        same = by_content[fingerprint]
        if same:  # of several, the one of the same id where there is one
            found.append(same.pop(next((i for i, row in enumerate(same) if row.id == row_id), 0)))
        elif fingerprint not in contents:  # else it was there several times, and is now fewer times
            gone.append(row_id)
    return found, gone
