"""The prompt format `chat`: the base's own chat template, so that its servers and clients need no
other.

The prompt is the template's rendering of messages and tools, as a server renders them: without
further arguments, and with the generation prompt. The completion is all that the template adds for
the assistant's turn, up to its end token. A template that puts an empty thought in front of the
answer (Qwen3) has it in the completion, since it is not in a server's prompt. The probe's rendering
shows the form of the calls; chat_turns.py reads it."""

import datetime
import functools
import itertools
import json
import re
from typing import NamedTuple

import transformers
from transformers import PreTrainedTokenizerBase

from data_utils.chat_turns import PARSER, Markers
from data_utils.prompt import PROMPT_FORMATS, format_hash, to_json
from data_utils.tokens import MARKS, mark_control_tokens, marked, special_tokens
from data_utils.tool_calls import json_equal, opening_value
from data_utils.tool_formats import openai_calls, openai_tools
from run_utils.errors import UserError, describe_error

# A template may write today's date. A fixed one gives a resumed run the same tokens.
DAY = datetime.date(2026, 1, 1)
TODAY = re.compile(r"""strftime_now\((["'])(.*?)\1\)""")
NO_GRAMMAR = "constrained decoding is for --prompt_format tags-1: chat has no grammar"
HERMES = "<tool_call>", "</tool_call>"

QUESTION = [{"role": "user", "content": "Which probe?"}]
WORDS = "The words of a probe."
TOOLS = '[{"name": "probe_tool", "description": "Probe.", "parameters": {"key": {"description": "k", "type": "str"}}}]'
CALLS = [{"name": "probe_tool", "arguments": {"key": value}} for value in ("first value", "second value")]


class ChatFormat(NamedTuple):
    """The format of one chat template, with the names of prompt.PromptFormat."""

    markers: Markers
    tokenizer: PreTrainedTokenizerBase
    # The template leaves out calls, but asks for Hermes' form: they are in the content.
    calls_in_content: bool = False
    train_words: bool = True  # as they are; otherwise as an empty turn
    examples: str = ""  # text before each prompt, see few_shot.py

    @property
    def end_token(self):
        return self.markers.end_token

    @property
    def example_end(self):
        return self.end_token + "\n"

    @property
    def template(self):
        """The template's text. A tokenizer may have another one for requests with tools."""
        return self.tokenizer.get_chat_template(None, [{}])

    def ask(self, row):
        """The prompt of a Row. Raises ValueError if the template refuses its messages."""
        return self.examples + self.render(messages_of(row), row.tools, add_generation_prompt=True)

    def prompt(self, row):
        """As `ask`. Raises UserError."""
        try:
            return self.ask(row)
        except ValueError as error:
            raise UserError(f"row {row.id}: {error}" if row.id else str(error)) from None

    def texts(self, row):
        """The prompt and the completion of a Row, without the end token. Raises ValueError."""
        words = row.words if self.train_words else ""
        answer = {"role": "assistant", "content": words, "tool_calls": json.loads(row.answers)}
        return self.turn(messages_of(row), row.tools, answer)

    def check(self, row):
        """Raise ValueError unless the template writes the row's answer, and the answer is read
        back."""
        _, completion = self.texts(row)
        try:
            calls = self.parse(completion)
        except ValueError as error:
            raise ValueError(f"the answer is not read back: {error}") from None
        if not json_equal(calls, json.loads(row.answers)):
            raise ValueError("the answer is read back as other calls")

    def parse(self, text):
        return self.markers.parse(MARKS.sub("", text))

    def messages(self, row):
        return openai_messages(messages_of(row))

    def words(self, text):
        return self.markers.words(MARKS.sub("", text))

    def read(self, text, finish):
        return self.markers.read(text, finish)

    def lenient(self, text):
        return self.markers.lenient(text)

    def finished(self, text):
        return False  # a turn ends with its end token

    def closing(self):
        return None

    def sample(self):
        """The text of the format's hash."""
        tokens = self.tokenizer.bos_token, self.tokenizer.eos_token
        return f"{PARSER} {self.markers} {self.template} {tokens} {to_json(as_openai(TOOLS))}{self.examples}"

    def opening(self):
        """The text that begins the assistant's turn in a prompt."""
        return self.render(QUESTION, TOOLS, add_generation_prompt=True).removeprefix(self.render(QUESTION, TOOLS))

    def turn(self, messages, tools, answer):
        """The prompt of messages, and the text that the template adds for an answer, without the
        end token. Raises ValueError."""
        prompt = self.render(messages, tools, add_generation_prompt=True)
        whole = self.render([*messages, answer], tools)
        if not whole.startswith(prompt):
            raise ValueError("the chat template writes the answer after another text than its prompt")
        completion, end, _ = whole[len(prompt) :].rpartition(self.end_token)
        if not end:
            raise ValueError(f"the chat template does not end the answer with {self.end_token}")
        return prompt, completion

    def render(self, messages, tools, **options):
        """The template's text, with marks around the text of special tokens. tools: JSON text of
        flat tools. Raises ValueError with the template's reason."""
        messages = marked(self.tokenizer, [self.template_message(message) for message in messages])
        tools = marked(self.tokenizer, as_openai(tools)) or None
        template = TODAY.sub(lambda call: repr(DAY.strftime(call[2])), self.template)
        try:
            return self.tokenizer.apply_chat_template(
                messages, tools, chat_template=template, tokenize=False, **options
            )
        except Exception as error:  # a template raises any error of Jinja or Python
            raise ValueError(f"the chat template refuses its messages: {describe_error(error)}") from None

    def template_message(self, message):
        calls = message.get("tool_calls")
        if not calls:
            return {"role": message["role"], "content": message["content"]}
        if self.calls_in_content:
            texts = [f"{HERMES[0]}\n{to_json(call)}\n{HERMES[1]}" for call in calls]
            return {"role": "assistant", "content": "\n".join(filter(None, [message["content"], *texts]))}
        calls = [{"type": "function", "function": call} for call in calls]
        return {"role": "assistant", "content": message["content"], "tool_calls": calls}


