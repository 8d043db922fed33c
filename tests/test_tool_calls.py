import pytest

from data_utils.tool_calls import MAX_DEPTH, check_calls, check_tools, parse_json


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
def test_everything_else_is_refused(text):
    with pytest.raises(ValueError):
        parse_json(text)


@pytest.mark.parametrize(
    "calls",
    [{}, 1, None, ["f"], [{"name": "f"}], [{"name": 1, "arguments": {}}], [{"name": "f", "arguments": []}],
     [{"name": "f", "arguments": {}, "id": 1}]],
)  # fmt: skip
def test_what_is_not_a_list_of_calls(calls):
    with pytest.raises(ValueError):
        check_calls(calls)


@pytest.mark.parametrize("tools", [{}, None, [1], [{}], [{"name": None}], [{"name": "f"}, {"name": "f"}]])
def test_what_is_not_a_list_of_tools(tools):
    with pytest.raises(ValueError):
        check_tools(tools)


def test_no_calls_and_no_tools_are_lists():
    check_calls([])
    check_tools([])
