"""Messages as `{"role", "content", "tool_calls"}`, from the formats of people and servers.

A role is `system`, `user`, `assistant` or `tool`. `content` is text, and `tool_calls` are calls as
`{"name", "arguments"}`. `"trained": False` excludes an assistant's message from training. Any
format that might be misread raises BadRow."""

import re

from data_utils.bad_rows import BadRow, keys_of
from data_utils.prompt import to_json
from data_utils.written_calls import ARGUMENT_KEYS, parse_value, read_call, read_calls, split_calls

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant",
    "function_call": "assistant", "tool_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "tool_response": "tool", "function_response": "tool",
}  # fmt: skip
ROLES_OF_CALLS = ("function_call", "tool_call")  # their text is calls
# Items of OpenAI's Responses, by `type`.
ITEMS = {"function_call": "assistant", "function_call_output": "tool"}
# Keys that exclude a message from training if 0 or false.
NOT_TRAINED = ("weight", "train", "training", "trainable", "loss", "loss_weight", "loss_mask")
READ_KEYS = ("tool_calls", "function_call", "tool_plan", *NOT_TRAINED)
# Other keys of an assistant's message that may hold calls or exclude parts from training.
TELLING_KEY = re.compile(r"call|tool|function|(?:^|_)action|^train|^loss|weight|mask", re.IGNORECASE)
CONTENT_KEYS = ("content", "value", "parts")
# Unread texts. A message with such a text and no content is an error.
OTHER_TEXTS = ("text", "message", "output", "result", "response")
# Lists of objects, or objects with a name, without calls. Unknown keys may hold calls.
METADATA = (
    "annotations", "citations", "logprobs", "sources", "reasoning_details", "thinking_blocks", "metadata", "usage",
    "author",
)  # fmt: skip
TEXT_TYPES = (None, "text", "input_text", "output_text")
THOUGHT_TYPES = ("thinking", "redacted_thinking", "reasoning")
CALL_KEYS = ("toolUse", "functionCall", "function_call")  # Bedrock, Gemini
KNOWN_KEYS = (*READ_KEYS, *CONTENT_KEYS, *METADATA)
KEPT_NULLS = ("tool_calls", *CONTENT_KEYS)
RESULT_KEYS = ("toolResult", "functionResponse", "function_response")


def read_messages(messages, names):
    """The messages of a list. names: the names of the tools. Raises BadRow."""
    return [read for message in messages for read in read_message(message, names)]


def read_message(message, names):
    """Convert one message to one or more, because a user's message may hold tool results. Raises
    BadRow."""
    if not isinstance(message, dict):
        raise BadRow("a message that is not an object")
    message = {key: value for key, value in message.items() if value is not None or key in KEPT_NULLS}
    role = message.get("role", message.get("from"))
    if role is None and message.get("type") in ITEMS:
        flags = {key: message[key] for key in NOT_TRAINED if key in message}
        role, message = ITEMS[message["type"]], {"content": [message], **flags}
    if not isinstance(role, str):
        raise BadRow(f"a message without a role: it has {keys_of(message)}")
    if role not in ROLES:
        raise BadRow(f"a message of the role {role[:40]!r}: known are {', '.join(ROLES)}")
    if ROLES[role] == "assistant":
        return [read_assistant(role, message, content_of(message, "assistant"), names)]
    if message.get("tool_calls") or message.get("function_call"):
        raise BadRow(f"a message of the role {role!r} with calls")
    read = []
    for kind, value in read_content(content_of(message, ROLES[role]), ROLES[role]):
        if kind == "call":
            raise BadRow(f"a message of the role {role!r} with calls")
        new_role = "tool" if kind == "result" else ROLES[role]
        if kind == "text" and read and read[-1]["kind"] == "text":
            read[-1]["content"] += "\n" + value
        else:
            read.append({"kind": kind, "role": new_role, "content": value})
    read = [{"role": entry["role"], "content": entry["content"]} for entry in read]
    return read or [{"role": ROLES[role], "content": ""}]


def role_of(message):
    """The standard role of a message, or None."""
    role = message.get("role") or message.get("from")
    return ITEMS.get(message.get("type")) if role is None else ROLES.get(role)


def content_of(message, role):
    """The non-empty value at CONTENT_KEYS, or an empty one. Raises BadRow."""
    given = [message[key] for key in CONTENT_KEYS if message.get(key) is not None]
    full = [value for value in given if value not in ("", [], {})]
    if len(full) > 1 and any(list(read_content(value, role)) != list(read_content(full[0], role)) for value in full):
        raise BadRow(f"a message with two contents: it has {keys_of(message)}")
    missing = role != "assistant" and not any(key in message for key in CONTENT_KEYS)
    if not full and (missing or any(message.get(key) for key in OTHER_TEXTS)):
        raise BadRow(f"a message without content: it has {keys_of(message)}")
    return next(iter(full or given), None)


