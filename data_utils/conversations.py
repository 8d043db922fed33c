"""Other people's rows as rows of ours: OpenAI's conversations, and the leaderboard's questions with what it accepts.

To read another layout of rows, add what recognises it and what it becomes to LAYOUTS.
"""

import hashlib
import json

from data_utils.prompt import render_messages
from data_utils.tool_calls import parse_json
from data_utils.tool_formats import flat_calls


def as_records(record):
    """The name of a record's layout, and the records with `query`, `tools` and `answers` that it becomes. Raises ValueError."""
    if isinstance(record, dict) and record.get("query") is None:
        for name, (columns, convert) in LAYOUTS.items():
            if record.get(columns[0]) is not None:
                if missing := [column for column in columns if record.get(column) is None]:
                    raise ValueError(f"{columns[0]} without {missing[0]}")
                try:
                    return name, list(convert(record))
                except (KeyError, TypeError, AttributeError):  # something is not where the layout has it
                    raise ValueError(f"not in {name} layout") from None
    return "xLAM", [record]


def from_messages(record):
    """Each turn of the assistant, where tools are on offer: the messages before it are the query, its calls the answers; none where it
    answers in words."""
    messages = [read_message(message) for message in read_list(record, "messages")]
    turns = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise ValueError("a conversation without a turn of the assistant")
    name = record.get("id")
    if name in (None, ""):
        name = hashlib.sha256(json.dumps([messages, record["tools"]]).encode()).hexdigest()[:16]
    for turn in turns:
        before = messages[:turn]
        if any(message["role"] == "user" for message in before):
            yield {
                "id": f"{name}/{turn}",
                CONVERSATION: str(name),
                "query": render_messages(before),
                "tools": record["tools"],
                "answers": json.dumps(flat_calls(messages[turn].get("tool_calls", []))),
            }


def as_request(record, tools=None):
    """A record of any layout that asks for calls, answered or not, as a record of ours; `tools` (a parsed list) where it has none."""
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    if tools is not None and record.get("tools") is None and record.get("function") is None:
        record = {**record, "tools": json.dumps(tools)}
    if record.get("query") is None and record.get("question") is not None and record.get("function") is not None:
        _, (record,) = as_records({**record, "ground_truth": []})
    elif record.get("query") is None and record.get("messages") is not None:
        messages = [read_message(message) for message in read_list(record, "messages")]
        while messages and messages[-1]["role"] == "assistant":  # what is asked for
            messages.pop()
        if not any(message["role"] == "user" for message in messages):
            raise ValueError("a conversation in which nobody asks")
        record = {**record, "query": render_messages(messages)}
    if record.get("query") == "":
        raise ValueError("an empty query")
    return {key: record.get(key) for key in ("id", "query", "tools")} | {"answers": "[]"}


def read_message(message):
    """A message with `role`, `content` (text) and, where it calls tools, `tool_calls`, each a name and arguments as they are."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ValueError("a message without a role")
    content, calls = message.get("content"), message.get("tool_calls")
    if message.get("function_call") is not None:  # OpenAI's form of 2023
        calls = [message["function_call"]]
    if isinstance(content, list):  # parts
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise ValueError("a message that is not text")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str | None):
        raise ValueError("a message that is not text")
    read = {"role": message["role"], "content": content or ""}
    return read | {"tool_calls": [read_call(call) for call in calls]} if calls else read


def read_call(call):
    call = call.get("function", call) if isinstance(call, dict) else call
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise ValueError("a call without a name")
    return {"name": call["name"], "arguments": call.get("arguments") or {}}


def from_leaderboard(record):
    """A question of the Berkeley Function-Calling Leaderboard, with its `ground_truth` where it has one: its single turns alone."""
    turns = read_list(record, "question")
    if len(turns) != 1:
        raise ValueError("a question of several turns, whose answers the leaderboard does not say by turn")
    functions = [with_standard_types(function) for function in read_list(record, "function")]
    required = {function["name"]: function["parameters"].get("required", []) for function in functions}
    if record.get("ground_truth") is None and "irrelevance" not in str(record.get("id")):
        raise ValueError("no ground_truth: the leaderboard's answers belong in possible_answer/ beside its questions")
    accepted = read_list(record, "ground_truth") if record.get("ground_truth") is not None else []
    yield {
        "id": record.get("id"),
        "query": render_messages([read_message(message) for message in turns[0]]),
        "tools": json.dumps(functions),
        "answers": json.dumps([first_accepted(call, required) for call in accepted]),
        "category": str(record.get("id", "")).rpartition("_")[0],
        "acceptable": json.dumps(accepted),
        "required": json.dumps(required),
    }


def with_standard_types(schema):
    """The leaderboard's types are Python's."""
    names = {"dict": "object", "float": "number", "tuple": "array"}
    if isinstance(schema, list):
        return [with_standard_types(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    changed = {"type": names.get(kind, kind)} if isinstance(kind, str) and kind != "any" else {}
    return {
        key: with_standard_types(value) for key, value in schema.items() if key != "type" or isinstance(value, dict)
    } | changed


def first_accepted(call, required):
    """A call with the first value accepted for each argument, without those that may be left out."""
    ((name, arguments),) = call.items()
    chosen = {}
    for key, values in arguments.items():
        if may_not_be_left_out(values) or (values and key in required.get(name, [])):
            chosen[key] = plain(next((value for value in values if value != ""), ""))
    return {"name": name, "arguments": chosen}


def may_not_be_left_out(values):
    return bool(values) and "" not in values


def plain(value):
    """An argument's accepted value; where it is an object, or a list of them, its keys have lists of accepted values in turn."""
    if isinstance(value, dict):
        return {key: values[0] for key, values in value.items() if may_not_be_left_out(values)}
    return [plain(element) for element in value] if isinstance(value, list) else value


def read_list(record, column):
    value = record[column]
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError:
            raise ValueError(f"broken JSON in field '{column}'") from None
    if not isinstance(value, list):
        raise ValueError(f"field '{column}' is not a list")
    return value


CONVERSATION = "x-conversation"  # of a record that is a turn: what all turns of one conversation have in common
LAYOUTS = {  # by name: its columns, the first of which it is recognised by, and what a record becomes
    "OpenAI's messages": (("messages", "tools"), from_messages),
    "the leaderboard's": (("question", "function"), from_leaderboard),
}
