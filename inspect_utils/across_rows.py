"""Findings and counts over several rows: repeats, conflicts, tools by name, and the
overlap of training and evaluation."""

import json
import marshal
from collections import Counter, defaultdict

from data_utils.prompt import to_json
from data_utils.split import query_keys
from data_utils.tool_schema import conforms, parameter_schema, parse_type

FEW_WITHOUT_CALLS = 0.01  # share of the training rows
NEARLY_ALL = 0.95
FEW_ROWS = 20  # in fewer, one tool may always be first by chance
MOST_SHOWN = 20  # tools in a table
TYPE_NAMES = {
    str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object", type(None): "null",
}  # fmt: skip


def find_conflicts(rows, findings):
    """Rows with the query and the tools of an earlier row, and other answers."""
    first = {}
    for row in rows:
        key = " ".join(row.query.casefold().split()), row.tools
        other = first.setdefault(key, row)
        if other.answers != row.answers and (
            difference := first_difference(json.loads(row.answers), json.loads(other.answers))
        ):
            findings.add("conflicting_answers", row.id, f"{difference} in {other.id}")


def first_difference(calls, others):
    """The first difference of two lists of calls as a text, or "" if they are the same calls in any
    order."""
    if sorted(map(to_sorted_json, calls)) == sorted(map(to_sorted_json, others)):
        return ""
    names, other_names = ([call["name"] for call in part] for part in (calls, others))
    if names != other_names:
        return f"calls {', '.join(names) or 'nothing'}, but {', '.join(other_names) or 'nothing'}"
    for call, other in zip(calls, others, strict=True):
        for name in call["arguments"] | other["arguments"]:
            sides = [
                to_json(part["arguments"][name]) if name in part["arguments"] else "absent" for part in (call, other)
            ]
            if sides[0] != sides[1]:
                return f"{call['name']}.{name}: {sides[0]}, but {sides[1]}"
    return ""


def to_sorted_json(value):
    return json.dumps(value, sort_keys=True)


def find_near_repeats(train_rows, eval_rows, findings):
    """Queries nearly equal to an earlier training query. Returns the number of evaluation rows
    among them."""
    seen = {}
    for row in train_rows:
        keys = query_keys(row)
        if earlier := next((seen[key] for key in keys if key in seen), None):
            findings.add("near_repeat", row.id, f"nearly {earlier.id}: {earlier.query}")
        seen.update((key, row) for key in keys if key not in seen)
    count = 0
    for row in eval_rows:
        if earlier := next((seen[key] for key in query_keys(row) if key in seen), None):
            count += 1
            findings.add("evaluation_near_repeat", row.id, f"nearly {earlier.id}: {earlier.query}")
    return count


class Counts:
    """Counts over rows, and their distinct tools."""

    def __init__(self):
        self.num_rows = 0
        self.calls, self.offered, self.types, self.places = Counter(), Counter(), Counter(), Counter()
        self.rows_by_tool = Counter()  # by name
        self.called = set()  # names
        self.versions = defaultdict(dict)  # name: {marshalled tool: id of its first row}

    def add(self, row, tools, calls):
        """Count a Row. tools, calls: its parsed lists."""
        names = [tool["name"] for tool in tools]
        self.num_rows += 1
        self.calls[len(calls)] += 1
        self.offered[len(names)] += 1
        self.types.update(TYPE_NAMES[type(value)] for call in calls for value in call["arguments"].values())
        self.called.update(call["name"] for call in calls)
        self.rows_by_tool.update(names)
        if calls and len(names) > 1:
            self.places[names.index(calls[0]["name"]) + 1] += 1
        for tool in tools:
            self.versions[tool["name"]].setdefault(marshal.dumps(tool, 2), row.id)

    def find_tool_faults(self, findings):
        for name, versions in self.versions.items():
            (first, first_id), *others = [(marshal.loads(tool), row_id) for tool, row_id in versions.items()]
            for other, row_id in others:
                if difference := schema_difference(other, first):
                    findings.add("several_schemas", row_id, f"{name}: {difference} in {first_id}")
                    break
            for kind, detail in tool_faults(first):
                findings.add(kind, first_id, detail)

    def find_one_sided(self, findings):
        """Findings about the training rows together."""
        if self.calls[0] < FEW_WITHOUT_CALLS * self.num_rows:
            findings.count("few_rows_without_calls", self.calls[0])
        if self.offered[1] > NEARLY_ALL * self.num_rows:
            findings.count("one_tool_each", self.offered[1])
        if self.places[1] > NEARLY_ALL * self.places.total() and self.places.total() >= FEW_ROWS:
            findings.count("first_tool_right", self.places[1])


