"""The chat template and response template of an exported tokenizer: only lists of calls become
tool_calls."""

import json

import hypothesis.strategies as st
import pytest
from conftest import ROOT
from hypothesis import given
from transformers import AutoTokenizer
from transformers.utils.chat_parsing import ResponseParser

from data_utils.chat import chat_template, response_template
from data_utils.prompt import render_tags, to_json
from data_utils.written_calls import flat_calls

TOKENIZER = AutoTokenizer.from_pretrained(ROOT / "demo" / "base")
TOKENIZER.response_template = response_template(TOKENIZER)
END = TOKENIZER.eos_token
PREFIX = render_tags("what follows <answer>\n is mine", "[]")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
NAMES = st.from_regex(r"[A-Za-z_.\- é]{1,9}", fullmatch=True)
CALL = st.builds(
    lambda name, arguments: {"name": name, "arguments": arguments},
    NAMES,
    st.dictionaries(st.text(), VALUES, max_size=3),
)
CALLS = st.lists(CALL, max_size=3)


def test_a_conversation_s_token_ids_are_those_of_training_s_prompt():
    messages = [{"role": "user", "content": "Is it raining in Rome?"}]
    prompt = render_tags(messages[0]["content"], to_json([{"name": "f", "description": "d", "parameters": {}}]))
    ids = TOKENIZER.apply_chat_template(
        messages,
        tools=[{"type": "function", "function": {"name": "f", "description": "d"}}],
        chat_template=chat_template(TOKENIZER, "tags-1"),
        add_generation_prompt=True,
        return_dict=False,
    )
    assert ids == TOKENIZER(prompt, add_special_tokens=False).input_ids


def streamed(text, cut):
    parser = ResponseParser(TOKENIZER.response_template, prefix=PREFIX)
    for start in range(0, len(text), cut):
        parser.feed(text[start : start + cut])
    return parser.finalize()[0]


@given(CALLS, st.integers(1, 7), st.sampled_from(["", END]))
def test_a_list_of_calls_becomes_tool_calls_with_the_model_s_own_arguments(calls, cut, end):
    text = to_json(calls)
    message = TOKENIZER.parse_response(text + end, prefix=PREFIX)
    assert streamed(text + end, cut) == message
    if not calls:
        assert message == {"role": "assistant", "content": "[]"}
        return
    assert set(message) == {"role", "tool_calls"}
    assert flat_calls(message["tool_calls"]) == calls
    for call, expected in zip(message["tool_calls"], calls, strict=True):
        assert call["function"]["arguments"] == to_json(expected["arguments"])  # to the last character


@given(CALLS.filter(bool), st.data())
def test_a_truncated_list_is_content(calls, data):
    text = to_json(calls)
    cut = data.draw(st.integers(1, len(text) - 1))
    assert TOKENIZER.parse_response(text[:cut], prefix=PREFIX) == {"role": "assistant", "content": text[:cut].strip()}


@pytest.mark.parametrize(
    "text",
    [
        "I cannot do that.",
        '[{"name": "f", "arguments": {}}] and more',
        '[{"name": "f", "arguments": {"a": 01}}]',
        '[{"name": "f"}]',
        '[{"name": "f", "arguments": {}}, 3]',
        '{"name": "f", "arguments": {}}',
        '[{"arguments": {}, "name": "f"}]',  # training writes the name first
    ],
)
def test_anything_else_is_content(text):
    assert TOKENIZER.parse_response(text + END, prefix=PREFIX) == {"role": "assistant", "content": text}


def test_arguments_keep_the_model_s_types():
    """transformers casts the arguments of objects to the tools' types; evaluation does not."""
    tools = [{"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}]
    message = TOKENIZER.parse_response('[{"name": "f", "arguments": {"a": "7"}}]', prefix=PREFIX, tools=tools)
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"a": "7"}
