"""Each row has exactly one outcome, and each error moves only its own figures."""

import copy
import json

import pytest
from conftest import TAGS
from hypothesis import given
from hypothesis import strategies as st

from data_utils.prompt import to_json
from data_utils.rows import Row
from data_utils.tool_schema import conforms
from demo.rows import generate_rows
from eval_utils.metrics import METRICS, score
from eval_utils.outcomes import OUTCOMES, call_table, kind_of_answer, what_followed
from eval_utils.outputs import Output, Task

SPEC = {
    "city": {"type": "str", "description": "a city"},
    "days": {"type": "int, optional", "default": 3},
    "wind": {"type": "bool, optional"},
}
TOOLS = [
    {"name": "weather", "description": "d", "parameters": SPEC},
    {"name": "time", "parameters": {"city": SPEC["city"]}},
]
ROME = {"name": "weather", "arguments": {"city": "Rome", "days": 5}}
OSLO = {"name": "weather", "arguments": {"city": "Oslo"}}
GOLD = [ROME, OSLO]


def scored(value, gold=GOLD, finish="end", tools=TOOLS, query="The weather in Rome for 5 days, and in Oslo?"):
    text = value if isinstance(value, str) else to_json(value)
    return score(Output(Task(Row("x", query, to_json(tools), to_json(gold))), text, TAGS, finish))


def changed(path, value):
    calls = copy.deepcopy(GOLD)
    *way, last = path
    place = calls
    for step in way:
        place = place[step]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return calls


# A mutation of GOLD; its outcome; the rates that stay true (of the rates that are true for gold).
RATES = ["json_valid", "exact_match", "tools_exist", "no_hallucination", "exact_typed", "exact_any_order",
         "exact_schema_aware", "names_match"]  # fmt: skip
