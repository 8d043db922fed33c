"""Prompt formats: a row as a prompt and a completion, and a generated text as a value.

To try another format, add it to PROMPT_FORMATS and train with `--prompt_format NAME`. The name is
saved with the adapter, and evaluation and calls use the adapter's format, so one checkout can
compare two formats. A format in use must not change: give the changed format another name."""

import hashlib
import itertools
import json
from collections.abc import Callable
from typing import NamedTuple

from data_utils import tool_calls

_ENCODER = json.JSONEncoder(ensure_ascii=False)


def to_json(value):
    """One line of JSON with `", "` and `": "`. Non-ASCII letters stay unescaped, as in the
    published rows."""
    return _ENCODER.encode(value)


def render_tags(query, tools):
    """The tag prompt. tools: the JSON text of the list (see to_json). Ends with `<answer>` and a
    newline; there is no closing tag."""
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
    """A conversation as one query. messages: `[{"role", "content", "tool_calls"}, ...]` from
    messages.py.

    A single user message stays unchanged. Any other conversation becomes a transcript with `role: `
    before each message. Consecutive assistant messages are joined, with their calls as one JSON
    list."""
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
    """The text of a list of calls. `arguments` are an object, or JSON text as servers send it."""
    return f"[{', '.join(map(render_call, calls))}]"


def render_call(call):
    arguments = call["arguments"] if isinstance(call["arguments"], str) else to_json(call["arguments"])
    return f'{{"name": {to_json(call["name"])}, "arguments": {arguments or "{}"}}}'


def render_raw(query, tools):
    """The baseline without tags or instructions: query and tools as one JSON object."""
    return f'{{"query": {to_json(query)}, "tools": {tools}}}'


class PromptFormat(NamedTuple):
    """The prompt of one format, and the reading of its answers. By default, answers are a JSON list
    of calls. chat_format.py has a format with the same methods for a base's chat template."""

    render: Callable[[str, str], str]  # query, tools (JSON text) -> prompt
    # Answers (JSON text of the calls) -> the model's completion, without the end-of-sequence token.
    completion: Callable[[str], str] = str
    # Generated text -> its value, normally a list of calls. Raises ValueError if there is none.
    parse: Callable[[str], object] = tool_calls.parse_answer
    # Generated text -> whether generation may stop. More text must not change the value of `parse`.
    finished: Callable[[str], bool] = tool_calls.finished
    # Generated text -> whether a value has closed. If not when `closing` is true, `finished` never
    # becomes true.
    has_value: Callable[[str], bool] = tool_calls.has_value
    # () -> an object whose `add(text of the next token)` is whether to call `finished`.
    closing: Callable[[], tool_calls.Closing] = tool_calls.Closing
    # Text between an example and the next prompt (few_shot.py): `finished` must stop at it.
    example_end: str = f"\n{tool_calls.END_TAG}\n"

    # The text of the special token that ends an answer. None: the tokenizer's, and the texts hold
    # no special tokens.
    end_token = None
    lenient = staticmethod(tool_calls.lenient_value)

    def prompt(self, row):
        return self.render(row.query, row.tools)

    def texts(self, row):
        """The prompt and the completion of a row."""
        return self.prompt(row), self.completion(row.answers)

    def messages(self, row):
        """A row as a chat's messages for an OpenAI-compatible server."""
        return [{"role": "user", "content": row.query}]

    def words(self, text):
        """The words of an answer that is no list of calls: none in this format."""
        return ""

    def read(self, text, finish):
        """The value of an answer by the reason for its end (see Generation). Raises ValueError."""
        return self.parse(text)

    def sample(self):
        """The text of the format's hash."""
        return self.render("query", '[{"name": "f"}]') + self.completion('[{"name": "f", "arguments": {}}]')


PROMPT_FORMATS = {
    "tags-1": PromptFormat(render_tags),
    "raw": PromptFormat(render_raw),
    "chat": None,  # of the tokenizer's chat template: find_format in chat_format.py
}


def check_format(name, prompt_format, row):
    """Check that a format reads back its own completion of a row's answers, or the part of it that
    generation would produce. Raises ValueError."""
    _, completion = prompt_format.texts(row)
    closing = prompt_format.closing()
    # `closing` is cheap and finds the few places at which `finished` must read the whole text.
    stops = (
        end
        for end, character in enumerate(completion, start=1)
        if closing.add(character) and prompt_format.finished(completion[:end])
    )
    text = completion[: next(stops, None)]
    try:
        matches = tool_calls.json_equal(prompt_format.parse(text), json.loads(row.answers))
    except ValueError:
        matches = False
    if not matches:
        fault = "parse does not" if text == completion else f"finished stops it after {text!r}, and parse does not"
        raise ValueError(f"the prompt format {name} would train {completion!r}; {fault} read this as {row.answers}")


def format_hash(prompt_format):
    """A hash of a format, saved with an adapter to detect later edits of the format."""
    return hashlib.sha256(prompt_format.sample().encode()).hexdigest()[:16]
