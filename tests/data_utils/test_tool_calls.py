import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_utils.tool_calls import (
    Closing,
    answer_text,
    check_calls,
    check_tool,
    finished,
    has_value,
    json_equal,
    lenient_value,
    opening_value,
    parse_json,
)
from data_utils.tool_formats import flat_tools
from run_utils.files import MAX_DEPTH


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('[{"name": "f", "arguments": {"x": 1}}]', [{"name": "f", "arguments": {"x": 1}}]),
        (' {"a": [1.5, -0, 1e3, true, null, "é\\n"]} ', {"a": [1.5, 0, 1000.0, True, None, "é\n"]}),
        ('"[[[[{{{"', "[[[[{{{"),
        ('"' + "\\\\" + '"', "\\"),
        ("[" * MAX_DEPTH + "]" * MAX_DEPTH, None),
    ],
)
def test_strict_json_is_read(text, value):
    assert value is None or parse_json(text) == value
    parse_json(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nothing",
        "[NaN]",
        "[Infinity]",
        "[-Infinity]",
        "[1e999]",
        '{"a": 1, "a": 2}',
        '[{"b": {"a": 1, "a": 1}}]',
        "[1] [2]",
        "[1],",
        "[1, ]",
        "{'a': 1}",
        "[01]",
        '["\n"]',
        '["',
        "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
        "[" * 100_000,
        '{"a":' * 100_000,
        "9" * 10_000,
    ],
)
def test_other_text_is_not_json(text):
    with pytest.raises(ValueError):
        parse_json(text)


@pytest.mark.parametrize(
    "calls",
    [{}, 1, None, ["f"], [{"name": "f"}], [{"name": 1, "arguments": {}}], [{"name": "f", "arguments": []}],
     [{"name": "f", "arguments": {}, "id": 1}]],
)  # fmt: skip
def test_other_values_are_not_lists_of_calls(calls):
    with pytest.raises(ValueError):
        check_calls(calls)


@pytest.mark.parametrize(
    "tool", [1, {}, {"name": None}, {"name": "f", "parameters": []}, {"name": "f", "parameters": {"x": "str"}}]
)
def test_other_values_are_not_tools(tool):
    with pytest.raises(ValueError):
        check_tool(tool)


def test_lists_may_be_empty():
    check_calls([])
    assert flat_tools([]).tools == []


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("[1]</answer>", "[1]"),
        (" [1] \n</answer> [2]</answer>", "[1]"),
        ('["</answer>"] </answer>', '["</answer>"]'),
        (r'["\"</answer>"]</answer>', r'["\"</answer>"]'),
        ('no idea, 5" at most</answer> [1]', 'no idea, 5" at most'),
        ('["never closed</answer>', '["never closed</answer>'),
        ("[1", "[1"),
    ],
)
def test_an_answer_ends_at_a_closing_tag_outside_strings(text, answer):
    assert answer_text(text) == answer


@pytest.mark.parametrize(
    ("seen", "more"),  # finished exactly at the end of `seen`; never if it is empty
    [
        ('[{"name": "f", "arguments": {}}] a', "nd so on"),
        ('{"a": "}"}\n\n[', "1]"),
        ('["\\"]"] x', ""),
        ("[]\n</answer>", " more"),
        ("[]</answ.", ""),
        ("[1] <b", ""),
        ("", "no idea</answer> [1]"),
        ("", "[TOOL_CALLS] [1] x"),
        ("", "[NaN] x"),
        ("", '{"a": 1, "a": 2} x'),
        ("", "[[1, 2], [3"),
        ("", "  [1]   "),
        ("", "[1] </answer"),
    ],
)
def test_a_text_is_finished_if_no_closing_tag_can_follow_its_value(seen, more):
    cuts = [finished((seen + more)[:length]) for length in range(len(seen + more) + 1)]
    assert cuts == ([False] * len(seen) + [True] * (len(more) + 1) if seen else [False] * len(cuts))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats(-2, 2) | st.text(max_size=3),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=2), values, max_size=3),
)


@given(JSON_VALUES, JSON_VALUES)
def test_json_equality_is_the_equality_of_typed_values(a, b):
    """Compared with the equality of typed values, in which only integers and floats are one
    type."""

    def typed(value):
        if isinstance(value, list):
            return "list", [typed(element) for element in value]
        if isinstance(value, dict):
            return "dict", sorted((key, typed(element)) for key, element in value.items())
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return "number" if number else type(value).__name__, str(float(value) + 0.0) if number else str(value)

    assert json_equal(a, a) and json_equal(a, json.loads(json.dumps(a)))
    assert json_equal(a, b) == json_equal(b, a) == (typed(a) == typed(b))


def test_true_is_not_one_at_any_depth():
    for pair in ((True, 1), (False, 0), ([[{"a": True}]], [[{"a": 1}]]), ({"a": 0.0}, {"a": False}), ("1", 1)):
        assert not json_equal(*pair)
    assert json_equal({"a": 5, "b": [1.0]}, {"b": [1], "a": 5.0}) and not json_equal([1, 2], [2, 1])


@pytest.mark.parametrize("text", ["[" * 10_000, '{"a":[' * 50_000, '["' + "[" * 2_000_000, '["' + '\\"' * 10**6 + "\\"])
def test_long_unclosed_texts_have_no_value(text):
    assert lenient_value(text) is None and not finished(text)


PIECES = st.sampled_from(
    ['[', ']', '{', '}', '"', '\\', '"a": ', '"b":', ', ', ',', '1', '1e999', 'NaN', ' ', '\n', 'x', '\u3000', 'é',
     '[{', '}]',
     '{"a": 1}', '[{"a": 2}, {}]', '"[{"', '\\"', '</answer>', '</', '```json\n[]', '[' * (MAX_DEPTH - 1),
     '}' * MAX_DEPTH,
     '{"a":' * MAX_DEPTH, '[{"a":' * 40 + '0' + '}]' * 40]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=12).map("".join)


def value_by_trying(text):
    """The definition of lenient_value in quadratic time: strict parsing at every place."""
    if opening := opening_value(text):
        return opening[0]
    if re.match(r"\s*```\w*\s*\[\s*\]", text):
        return []
    for start in re.finditer(r"\{|\[(?=\s*\{)", text):
        for end in re.finditer(r"[\]}]", text):  # at most one end gives a value
            try:
                value = parse_json(text[start.start() : end.end()])
            except ValueError:
                continue
            if isinstance(value, dict) or all(isinstance(element, dict) for element in value):
                return value
    return None


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_the_forgiving_parser_finds_the_first_value_that_parses_strictly(text):
    assert lenient_value(text) == value_by_trying(text)


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=12))
def test_closing_is_true_at_the_piece_that_finishes_a_text(pieces):
    closing, asked = Closing(), []
    for place in range(len(pieces)):
        text = "".join(pieces[: place + 1])
        if (ask := closing.add(pieces[place].replace("\u3000", "\N{REPLACEMENT CHARACTER}"))) and not has_value(text):
            assert not finished("".join(pieces))  # no value will ever close
            return
        asked.append(ask)
        if finished(text):
            assert ask and not any(map(finished, ("".join(pieces[:end]) for end in range(place + 1))))
            return


def test_closing_is_true_at_most_once_for_trailing_whitespace_and_inner_values():
    for pieces in (["[]", *["\n"] * 50], ["[", *["{}", ","] * 50], ["no [", *["]", "["] * 50]):
        closing = Closing()
        assert sum(map(closing.add, pieces)) <= 1
