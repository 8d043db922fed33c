"""Records in public layouts as xLAM records: conversations of data sets and vendors, and the
leaderboard's questions.

LAYOUTS is the table of layouts. To read another layout, add its columns and a function that returns
its messages. messages.py reads the messages."""

import hashlib
import itertools
import json
import re
from collections.abc import Callable
from typing import NamedTuple

from data_utils.bad_rows import BadRow, has_id, json_field, keys_of, list_field, not_json
from data_utils.leaderboard import from_leaderboard
from data_utils.messages import read_messages, role_of
from data_utils.prompt import render_messages, to_json
from data_utils.tool_calls import parse_json
from data_utils.tool_formats import flat_tools
from data_utils.written_calls import parse_value

# Keys of a record that is one turn: its conversation's name, and an id that all records of one
# conversation share, even if each record holds the conversation up to another turn.
CONVERSATION = "x-conversation"
OPENING = "x-opening"
MESSAGES, WORDS = "x-messages", "x-words"  # of the turn, see rows.Row
OWN_KEYS = {"conversation": CONVERSATION, "opening": OPENING, "messages": MESSAGES, "words": WORDS}
TOOL_COLUMNS = ("tools", "functions", "toolConfig")
SYSTEM_COLUMNS = ("system", "systemInstruction", "system_instruction")
LISTED_TOOLS = re.compile(r"<tools>(.*?)</tools>", re.DOTALL)

NO_QUESTION = "turns left out, since nobody has asked yet"
NOT_TRAINED = "turns left out, since they are not to be trained on (later turns' queries have them)"
WORDS_BESIDE = "turns with words beside their calls, which only --prompt_format chat trains on"


class Layout(NamedTuple):
    """A layout of rows, recognised by its first column. A raw message is like OpenAI's:
    `{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}`."""

    columns: tuple[str, ...]  # required
    more: tuple[str, ...]  # optional
    # Record -> raw messages; None: the leaderboard's questions.
    messages: Callable | None


def as_records(record):
    """Convert a record. Returns the name of its layout, records with `query`, `tools` and
    `answers`, and a note for each turn that is left out in part or whole. Raises BadRow."""
    name = layout_of(record)
    if name == "xLAM":
        if any(key in record for key in OWN_KEYS.values()):  # somebody else's
            record = {key: value for key, value in record.items() if key not in OWN_KEYS.values()}
        return name, [record], []
    layout = LAYOUTS[name]
    if missing := [column for column in layout.columns if record.get(column) is None]:
        raise no_layout(record, f"{layout.columns[0]} without {missing[0]}")
    if not layout.messages:
        return name, [guarded(name, from_leaderboard, record)], []
    return name, *turns_of(record, *guarded(name, read_conversation, layout, record))


def layout_of(record):
    """The name of a record's layout. Raises BadRow if it has none."""
    if isinstance(record, ValueError):  # a line that is not JSON
        raise not_json("a line, which must be a whole row", record)
    if not isinstance(record, dict):
        raise BadRow("not a JSON object")
    if record.get("query") is not None:
        return "xLAM"
    for name, layout in LAYOUTS.items():
        if record.get(layout.columns[0]) is not None:
            return name
    raise no_layout(record, "a row of no known layout")


def no_layout(record, reason):
    read = "; ".join(
        ", ".join(columns)
        for columns in [("query", "tools", "answers"), *(layout.columns for layout in LAYOUTS.values())]
    )
    return BadRow(f"{reason}: it has {keys_of(record)}; layouts have {read}")


def guarded(name, read, *arguments):
    try:
        return read(*arguments)
    # A key or a type differs from the layout.
    except (KeyError, IndexError, TypeError, AttributeError):
        raise BadRow(f"not in {name} layout") from None