VALID = {"json_valid", "tools_exist"}
CASES = {
    "gold itself": (GOLD, "right", set(RATES)),
    "float for int": (changed([0, "arguments", "days"], 5.0), "right", set(RATES) - {"exact_typed"}),
    "swapped": (GOLD[::-1], "order only", set(RATES) - {"exact_match", "exact_typed"}),
    "renamed tool": (changed([0, "name"], "climate"), "unknown tool", {"json_valid"}),
    "another tool": (changed([1, "name"], "time"), "wrong tool", VALID | {"no_hallucination"}),
    "dropped call": (GOLD[:1], "missing call", VALID | {"no_hallucination"}),
    "duplicated call": ([*GOLD, OSLO], "extra call", VALID | {"no_hallucination"}),
    "no call": ([], "missed call", {"json_valid"}),
    "dropped argument": (changed([0, "arguments", "days"], None), "missing argument", VALID | {"no_hallucination", "names_match"}),
    "unknown argument": (changed([0, "arguments", "unit"], "Rome"), "unknown argument", VALID | {"names_match"}),
    "extra argument": (changed([1, "arguments", "wind"], True), "extra argument", VALID | {"no_hallucination", "names_match"}),
    "default given": (changed([1, "arguments", "days"], 3), "extra argument",
                      VALID | {"no_hallucination", "names_match", "exact_schema_aware"}),
    "retyped": (changed([0, "arguments", "days"], "5"), "wrong type",
                VALID | {"no_hallucination", "names_match", "exact_schema_aware"}),
    "true for 1": (changed([0, "arguments", "days"], True), "wrong type", VALID | {"no_hallucination", "names_match"}),
    "value from the query": (changed([0, "arguments", "city"], "Oslo"), "wrong value", VALID | {"no_hallucination", "names_match"}),
    "value from nowhere": (changed([0, "arguments", "city"], "Bergen"), "wrong value", VALID | {"names_match"}),
    "a call alone": (ROME, "wrong shape", VALID),
    "arguments a list": ([{"name": "weather", "arguments": ["Rome"]}], "wrong shape", VALID),
    "arguments a string": ([{"name": "weather", "arguments": '{"city": "Rome"}'}], "wrong shape", VALID),
    "name not a string": ([{"name": 1, "arguments": {}}], "wrong shape", {"json_valid"}),
    "other keys": ([{"function": "weather", "args": {}}], "wrong shape", {"json_valid"}),
    "a number": ("5", "wrong shape", set()),
    "NaN": ('[{"name": "weather", "arguments": {"days": NaN}}]', "unparseable", set()),
    "duplicate key": ('[{"name": "weather", "name": "time", "arguments": {}}]', "unparseable", set()),
    "trailing text": (to_json(GOLD) + " Done.", "unparseable", set()),
    "fence": (f"```json\n{to_json(GOLD)}\n```", "unparseable", set()),
    "refusal in prose": ("I cannot help with that.", "unparseable", set()),
    "deep nesting": ("[" * 10_000 + "]" * 10_000, "unparseable", set()),
    "half a surrogate pair": ('[{"name": "\\ud800", "arguments": {}}]', "unknown tool", {"json_valid"}),
    "empty": ("", "unparseable", set()),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_way_to_be_wrong_has_its_outcome_and_moves_its_own_figures(case):
    value, name, still_true = CASES[case]
    scores = scored(value)
    assert scores["outcome"] == name
    assert {metric for metric in RATES if scores[metric]} == still_true


def test_rows_without_a_call_and_budgets():
    assert scored([], gold=[])["outcome"] == "right" and scored([ROME], gold=[])["outcome"] == "over-call"
    assert (scored([ROME], gold=[])["over_call"], scored([], gold=[])["over_call"], scored([])["over_call"]) == (
        True,
        False,
        None,
    )
    assert scored("no", gold=[])["over_call"] is False  # broken, and so no call
    assert (scored([])["missed_call"], scored("no")["missed_call"], scored([], gold=[])["missed_call"]) == (
        True,
        False,
        None,
    )
    assert scored(to_json(GOLD)[:30], finish="length")["outcome"] == "cut off"
    for text in ("[] </ans", '[{"name":"f","arguments":{}}] and so', "[} junk", '{"a": 1, "a": 2}</answer> [', "["[:0]):
        assert scored(text, finish="length")["outcome"] == "unparseable"
    assert (
        scored('["\\\\"] so', finish="length")["outcome"] == "unparseable"
    )  # the backslash is escaped, and not the quote
    for text in ('[{"a": "]}', '[{"a": "\\"]', "[[]"):
        assert scored(text, finish="length")["outcome"] == "cut off"
    assert scored("null")["outcome"] == "wrong shape"
    assert scored("I think that", finish="length")["outcome"] == "unparseable"
    assert scored("", finish="too_long")["outcome"] == "prompt too long"
    assert scored([], gold=[], tools=[])["outcome"] == "right"


def test_diagnostics_count_calls_and_arguments():
    scores = scored([OSLO, changed([0, "arguments", "unit"], "km")[0], {"name": "time", "arguments": {}}])
    assert (scores["call_precision"], scores["call_recall"], scores["call_f1"]) == ((1, 3), (1, 2), (2, 5))
    assert (scores["argument_precision"], scores["argument_recall"]) == ((3, 4), (3, 3))
    assert scores["required_coverage"] == (2, 3) and scores["unknown_arguments"] == (1, 4)
    assert scores["schema_conformity"] == (1, 3) and scores["hallucinated_values"] == (1, 4)
    undeclared = {"name": "time", "arguments": {"city": "Rome", "zone": "CET", "unit": "h"}}
    assert scored([OSLO, undeclared])["unknown_arguments"] == (2, 4)


def test_the_required_column_and_acceptable_values_are_the_rows_own():
    row = Row("x", "q", to_json(TOOLS), to_json([OSLO]), acceptable='[{"weather": {"city": ["Oslo"], "days": [3, ""]}}]',
              required='{"weather": ["city", "days"]}')  # fmt: skip
    scores = score(Output(Task(row), '[{"name": "weather", "arguments": {"city": "oslo", "days": 3}}]', TAGS))
    assert scores["acceptable_match"] is True and scores["required_coverage"] == (2, 2)
    assert scored([OSLO])["acceptable_match"] is None


def test_calls_abstentions_and_broken_outputs_are_told_apart():
    row = Row("x", "q", to_json(TOOLS), to_json(GOLD))
    none = row._replace(answers="[]")
    outputs = [Output(Task(r), text, TAGS) for r in (row, none) for text in (to_json([OSLO]), "[]", "no", "{}")]
    assert [kind_of_answer(output) for output in outputs[:4]] == ["calls", "abstains", "broken", "broken"]
    counts = {"calls": 1, "abstains": 1, "broken": 2}
    assert call_table(outputs) == {"gold_calls": counts, "gold_none": counts}


@pytest.mark.parametrize(
    ("after", "name"),
    [("", "end"), ("\n</answer>", "closing tag"), ("\n```", "fence"), (" [1]", "another value"), (" so", "prose")],
)
def test_the_text_after_the_value_has_a_name(after, name):
    row = Row("x", "q", "[]", "[]")
    assert what_followed(Output(Task(row), f"[] {after}", TAGS)) == name
    assert what_followed(Output(Task(row), f"Sure: [] {after}", TAGS)) == "no value"


def test_types_are_those_of_json_and_not_of_python():
    assert conforms(5, {"type": "integer"}) and conforms(5, {"type": "number"})
    assert not conforms(True, {"type": "integer"}) and not conforms(5.0, {"type": "integer"})
    assert conforms({"a": 1}, {}) and not conforms("5", {"type": "number"})


@pytest.fixture(scope="module")
def demo_rows():
    return [Row(r["id"], r["query"], r["tools"], r["answers"]) for r in generate_rows(60, seed=5)]


def test_gold_is_right_by_every_metric_that_compares_with_gold(demo_rows):
    for row in demo_rows:
        scores = score(Output(Task(row), row.answers, TAGS))
        assert scores["outcome"] == "right" and all(scores[name] for name in RATES)
        for name, metric in METRICS.items():
            if metric.kind == "ratio":
                k, n = scores[name]
                assert k == (0 if name in ("unknown_arguments", "hallucinated_values") else n)


FRAGMENTS = st.sampled_from([*' "\\[]{},:', "</answer>", '"name": ', '"arguments": ', '"weather"', '"city"', "true", "1",
                             to_json(ROME), to_json(GOLD), "[]", "prose", "\ud800"])  # fmt: skip
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.text(max_size=3),
    lambda values: (
        st.lists(values, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "arguments", "city", "days", "x"]), values, max_size=3)
    ),
)


