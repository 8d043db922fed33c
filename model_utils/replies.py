"""Generated texts read as calls, or the reason for a failure."""

import codecs
import json
import sys
from typing import NamedTuple

from data_utils.prompt import to_json
from data_utils.tokens import encode_prompts
from data_utils.tool_calls import check_calls
from data_utils.tool_formats import openai_calls
from data_utils.tool_schema import call_problems
from model_utils.model_facts import num_positions
from run_utils.files import encodes


class Reply(NamedTuple):
    text: str  # as generated
    calls: list | None  # None if the text is not a list of calls
    problem: str  # the reason if calls is None
    misfits: list  # a sentence for each difference between calls and tools
    words: str = ""  # of a chat's turn

    @property
    def remarks(self):
        """Sentences about the reply, for people."""
        if self.calls is None:
            return [f"no list of calls: {self.problem}"]
        return [*([f"in words: {self.words}"] if self.words else []), *self.misfits]


def replies(system, requests, on_token=None):
    """`(index, Reply)` of each request to a System, in order of completion."""
    for index, generation in system.answer(requests, on_token):
        yield index, read_reply(system, requests[index], generation)


def read_reply(system, request, generation):
    """The Reply in a Generation."""
    positions = num_positions(system.model.config)
    if generation.finish == "too_long":
        prompt = system.prompt_format.prompt(request)
        (ids,) = encode_prompts(system.tokenizer, [prompt], system.prompt_format.end_token)
        problem = f"the prompt has {len(ids)} tokens and the model {positions} positions: offer fewer tools"
        return Reply("", None, problem, [])
    try:
        calls = system.prompt_format.read(generation.text, generation.finish)
        check_calls(calls)
    except ValueError as error:
        problem = str(error)
        if generation.finish == "length":
            by_budget = generation.num_tokens == system.max_new_tokens
            limit = f"--max_new_tokens {system.max_new_tokens}" if by_budget else f"the model's {positions} positions"
            problem = f"cut off at {limit}"
        return Reply(generation.text, None, problem, [])
    words = system.prompt_format.words(generation.text)
    return Reply(generation.text, calls, "", call_problems(calls, json.loads(request.tools)), words)


def as_text(calls, form):
    """The calls as JSON in UTF-8 or, if stdout cannot hold it, in ASCII."""
    value = openai_calls(calls) if form == "openai" else calls
    utf8 = codecs.lookup(sys.stdout.encoding).name == "utf-8"
    return to_json(value) if utf8 and encodes(to_json(value)) else json.dumps(value)
