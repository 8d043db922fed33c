"""Rows in the xLAM schema: validation, ids and hashes.

A row has a `query`, the available `tools` and the `answers` (the calls to make). `tools` and
`answers` stay JSON strings up to the prompt: in parsed columns, `datasets` would add every row's
keys to every other row as nulls (trl#5118)."""

import hashlib
import json
from collections import Counter, defaultdict
from typing import NamedTuple

from data_utils.bad_rows import BadRow, has_id, json_field
from data_utils.conversations import OWN_KEYS, as_records
from data_utils.misfits import fit
from data_utils.prompt import to_json
from data_utils.tool_formats import flat_tools
from data_utils.tool_schema import call_problems
from data_utils.written_calls import flat_calls
from run_utils.files import encodes

COLUMNS = ("query", "tools", "answers")
# Optional columns for evaluation: the row's category, the leaderboard's accepted values, and the
# truly required arguments. The last two are JSON strings. The model sees none of the three.
EXTRA_COLUMNS = ("category", "acceptable", "required")
SHOWN = 60  # characters shown of a bad row without an id
MOST_REPEATS = 100  # in a summary, each with the id of the earlier row


class Row(NamedTuple):
    id: str
    query: str
    tools: str  # JSON text of to_json
    answers: str  # JSON text of to_json
    # A content_hash: equal for rows with the same content, whatever their ids and order of keys.
    fingerprint: str = ""
    category: str = ""  # EXTRA_COLUMNS, empty if absent
    acceptable: str = ""
    required: str = ""
    conversation: str = ""  # equal for all turns of one conversation
    # The record's `conversation_id`, or a hash of its tools and messages up to the first question.
    opening: str = ""
    # JSON text of a conversation's messages before the turn (messages.py), from which the query is
    # a transcript. Empty if the query is the only message.
    messages: str = ""
    words: str = ""  # of the turn, beside its calls or without calls

    def tool_names(self):
        return {tool["name"] for tool in json.loads(self.tools)}


def content_hash(query, tools, answers):
    """A hash of a row's content. tools and answers are parsed values, and the order of keys does
    not matter."""
    return hashlib.sha256(json.dumps([query, tools, answers], sort_keys=True).encode()).hexdigest()[:16]


def validate(record):
    """The record as a Row with canonical JSON. Raises BadRow."""
    return read_row(record)[0]


def read_row(record):
    """The Row of a record, its calls and its ReadTools. Raises ValueError; a BadRow has one reason
    for all rows with the same fault."""
    if not isinstance(record, dict):
        raise BadRow("not a JSON object")
    values = {}
    for column in COLUMNS:
        if record.get(column) is None:
            raise BadRow(f"missing field '{column}'")
        if not isinstance(record[column], str):
            raise BadRow(f"field '{column}' is not a string")
        try:
            record[column].encode()
        except UnicodeEncodeError:  # a lone surrogate
            raise BadRow(f"broken text in field '{column}'") from None
        values[column] = record[column] if column == "query" else json_field(record, column)
    if not values["query"].strip():
        raise BadRow("an empty query")
    extras = {column: record[column] for column in EXTRA_COLUMNS if isinstance(record.get(column), str)}
    for column in ("acceptable", "required"):
        value = json_field(extras, column) if extras.get(column) else None
        if column == "required" and value is not None and not names_by_tool(value):
            raise BadRow("field 'required' is not an object with a list of names for each tool")
    read = flat_tools(values["tools"])
    values["tools"], values["answers"] = read.tools, flat_calls(values["answers"])
    tools, answers = to_json(values["tools"]), to_json(values["answers"])
    names = {field: record.get(key, "") for field, key in OWN_KEYS.items()}
    texts = {"id": str(record.get("id")), "tools": tools, "answers": answers, **extras, **names}
    # The escape "\ud800" in the text is a lone surrogate in the value.
    if broken := [name for name, text in texts.items() if not encodes(text)]:
        raise BadRow("half a surrogate pair in a string", broken[0])
    unknown = {call["name"] for call in values["answers"]} - {tool["name"] for tool in values["tools"]}
    if unknown:
        raise BadRow("a call to a tool that is not in its list", ", ".join(sorted(unknown)))
    fingerprint = content_hash(**values)
    row_id = str(record["id"]) if has_id(record) else fingerprint
    row = Row(row_id, values["query"], tools, answers, fingerprint, **extras, **names)
    return row, values["answers"], read


def names_by_tool(value):
    return isinstance(value, dict) and all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in value.values()
    )