@given(st.lists(FRAGMENTS, max_size=8).map("".join) | JSON_VALUES.map(json.dumps), st.sampled_from(["end", "length"]))
def test_every_text_has_exactly_one_outcome_and_the_ladder_is_one(text, finish):
    for gold in (GOLD, [OSLO], []):
        scores = scored(text, gold, finish)
        assert scores["outcome"] in OUTCOMES and (scores["outcome"] == "right") == scores["exact_match"]
        assert (
            scores["exact_typed"] <= scores["exact_match"] <= scores["exact_any_order"] <= scores["exact_schema_aware"]
        )
        assert scores["no_hallucination"] <= scores["tools_exist"] <= scores["json_valid"]
        for name, metric in METRICS.items():
            if metric.kind == "ratio":
                assert 0 <= scores[name][0] <= scores[name][1]


@pytest.mark.parametrize(("declared", "gold", "given"), [("str", 1, 1.0), ("float", "NaN", "NaN"), ("int", 1, 1.0)])
def test_the_last_step_of_the_ladder_contains_the_others(declared, gold, given):
    tools = [{"name": "f", "parameters": {"x": {"type": declared}, "y": {"type": "float", "default": "NaN"}}}]
    calls = [[{"name": "f", "arguments": {"x": value}}] for value in (gold, given)]
    scores = scored(calls[1], gold=calls[0], tools=tools)
    assert scores["exact_match"] and scores["exact_any_order"] and scores["exact_schema_aware"]
