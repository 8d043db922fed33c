"""A row and a model's answer to it, as the metrics read them."""

import functools
import json

from data_utils.tool_calls import check_calls, opening_value, parse_answer
from data_utils.tool_schema import tool_schema
from eval_utils.grounding import Sources
from eval_utils.matching import num_equal_calls, pair_calls


def kept_for_one(function):
    """A property that is computed once for an object, and again if another object's was asked for
    since. Of 200,000 rows, all values would take gigabytes."""
    return property(functools.lru_cache(maxsize=1)(function))


@functools.lru_cache(maxsize=2**14)  # rows share tools
def read_tool(text):
    """A tool in JSON, and the JSON Schema of its arguments. Do not change them in place."""
    tool = json.loads(text)
    return tool, tool_schema(tool)


class Task:
    """A row, parsed once for all systems.

    gold: the wanted calls. tools: the tools on offer. schemas: `{tool name: JSON Schema of its
    arguments}`. sources: see Sources. acceptable, required: the columns' values.
    """

    def __init__(self, row):
        self.row = row
        self.gold = json.loads(row.answers)
        tools = [read_tool(json.dumps(tool)) for tool in json.loads(row.tools)]
        self.tools = [tool for tool, _ in tools]
        self.schemas = {tool["name"]: schema for tool, schema in tools}
        self.acceptable = json.loads(row.acceptable) if row.acceptable else None
        self.required = json.loads(row.required) if row.required else {}

    @kept_for_one
    def sources(self):
        return Sources(self.row.query, self.tools)


class Output:
    """A model's answer to one Task: the text, and the value that the prompt format reads from it.

    finish: the reason for the end of generation (Generation.finish). is_list: the text is a JSON
    list of calls whatever the prompt format, such as a server's tool_calls. parsed: whether the
    whole text is one JSON value, or a chat's turn. error: the parser's ValueError, or None. value:
    the value, or None. calls: the value if it is a list of calls, or None.
    """

    def __init__(self, task, text, prompt_format, finish="end", *, is_list=False):
        self.task, self.gold, self.tools = task, task.gold, task.tools
        self.text, self.finish, self.prompt_format, self.is_list = text, finish, prompt_format, is_list
        self.value = self.error = None
        try:
            self.value = parse_answer(text) if is_list else prompt_format.read(text, finish)
        except ValueError as error:
            self.error = error
        try:
            check_calls(self.value)
            self.calls = self.value
        except ValueError:
            self.calls = None

    @property
    def parsed(self):
        return self.error is None

    @property
    def schemas(self):
        return self.task.schemas

    @property
    def sources(self):
        return self.task.sources

    @kept_for_one
    def lenient(self):
        """A forgiving parser's value, for upper bounds: the published figures' parser
        is unknown."""
        return self.prompt_format.lenient(self.text)

    @property
    def words(self):
        """The words of a chat's turn; empty if the turn is broken."""
        return self.prompt_format.words(self.text) if self.parsed and not self.is_list else ""

    @kept_for_one
    def opening(self):
        return opening_value(self.text)

    @kept_for_one
    def pairs(self):
        """Calls paired with gold calls of the same name (see pair_calls)."""
        calls = self.calls or []
        return [(calls[i], self.gold[j]) for i, j in pair_calls(calls, self.gold)]

    @kept_for_one
    def num_right_calls(self):
        return num_equal_calls(self.calls or [], self.gold)