def as_request(record, tools=None):
    """Convert a record of any layout, answered or not, to an xLAM record with an empty list of
    answers. tools: a parsed list for records without tools. Raises BadRow."""
    name = layout_of(record)
    layout = LAYOUTS.get(name)
    if layout and layout.messages:
        listed, messages = guarded(name, read_conversation, layout, record, tools)
        while messages and messages[-1]["role"] == "assistant":  # the answer
            messages.pop()
        if not is_asked(messages):
            raise BadRow("a conversation in which nobody asks")
        record = {**record, "query": render_messages(messages), "tools": listed, MESSAGES: as_column(messages)}
    elif layout and record.get("function") is not None:
        record = guarded(name, from_leaderboard, {**record, "ground_truth": []})
    elif tools is not None and record.get("tools") is None:
        record = {**record, "tools": to_json(tools)}
    if isinstance(record.get("query"), str) and not record["query"].strip():
        raise BadRow("an empty query")
    columns = {key: record.get(key) for key in ("id", "query", "tools")}
    return columns | {"answers": "[]", MESSAGES: record[MESSAGES] if layout and layout.messages else ""}


def turns_of(record, tools, messages):
    """A record for each turn of the assistant, and the notes of as_records. Raises BadRow.

    The query is the messages before the turn. The answers are the turn's calls, or none if the turn
    is only words. Consecutive messages of the assistant are one turn."""
    name = record.get("id")
    if not has_id(record):
        name = hashlib.sha256(json.dumps([messages, tools]).encode()).hexdigest()[:16]
    opening = record.get("conversation_id")
    if opening in (None, ""):
        first = next((i for i, message in enumerate(messages) if message["role"] == "user"), len(messages))
        opening = hashlib.sha256(json.dumps([messages[: first + 1], tools]).encode()).hexdigest()[:16]
    names = {CONVERSATION: str(name), OPENING: str(opening)}
    records, notes, end = [], [], 0
    for role, turn in itertools.groupby(messages, key=lambda message: message["role"]):
        turn = list(turn)
        start, end = end, end + len(turn)
        if role != "assistant":
            continue
        calls = [call for message in turn for call in message.get("tool_calls", [])]
        words = "\n".join(filter(str.strip, [message["content"] for message in turn]))
        if not words and not any("tool_calls" in message for message in turn):
            raise BadRow("a turn of the assistant without words or calls")
        if not is_asked(messages[:start]):
            notes.append(NO_QUESTION)
            continue
        if not is_trained(turn):
            notes.append(NOT_TRAINED)
            continue
        if words and calls:
            notes.append(WORDS_BESIDE)
        fields = {"query": render_messages(messages[:start]), "tools": tools, "answers": json.dumps(calls)}
        own = names | {MESSAGES: as_column(messages[:start]), WORDS: words}
        records.append({"id": f"{name}/{start}", **own, **fields})
    if not records and not notes:
        raise BadRow("a conversation without a turn of the assistant")
    return records, notes


def as_column(messages):
    """The messages as a Row's column, empty for a single question."""
    return "" if [message["role"] for message in messages] == ["user"] else to_json(messages)


def is_asked(messages):
    """Whether there is a user's message. Raises BadRow if all user messages are blank."""
    questions = [message["content"] for message in messages if message["role"] == "user"]
    if questions and not any(map(str.strip, questions)):
        raise BadRow("an empty query")
    return bool(questions)


def is_trained(turn):
    """Whether to train on a turn. Its messages with calls decide, or all messages if there are no
    calls. Raises BadRow if they disagree."""
    deciding = [message for message in turn if message.get("tool_calls")] or turn
    flags = {message.get("trained", True) for message in deciding}
    if len(flags) > 1:
        raise BadRow("a turn of several messages, of which some are to be trained on and some are not")
    return flags.pop()


def read_conversation(layout, record, tools=None):
    """The tools (JSON text) and messages of a conversation. tools: a parsed list for conversations
    without tools. Raises BadRow."""
    raw = with_system_text(record, layout.messages(record))
    listed = read_tools(record)
    if listed is None:
        raw, listed = take_tools(raw)
    listed = tools if listed is None else listed
    if listed is None:
        raise BadRow(f"{layout.columns[0]} without tools")
    return to_json(listed), read_messages(raw, names_of(listed))