def find_format(name, tokenizer, saved_hash=None):
    """The format of a name of PROMPT_FORMATS. saved_hash: an adapter's, of its training's format.
    Raises UserError if the format is `chat` and the template has no form of calls that is read
    here, or if it is not the adapter's."""
    found = PROMPT_FORMATS[name] or chat_format(tokenizer)
    if saved_hash not in (None, format_hash(found)):
        raise UserError(
            f"the chat template of {tokenizer.name_or_path}, or its reading by data_utils/chat_format.py, is not the "
            "adapter's training's: put it back"
        )
    return found


def chat_format(tokenizer):
    """The ChatFormat of a tokenizer's template, found by rendering a probe. Raises UserError."""
    name = tokenizer.name_or_path
    otherwise = "--prompt_format tags-1 needs no template"
    if mark_control_tokens is None:
        raise UserError(f"--prompt_format chat needs transformers 5.23, not {transformers.__version__}: {otherwise}")
    if not tokenizer.chat_template:
        raise UserError(f"{name} has no chat template: {otherwise}")
    try:
        found = ChatFormat(Markers("", "", False, "arguments", ""), tokenizer)
        if "probe_tool" not in (asking := found.render(QUESTION, TOOLS, add_generation_prompt=True)):
            raise ValueError("it ignores tools")
        found = found._replace(markers=find_end(found, asking))
        if "probe_tool" not in added(found, CALLS[:1]) and all(tag in asking for tag in HERMES):
            found = found._replace(calls_in_content=True)
        found = found._replace(markers=find_markers(found))
        check_probe(found)
    except ValueError as error:
        raise UserError(f"the chat template of {name} cannot be used: {error}; {otherwise}") from None
    return found


def added(found, calls=()):
    """The text that the template adds for the probe's answer: calls, or words."""
    answer = {"role": "assistant", "content": "" if calls else WORDS, "tool_calls": calls}
    return found.turn(QUESTION, TOOLS, answer)[1]


def find_end(found, asking):
    """Markers with the end token of a turn: the special token after the words."""
    answered = found.render([*QUESTION, {"role": "assistant", "content": WORDS}], TOOLS)
    rest = answered.removeprefix(asking).partition(WORDS)[2]
    token = special_tokens(found.tokenizer).search(rest)
    if not token or rest[: token.start()].strip():
        raise ValueError("no special token ends the assistant's turn")
    return found.markers._replace(end_token=token[0])


def find_markers(found):
    """The Markers around the probe's call. Raises ValueError if the call is no JSON object with a
    name and arguments."""
    thought = added(found).partition(WORDS)[0]
    text = added(found, CALLS[:1]).removeprefix(thought)
    name, arguments = CALLS[0].values()
    for brace in re.finditer(r"\{", text):
        value, end = opening_value(text[brace.start() :]) or ({}, 0)
        keys = [key for key in ("arguments", "parameters") if value == {"name": name, key: arguments}]
        if keys:
            break
    else:
        raise ValueError(f"it does not write a call as JSON with a name and arguments: {text[:80]!r}")
    start, close = text[: brace.start()].strip(), text[brace.start() + end :].strip()
    is_list = start.endswith("[") and close.startswith("]")
    if is_list:
        start, close = start[:-1].strip(), close[1:].strip()
    return Markers(start, close, is_list, keys[0], found.end_token)


def check_probe(found):
    """Raise ValueError unless the template's turns are read back: words, a call, and two calls if
    the template writes several."""
    turns = [[], CALLS[:1]]
    try:
        added(found, CALLS)
        turns.append(CALLS)
    except ValueError:  # Llama 3's: one call in a turn
        pass
    for calls in turns:
        text = added(found, calls)
        if not json_equal(found.parse(text), calls):
            raise ValueError(f"{text[:200]!r} is not read as {len(calls)} calls")


def messages_of(row):
    """The messages before a row's turn. Consecutive messages of the assistant are one, as in the
    rows' own turns."""
    if not row.messages:
        return [{"role": "user", "content": row.query}]
    messages = []
    for role, turn in itertools.groupby(json.loads(row.messages), key=lambda message: message["role"]):
        turn = list(turn)
        if role == "assistant":
            words = "\n".join(filter(None, [message["content"] for message in turn]))
            calls = [call for message in turn for call in message.get("tool_calls", [])]
            turn = [{"role": role, "content": words, "tool_calls": calls}]
        messages += turn
    return messages


def openai_messages(messages):
    """Messages as a client sends them: calls have ids, and results follow in the order of calls."""
    sent, ids = [], []  # the ids of calls without a result
    for message in messages:
        sent.append({"role": message["role"], "content": message["content"]})
        if message.get("tool_calls"):
            calls = openai_calls(message["tool_calls"])
            ids = [f"call_{len(sent)}_{number}" for number in range(len(calls))]
            sent[-1]["tool_calls"] = [call | {"id": call_id} for call, call_id in zip(calls, ids, strict=True)]
        elif message["role"] == "tool" and ids:
            sent[-1]["tool_call_id"] = ids.pop(0)
    return sent


@functools.lru_cache(maxsize=2**12)
def as_openai(tools):
    return openai_tools(json.loads(tools))