def name_in_file(record, place):
    """A record's `id`, or its place in the file and its first characters."""
    if isinstance(record, dict) and has_id(record):
        return str(record["id"])
    text = (
        json.dumps(record, ensure_ascii=False, default=str) if isinstance(record, dict) else getattr(record, "doc", "")
    )
    text = " ".join(text.replace('\\"', '"').split())
    return place + (f": {text[:SHOWN]}" + "..." * (len(text) > SHOWN) if text else "")


def valid_rows(records):
    """The valid rows of `(place, record)` pairs, the bad ones as `{reason: [ids or places]}`, and a
    summary for describe_rows.

    A row with the content of an earlier row is left out but is not bad. A row with only the id of
    an earlier row is bad. Records with the same opening are one conversation."""
    rows, bad, ids, contents = [], defaultdict(list), set(), {}
    layouts, notes, unreadable, without_calls, misfits, repeats = Counter(), Counter(), 0, 0, [], []

    def refuse(error, name):
        reason, fault = (error.reason, error.place) if isinstance(error, BadRow) else (str(error), "")
        bad[reason].append(name + (f" ({fault})" if fault else ""))

    for place, record in records:
        try:
            layout, converted, left_out = as_records(record)
        except ValueError as error:
            refuse(error, name_in_file(record, place))
            unreadable += 1
            continue
        layouts[layout] += 1
        if left_out:  # an empty update takes a microsecond
            notes.update(left_out)
        for turn in converted:
            try:
                row, calls, read = read_row(turn)
                content = "".join([row.fingerprint, row.category, row.acceptable, row.required])
                if content in contents:
                    repeats.append([row.id, contents[content]])
                    continue
                if row.id in ids:
                    raise BadRow("the id of another row, with other content", place)
            except ValueError as error:
                refuse(error, name_in_file(turn if has_id(record) else record, place))
                continue
            rows.append(row)
            ids.add(row.id)
            contents[content] = row.id
            if read.notes:
                notes.update(read.notes)
            without_calls += not calls
            if not fit(calls, read.tools):
                misfits.append((row.id, call_problems(calls, read.tools)[0]))
    rows = join_conversations(rows)
    summary = {"layouts": dict(layouts), "unreadable": unreadable, "without_calls": without_calls, "notes": dict(notes)}
    repeats = [len(repeats), repeats[:MOST_REPEATS]]
    return rows, dict(bad), summary | {"misfits": [len(misfits), misfits[:2]], "repeats": repeats}


def join_conversations(rows):
    """The rows, with records of the same opening as one conversation."""
    conversations = defaultdict(set)
    for row in rows:
        conversations[row.opening].add(row.conversation)
    return [
        row._replace(conversation=row.opening) if row.opening and len(conversations[row.opening]) > 1 else row
        for row in rows
    ]


def describe_rows(num_rows, summary):
    """The lines to print for a valid_rows summary, without counts of 0, and without layouts if all
    records are xLAM's."""
    layouts = summary["layouts"]
    found = ", ".join(f"{count} in {layout} layout" for layout, count in layouts.items())
    lines = []
    if set(layouts) - {"xLAM"}:
        lines.append(f"{counted(num_rows, 'row')} of {counted(sum(layouts.values()), 'record')}: {found}")
    if count := summary["without_calls"]:
        lines.append(f"rows without calls: {count}")
    count, first = summary["misfits"]
    if count:
        ids = ", ".join(row_id for row_id, _ in first)
        lines.append(
            f"rows whose answers do not fit their own tools: {count} ({ids}): {' '.join(first[0][1].split())[:200]}"
        )
    count, first = summary["repeats"]
    if count:
        lines.append(
            f"rows left out, since they repeat another: {count} ({', '.join(row_id for row_id, _ in first[:2])})"
        )
    return lines + [f"{note}: {count}" for note, count in summary["notes"].items()]


def counted(count, noun):
    return f"{count} {noun}{'s' * (count != 1)}"


def describe_bad_rows(bad):
    """`unknown tool: 2 rows (17, 29); missing field 'tools': 1 row (4)`: at most five reasons with
    five ids."""
    reasons = sorted(bad.items(), key=lambda item: -len(item[1]))
    described = [f"{reason}: {counted(len(ids), 'row')} ({shorten(ids)})" for reason, ids in reasons[:5]]
    return "; ".join(described + [f"{len(reasons) - 5} more reasons"] * (len(reasons) > 5))


def shorten(ids):
    """The first five ids, in one text."""
    return ", ".join(ids[:5]) + ", ..." * (len(ids) > 5)