def with_system_text(record, messages):
    """The messages, with the system text of a column in front."""
    given = [record[column] for column in SYSTEM_COLUMNS if record.get(column) not in (None, "")]
    if not given:
        return messages
    content = given[0].get("parts", given[0]) if isinstance(given[0], dict) else given[0]
    system = {"role": "system", "content": content}
    first = messages[0] if messages else {}
    if first.get("role", first.get("from")) == "system":
        if read_messages([first], ()) != read_messages([system], ()):
            raise BadRow("a row with two system texts, one in a column and one in a message")
        return messages
    return [system, *messages]


def read_tools(record):
    """The parsed value of a record's tools column for flat_tools, or None. Raises BadRow."""
    given = [column for column in TOOL_COLUMNS if record.get(column) not in (None, "")]
    if len(given) > 1:
        raise BadRow(f"a row with {' and '.join(given)}")
    if not given:
        return None
    value = json_field(record, given[0])
    return value["tools"] if given[0] == "toolConfig" else value  # Bedrock


def names_of(tools):
    """The names of the readable tools in a parsed value. Raises ValueError if it is not a list of
    tools."""
    return {tool["name"] for tool in flat_tools(tools, keep_going=True).tools}


def take_tools(messages):
    """The messages without the list of tools in a system message's `<tools>`, and the list. If
    there is no such list: the same messages and None."""
    for place, message in enumerate(messages):
        key = "value" if "value" in message else "content"
        if message.get("role", message.get("from")) == "system" and isinstance(message.get(key), str):
            lists = [found for found in LISTED_TOOLS.finditer(message[key]) if found[1].strip()]
            if len(lists) == 1:
                text = message[key][: lists[0].start()] + message[key][lists[0].end() :]
                return [*messages[:place], {**message, key: text}, *messages[place + 1 :]], tools_in_text(lists[0][1])
    return messages, None


def tools_in_text(text):
    """The tools in a text with a JSON list or one object per line."""
    try:
        value = parse_value(text, "<tools>")
    except BadRow:
        value = [parse_value(line, "<tools>") for line in text.splitlines() if line.strip()]
    return value if isinstance(value, list) else [value]


def messages_in(column):
    return lambda record: list_field(record, column)


def prompt_and_completion(record):
    """The messages of TRL's prompt and completion. Both columns hold a text, messages, or messages
    as JSON text. The assistant's messages in the prompt are not trained on."""
    prompt = [
        {**message, "train": False} if role_of(message) == "assistant" else message
        for message in text_or_messages(record, "prompt", "user")
    ]
    return prompt + (
        text_or_messages(record, "completion", "assistant") if record.get("completion") is not None else []
    )


def text_or_messages(record, column, role):
    """The messages in a column. A plain text becomes one message."""
    if isinstance(record[column], str) and not is_text_of_messages(record[column]):
        return [{"role": role, "content": record[column]}]
    return list_field(record, column)


def is_text_of_messages(text):
    try:
        value = parse_json(text)
    except ValueError:
        return False
    is_list = isinstance(value, list) and len(value) > 0
    return is_list and all(
        isinstance(message, dict) and ({"role", "from"} & {*message} or role_of(message)) for message in value
    )


BESIDE = (*TOOL_COLUMNS, *SYSTEM_COLUMNS)
LAYOUTS = {
    "OpenAI's messages": Layout(("messages",), BESIDE, messages_in("messages")),
    "ShareGPT's": Layout(("conversations",), BESIDE, messages_in("conversations")),
    "Gemini's": Layout(("contents",), BESIDE, messages_in("contents")),
    "TRL's prompt and completion": Layout(("prompt", "completion"), BESIDE, prompt_and_completion),
    "the leaderboard's": Layout(("question", "function"), ("ground_truth",), None),
}
