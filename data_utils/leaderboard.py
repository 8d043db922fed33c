"""Questions and accepted answers of the Berkeley Function-Calling Leaderboard as xLAM records."""

import json

from data_utils.bad_rows import BadRow, list_field
from data_utils.messages import read_messages
from data_utils.prompt import render_messages


def from_leaderboard(record):
    """The record of a leaderboard question, with its `ground_truth` if it has one. Raises BadRow
    for several turns."""
    turns = list_field(record, "question")
    if len(turns) != 1:
        raise BadRow("a question of several turns: the leaderboard's answers are not by turn")
    functions = [with_standard_types(function) for function in list_field(record, "function")]
    required = {function["name"]: function["parameters"].get("required", []) for function in functions}
    if record.get("ground_truth") is None and "irrelevance" not in str(record.get("id")):
        raise BadRow("no ground_truth: the leaderboard's answers belong in possible_answer/ beside its questions")
    accepted = list_field(record, "ground_truth") if record.get("ground_truth") is not None else []
    return {
        "id": record.get("id"),
        "query": render_messages(read_messages(turns[0], set())),
        "tools": json.dumps(functions),
        "answers": json.dumps([first_accepted(call, required) for call in accepted]),
        "category": str(record.get("id", "")).rpartition("_")[0],
        "acceptable": json.dumps(accepted),
        "required": json.dumps(required),
    }


def with_standard_types(schema):
    """A schema with JSON Schema's types instead of the leaderboard's Python types."""
    names = {"dict": "object", "float": "number", "tuple": "array"}
    if isinstance(schema, list):
        return [with_standard_types(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    changed = {"type": names.get(kind, kind)} if isinstance(kind, str) and kind != "any" else {}
    return {
        key: with_standard_types(value) for key, value in schema.items() if key != "type" or isinstance(value, dict)
    } | changed


def first_accepted(call, required):
    """A call with the first accepted value of each argument, without optional arguments."""
    ((name, arguments),) = call.items()
    chosen = {}
    for key, values in arguments.items():
        if may_not_be_left_out(values) or (values and key in required.get(name, [])):
            chosen[key] = plain(next((value for value in values if value != ""), ""))
    return {"name": name, "arguments": chosen}


def may_not_be_left_out(values):
    return bool(values) and "" not in values


def plain(value):
    """An argument's accepted value. In an object or a list of objects, each key has a list of
    accepted values again."""
    if isinstance(value, dict):
        return {key: values[0] for key, values in value.items() if may_not_be_left_out(values)}
    return [plain(element) for element in value] if isinstance(value, list) else value
