import json

import pytest

from data_utils.tool_calls import MAX_DEPTH, check_calls, check_tools, parse_json, score, wilson_interval


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


TOOLS = [{"name": "f"}, {"name": "g"}]
GOLD = [{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}]


@pytest.mark.parametrize(
    ("text", "gold", "strict", "lenient"),  # json_valid, exact_match, tools_exist
    [
        (json.dumps(GOLD), GOLD, "111", "111"),
        (f" \n{json.dumps(GOLD)}\n</answer> more", GOLD, "111", "111"),
        (json.dumps(GOLD[::-1]), GOLD, "101", "101"),
        (json.dumps(GOLD[0]), GOLD, "101", "101"),
        (f"```json\n{json.dumps(GOLD)}\n```", GOLD, "000", "111"),
        (f"Sure: {json.dumps(GOLD)}", GOLD, "000", "111"),
        (json.dumps(GOLD) + "]", GOLD, "000", "111"),
        ('[{"name": "h", "arguments": {}}]', GOLD, "100", "100"),
        ('[{"function": "f", "args": {"x": 1}}]', GOLD, "100", "101"),
        ('[{"name": ["f"], "arguments": {}}]', GOLD, "100", "100"),
        ('["f"]', GOLD, "100", "101"),
        ("[]", [], "111", "111"),
        ("[]", GOLD, "100", "100"),
        (json.dumps(GOLD), [], "101", "101"),
        ("{}", GOLD, "100", "101"),
        ("1", GOLD, "000", "000"),
        ("null", GOLD, "000", "000"),
        ("", GOLD, "000", "000"),
        ('[{"name": "f", "arguments": {"x": NaN}}]', GOLD, "000", "100"),
        ('[{"name": "f", "name": "f"}]', GOLD, "000", "000"),
        ("[" * 100_000, GOLD, "000", "000"),
        ("prose with [a note] and then [1]", [1], "000", "111"),
    ],
)
def test_scores(text, gold, strict, lenient):
    verdicts = score(text, gold, TOOLS)
    names = ("json_valid", "exact_match", "tools_exist")
    assert "".join(str(int(verdicts[name])) for name in names) == strict
    if text not in ('[{"name": "f", "arguments": {"x": NaN}}]', "prose with [a note] and then [1]"):
        assert "".join(str(int(verdicts[f"lenient_{name}"])) for name in names) == lenient
    for name in names:
        assert verdicts[f"lenient_{name}"] >= verdicts[name]  # a bound is a bound


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),  # R: binom::binom.wilson; n = 101 as published
    [(81, 101, 0.7138, 0.8680), (0, 10, 0, 0.2775), (10, 10, 0.7225, 1), (800, 1000, 0.7741, 0.8236), (0, 0, 0, 1)],
)
def test_wilson_interval(k, n, low, high):
    assert wilson_interval(k, n) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
