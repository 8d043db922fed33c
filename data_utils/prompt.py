"""The prompt formats: how a row becomes a prompt and a completion, and how a generated text is read. One table.

To try another format, add it to PROMPT_FORMATS and train with `--prompt_format NAME`. The name is saved with the adapter,
which is then evaluated and called in its own format. Two formats can so be compared in one checkout. A format that is in use
must not change: give the changed one another name.
"""

import hashlib
import itertools
import json
from collections.abc import Callable
from typing import NamedTuple

from data_utils import tool_calls

_ENCODER = json.JSONEncoder(ensure_ascii=False)


def to_json(value):
    """One line of JSON with `", "` and `": "`; letters beyond ASCII stay letters, as in the published rows."""
    return _ENCODER.encode(value)


def render_tags(query, tools):
    """The tag prompt. `tools` is the list of tools as JSON text (see `to_json`). Ends with `<answer>` and a newline; there
    is no closing tag."""
    return f"""\
<system_prompt>
Only use the tools provided and get the args from the query.
And only output a valid json which shows the function call and the args.
</system_prompt>
<tools>
{tools}
</tools>
<query>
{query}
</query>
<answer>
"""


def render_messages(messages):
    """The query that a conversation is, `[{"role", "content", "tool_calls"}, ...]` as messages.py reads them: a single message of the
    user as it is, and else a transcript, `role: ` before each message. An assistant's messages in a row are one, its calls a JSON list."""
    if [message["role"] for message in messages] == ["user"]:
        return messages[0]["content"]
    lines = []
    for role, turn in itertools.groupby(messages, key=lambda message: message["role"]):
        turn = list(turn)
        calls = [call for message in turn for call in message.get("tool_calls", [])]
        texts = [message["content"] for message in turn]
        if role == "assistant":
            texts = ["\n".join(filter(None, [*texts, render_calls(calls) if calls else ""]))]
        lines += [f"{role}: {text}" for text in texts]
    return "\n".join(lines)


def render_calls(calls):
    """Calls whose `arguments` are an object, or JSON text as a server gives it, as the text of their list."""
    return f"[{', '.join(map(render_call, calls))}]"


def render_call(call):
    arguments = call["arguments"] if isinstance(call["arguments"], str) else to_json(call["arguments"])
    return f'{{"name": {to_json(call["name"])}, "arguments": {arguments or "{}"}}}'


def render_raw(query, tools):
    """The baseline without tags or instructions: query and tools as one JSON object."""
    return f'{{"query": {to_json(query)}, "tools": {tools}}}'


class PromptFormat(NamedTuple):
    """How one format asks, and how its answers are read. The defaults are those of answers that are a JSON list of calls."""

    render: Callable[[str, str], str]  # query, tools (JSON text) -> the prompt
    # answers (JSON text: the list of calls) -> what the model is to say; the end-of-sequence token follows
    completion: Callable[[str], str] = str
    # generated text -> its value, a list of calls where all is well. Raises ValueError where there is none
    parse: Callable[[str], object] = tool_calls.parse_answer
    # generated text -> whether generation may stop here. What follows must not change what `parse` makes of the text
    finished: Callable[[str], bool] = tool_calls.finished
    # generated text -> whether a value has closed; if not where `closing` is true, `finished` never will be
    has_value: Callable[[str], bool] = tool_calls.has_value
    # () -> an object whose `add(text of the next token)` is whether `finished` is worth asking
    closing: Callable[[], tool_calls.Closing] = tool_calls.Closing


PROMPT_FORMATS = {
    "tags-1": PromptFormat(render_tags),
    "raw": PromptFormat(render_raw),
}


def check_format(name, answers):
    """Raises ValueError where a format does not read back what it teaches a model to say: `answers` of a row (JSON text), whole
    or as much of it as generation would let the model say."""
    prompt_format = PROMPT_FORMATS[name]
    said = prompt_format.completion(answers)
    ends = [end for end in range(len(said)) if prompt_format.finished(said[:end])] + [len(said)]
    text = said[: ends[0]]
    try:
        right = tool_calls.json_equal(prompt_format.parse(text), json.loads(answers))
    except ValueError:
        right = False
    if not right:
        where = "parse does not" if text == said else f"finished stops it after {text!r}, of which parse does not"
        raise ValueError(f"the prompt format {name} would teach {said!r}; {where} make {answers}")


def format_hash(prompt_format):
    """What a format makes of one row, hashed: saved with an adapter, to notice a format that was edited since."""
    text = prompt_format.render("query", '[{"name": "f"}]') + prompt_format.completion(
        '[{"name": "f", "arguments": {}}]'
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]