def schema_difference(tool, other):
    """The first difference of the arguments of two tools as a text, or ""."""
    parameters, others = tool.get("parameters") or {}, other.get("parameters") or {}
    for name in parameters | others:
        sides = [shown_type(part[name]) if name in part else "absent" for part in (parameters, others)]
        if sides[0] != sides[1]:
            return f"{name} is {sides[0]}, but {sides[1]}"
    return ""


def shown_type(spec):
    values = f" of {to_json(spec['enum'])}" if "enum" in spec else ""
    return f"{spec.get('type', 'of any type')}{values}"


def tool_faults(tool):
    """Yields `(kind, detail)` of the faults in one tool, each kind once."""
    parameters = tool.get("parameters") or {}
    if not str(tool.get("description") or "").strip():
        yield "no_description", tool["name"]
    if silent := [name for name, spec in parameters.items() if not str(spec.get("description") or "").strip()]:
        yield "argument_without_description", f"{tool['name']}: {', '.join(silent)}"
    for name, spec in parameters.items():
        kind = spec.get("type")
        if isinstance(kind, str) and kind.strip() and not parse_type(kind)[0] and kind.strip().lower() not in ANY:
            yield "unknown_type", f"{tool['name']}.{name}: {kind}"
        if spec.get("default") not in (None, "") and not conforms(spec["default"], parameter_schema(spec)):
            yield "wrong_default", f"{tool['name']}.{name}: {to_json(spec['default'])} is not {shown_type(spec)}"


ANY = ("any", "any, optional", "object, optional")


def overlap(train_rows, eval_rows, near_repeats, known):
    """Evaluation rows against training rows, as counts of rows; None without evaluation rows.
    known: the names of the tools in training rows."""
    if not eval_rows:
        return None
    queries = {row.query for row in train_rows}
    unseen = [(names := row.tool_names()) and len(names - known) / len(names) for row in eval_rows]
    return {
        "eval_rows": len(eval_rows),
        "same_query": sum(row.query in queries for row in eval_rows),
        "near_repeats": near_repeats,
        "tools_all_seen": sum(not share for share in unseen),
        "tools_some_unseen": sum(bool(share) and 0 < share < 1 for share in unseen),
        "tools_none_seen": sum(share == 1 for share in unseen),
    }


def distributions(counts):
    """Tables of Counts, `{"name", "title", "values": [[label, count]]}`."""
    tables = {
        ("calls", "Calls a row"): by_number(counts.calls),
        ("tools", "Tools a row"): by_number(counts.offered),
        ("argument_types", "Types of the arguments given"): counts.types.most_common(),
        ("place_of_the_right_tool", "Place of the first called tool among several"): by_number(counts.places),
        ("rows_a_tool", "Tools by the number of rows that offer them"): by_magnitude(counts.rows_by_tool.values()),
        ("rows_by_tool", "Rows that offer a tool, the most frequent tools"): counts.rows_by_tool.most_common(
            MOST_SHOWN
        ),
    }
    return [{"name": name, "title": title, "values": list(map(list, of))} for (name, title), of in tables.items()]


def by_number(counts):
    return [[str(number), counts[number]] for number in sorted(counts)]


def by_magnitude(numbers):
    """Counts of positive numbers by decades: 1, 2-9, 10-99, ..."""
    digits = Counter(0 if number == 1 else len(str(number)) for number in numbers)
    labels = {0: "1", 1: "2-9"} | {size: f"{10 ** (size - 1):,}-{10**size - 1:,}" for size in range(2, 9)}
    return [[labels[size], digits[size]] for size in sorted(digits)]