def read_assistant(role, message, content, names):
    empty = ("", [], {}, 0)
    odd = [key for key in message if TELLING_KEY.search(key) and key not in READ_KEYS and message[key] not in empty]
    nested = [key for key, value in message.items() if isinstance(value, dict) and key not in READ_KEYS]
    odd += [key for key in nested if any(message[key].get(inner) for inner in ("tool_calls", "function_call"))]
    odd += [key for key, value in message.items() if key not in KNOWN_KEYS and may_hold_calls(value)]
    if odd:
        raise BadRow(f"an assistant's message with {odd[0]!r}, which is not read")
    parts = list(read_content(content, "assistant"))
    if any(kind == "result" for kind, _ in parts):
        raise BadRow("an assistant's message with a tool's result")
    text = "\n".join(value for kind, value in parts if kind == "text")
    calls = [read_call(value) for kind, value in parts if kind == "call"]
    if role in ROLES_OF_CALLS and not calls:
        thought, tag, text = text.rpartition("</think>")
        text, written = thought + tag, read_calls(text)
    else:
        text, written = split_calls(text, names)
    given = [message[key] for key in ("tool_calls", "function_call") if message.get(key)]
    for found in (written, *map(read_calls, given)):
        if calls and found and found != calls:
            raise BadRow("an assistant's message with calls in two places")
        calls = found or calls
    read = {"role": "assistant", "content": text}
    if calls or message.get("tool_calls") is not None:
        read["tool_calls"] = calls
    return read if is_trained(message) else read | {"trained": False}


def may_hold_calls(value):
    """Whether a value is a list with objects, or an object with a name."""
    if isinstance(value, dict):
        return "name" in value or "toolName" in value
    return isinstance(value, list) and any(isinstance(element, dict) for element in value)


def is_trained(message):
    flags = [(key, message[key]) for key in NOT_TRAINED if key in message]
    for key, value in flags:
        if value not in (0, 1) or isinstance(value, str):
            raise BadRow(f"an assistant's message whose {key} is neither 0 nor 1")
    return all(value for _, value in flags)


def read_content(content, role):
    """Pairs of "text", "call" or "result" and a value, from a text, parts, or any JSON value of a
    tool's result."""
    if role == "tool" and not isinstance(content, str | None) and not is_parts(content):
        yield "text", to_json(content)
    elif isinstance(content, list):
        for part in content:
            yield from read_part(part)
    elif isinstance(content, dict):
        yield from read_part(content)
    elif isinstance(content, str):
        yield "text", content
    elif content is not None:
        raise BadRow(f"a message of the role {role!r} that is not text")


def is_parts(content):
    """Whether a tool's result is a list of parts, rather than a JSON value with a text
    somewhere."""
    known = {"type", "text", "value", "cache_control", "annotations", *RESULT_KEYS}
    return (
        isinstance(content, list)
        and len(content) > 0
        and all(
            isinstance(part, dict)
            and (set(part) <= known or part.get("type") in ("tool_result", "function_call_output"))
            and (isinstance(part.get("type"), str) or set(part) <= {"text", *RESULT_KEYS})
            for part in content
        )
    )


def read_part(part):
    if isinstance(part, str):
        yield "text", part
        return
    if not isinstance(part, dict):
        raise BadRow("a part of a message that is neither text nor an object")
    # Parquet pads each part with the keys of all parts.
    part = {key: value for key, value in part.items() if value is not None}
    part_type = part.get("type")
    text = part.get("text", part.get("value"))
    calls = [part[key] for key in CALL_KEYS if key in part]
    results = [part[key] for key in RESULT_KEYS if key in part]
    if part_type in THOUGHT_TYPES or part.get("thought") is True or "reasoningContent" in part:
        return
    if calls or results:
        if len(calls + results) > 1 or text is not None:
            raise BadRow(f"a part of a message with {keys_of(part)}")
        for call in calls:  # Gemini omits empty arguments
            has_arguments = not isinstance(call, dict) or set(ARGUMENT_KEYS) & set(call)
            yield "call", call if has_arguments else {**call, "args": {}}
        yield from (("result", result_text(result)) for result in results)
    elif part_type in ("tool_use", "tool_call", "function_call"):
        yield "call", parse_value(part["value"], "a part") if isinstance(part.get("value"), str) else part
    elif part_type in ("tool_result", "function_call_output"):
        yield "result", result_text(part)
    elif part_type in TEXT_TYPES and isinstance(text, str):
        yield "text", text
    else:
        raise BadRow(f"a part of a message that is not text: {part_type or keys_of(part)}")


def result_text(result):
    """The text of Anthropic's, Bedrock's, Gemini's or OpenAI's result: its texts, or its value as
    JSON."""
    value = next((result[key] for key in ("content", "response", "output") if result.get(key) is not None), "")
    if isinstance(value, list) and value and all(isinstance(part, dict) and set(part) == {"json"} for part in value):
        return "\n".join(to_json(part["json"]) for part in value)
    return "\n".join(text for _, text in read_content(value, "tool"))
