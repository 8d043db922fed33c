"""The leaderboard's AST match: a table for each rule, and properties of all rows and of all
permitted and forbidden changes."""

import copy
import itertools
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from eval_utils.ast_match import ast_match


def one_argument(value, accepted, declared):
    """Whether a call with one argument matches."""
    tools = [{"name": "f", "parameters": {"x": {"type": declared} if declared else {}}}]
    return ast_match([{"name": "f", "arguments": {"x": value}}], [{"f": {"x": accepted}}], tools)


@pytest.mark.parametrize(
    ("value", "accepted", "declared", "passes"),
    [
        # Numbers: an int may stand for a float, nothing else for anything.
        (5, [5], "int", True),
        (5, [4, 5], "int", True),
        (6, [4, 5], "int", False),
        (5.0, [5], "int", False),
        (5, [5.0], "float", True),
        (5.0, [5], "float", True),
        (5, [5], "float", True),
        (5.5, [5.0], "float", False),
        ("5", [5], "int", False),
        ("5.0", [5.0], "float", False),
        (5, ["5"], "str", False),
        (10**400, [1e308], "float", False),
        # A bool is no number, whatever Python says.
        (True, [1], "int", False),
        (1, [True], "bool", False),
        (False, [0.0], "float", False),
        ("true", [True], "bool", False),
        (True, [True], "bool, optional", True),
        (False, [True], "bool", False),
        (None, [1], "int", False),
        (None, ["", None], "int, optional", True),
        (5, ["", 5], None, True),  # the type is that of the first value that is one
        ("5", ["", 5], None, False),
        (5, [5], "Optional", True),  # of nothing: as without a type
        (5, [5], "Optional[int]", True),
        (True, [5], "Optional[int]", False),
        # Strings: without case, spaces and some punctuation.
        ("NEW YORK, N.Y.", ["New York, NY"], "str", True),
        ("april 1 2024", ["April 1,2024"], "str", True),
        ("a-b_c*d^e/f.g,h", ["ABCDEFGH"], "str", True),
        ("it's", ['it"s'], "str", True),
        ("New York!", ["New York"], "str", False),
        ("New\tYork", ["New York"], "str", False),
        ("", ["a"], "str", False),
        ("", ["a", ""], "str", True),
        # Accepted variable names, or words instead of a number, match to the letter.
        ("data['sales']", ["data['sales']"], "List[float]", True),
        ("data['Sales']", ["data['sales']"], "List[float]", False),
        ("dontcare", ["", "dontcare"], "int, optional", True),
        ("DontCare", ["", "dontcare"], "int, optional", False),
        (True, ["", True], "str", True),
        # Lists: order, length and the elements' types.
        ([1, 2], [[1, 2]], "List[int]", True),
        ([2, 1], [[1, 2]], "List[int]", False),
        ([2, 1], [[1, 2], [2, 1]], "List[int]", True),
        ([1], [[1, 2]], "List[int]", False),
        ([1, 2, 2], [[1, 2]], "List[int]", False),
        ([1, 2.0], [[1, 2]], "List[int]", False),
        ([1, 2.0], [[1, 2], ""], "List[int], optional", False),
        ([True], [[1], ""], "List[int], optional", False),
        ([1, 2], [[1.0, 2.0]], "List[float]", True),
        ([1.0, 2.0], [[1, 2]], "List[float]", True),
        (["1"], [[1]], "List[int]", False),
        (["New-York"], [["new york"]], "List[str]", True),
        # A wrong declaration: the leaderboard has such a row.
        (["apple"], [["Apple"]], "List[int]", True),
        ([["apple"]], [["Apple"], [["Apple"]]], "List[str]", True),
        ("a", [["a"]], "List[str]", False),
        (["a"], ["a"], "str", False),
        ([], [["a"], ""], "List[str], optional", False),
        ([], [[]], "List[str]", True),
        ([[1, 2], [3]], [[[1, 2], [3]]], "List[List[int]]", True),
        ([[1, 2.0], [3]], [[[1, 2], [3]]], "List[List[int]]", False),
        ([[1, 2.0]], [[[1, 2]]], "List[List[float]]", True),
        ([[1, 2], [3.0]], [[[1, 2], [3]]], "list", False),
        ([1, 2], [[1, 2]], "Tuple[int, int]", True),
        # Objects: key by key against lists of values. The types inside are not declared.
        ({"a": 1}, [{"a": [1]}], "dict", True),
        ({"a": 1.0}, [{"a": [1]}], "dict", True),
        ({"a": True}, [{"a": [1]}], "dict", False),
        ({"a": "1"}, [{"a": [1]}], "dict", False),
        ({"a": "B-C"}, [{"a": ["x", "bc"]}], "dict", True),
        ({"a": 2, "b": 1}, [{"b": [1], "a": [1, 2]}], "dict", True),
        ({"a": 1}, [{"a": [1], "b": [2]}], "dict", False),
        ({"a": 1}, [{"a": [1], "b": [2, ""]}], "dict", True),
        ({"a": 1, "b": 3}, [{"a": [1], "b": [2, ""]}], "dict", False),
        ({"a": 1, "c": 3}, [{"a": [1]}], "dict", False),
        ({"a": 2, "b": 2}, [{"a": [1], "b": [2]}, {"a": [2], "b": [1]}], "dict", False),
        ({}, [{"a": [1, ""]}], "dict", True),
        ({}, [{"a": [1]}, ""], "dict, optional", False),
        ({"a": ["B", 1]}, [{"a": [["b", 1]]}], "dict", True),
        ({"a": ["B", True]}, [{"a": [["b", 1]]}], "dict", False),
        ({"a": [1, 2]}, [{"a": [[1]]}], "dict", False),
        ({"a": 1}, [{"a": 1}], "dict", False),
        ({"a": {"b": "C", "d": 1}}, [{"a": [{"d": 1, "b": "c"}]}], "dict", True),
        ({"a": {"b": "C"}}, [{"a": [{"d": 1, "b": "c"}]}], "dict", False),
        ([{"a": 1}, {"b": "C"}], [[{"a": [1, 2]}, {"b": ["c"]}]], "List[dict]", True),
        ([{"b": "C"}, {"a": 1}], [[{"a": [1, 2]}, {"b": ["c"]}]], "List[dict]", False),
        ([{"a": 1}], [[{"a": [1, 2]}, {"b": ["c"]}]], "List[dict]", False),
        (["a"], [[{"a": [1]}]], "List[dict]", False),
        ([1], [{"a": [1]}], "dict", False),
        # Informal types, or none: then the accepted value's type.
        (5, [5.0], " Number , optional", True),
        (5.0, [5], "integer", False),
        (5, [5.0], "Optional[float]", True),
        (5.0, [5], "Optional[float]", True),
        (5.0, [5], "Optional[int]", False),
        ("V", ["v"], "Tuple[int, int]", False),
        ([1, 2], [[1.0, 2.0]], "array[number]", True),
        (5, [5.0], "Union[int, float]", True),
        (5.0, [5], "Union[int, float]", False),
        (5.0, [5], None, False),
        ("a b", ["AB"], None, True),
        ("a b", ["AB"], ["str"], True),
        ("5", [5], None, False),
        ("", [""], None, True),
        # Nothing is accepted.
        (5, [], "int", False),
        (5, 5, "int", False),
        ("", "", "str", False),
    ],
)
def test_a_value_against_those_accepted(value, accepted, declared, passes):
    assert one_argument(value, accepted, declared) is passes


@pytest.mark.parametrize(
    ("arguments", "passes"),
    [
        ({"needed": 1}, True),
        ({"needed": 1, "free": 2}, True),
        ({"free": 2}, False),
        ({}, False),
        ({"needed": 1, "free": 3}, False),
        ({"needed": 1, "expected": 4}, True),
        ({"needed": 1, "unlisted": 4}, False),
        ({"needed": 1, "undeclared": 4}, False),
        ({"needed": 1, "unknown": 4}, False),
    ],
)
def test_optional_arguments_may_be_absent_and_unknown_ones_fail(arguments, passes):
    specs = {"needed": {"type": "int"}, "free": {"type": "int, optional"}, "unlisted": {"type": "int, optional"}}
    tools = [{"name": "f", "parameters": specs | {"expected": {"type": "int", "default": 4}}}]
    accepted = {"needed": [1], "free": [2, ""], "expected": ["", 4], "undeclared": [4, ""]}
    assert ast_match([{"name": "f", "arguments": arguments}], [{"f": accepted}], tools) is passes


def test_an_argument_that_the_tool_requires_cannot_be_absent_even_if_the_values_allow_it():
    def without(spec, accepted):
        return ast_match(
            [{"name": "f", "arguments": {}}], [{"f": accepted}], [{"name": "f", "parameters": {"x": spec}}]
        )

    assert not without({"type": "int"}, {"x": [5, ""]})
    for spec in ({"type": "int, optional"}, {"type": "Optional[int]"}, {"type": "int", "default": 5}, {}):
        assert without(spec, {"x": [5, ""]})
        assert not without(spec, {"x": [5]})


TOOLS = [
    {"name": "f", "parameters": {"x": {"type": "int"}, "y": {"type": "str, optional"}}},
    {"name": "g", "parameters": {}},
]
ACCEPTED = [{"f": {"x": [1, 2], "y": ["", "a"]}}, {"f": {"x": [1], "y": ["", "a"]}}, {"g": {}}]


def f(x):
    return {"name": "f", "arguments": {"x": x}}


G = {"name": "g", "arguments": {}}


@pytest.mark.parametrize(
    ("calls", "passes"),
    [
        ([f(2), f(1), G], True),
        ([G, f(1), f(2)], True),  # in order of the calls, f(1) would take the place of f(2)
        ([f(1), f(1), G], True),
        ([f(2), f(2), G], False),
        ([f(2), f(1)], False),
        ([f(2), f(1), G, G], False),
        ([f(2), f(1), {**G, "name": "h"}], False),
        ([f(2), f(1), {**G, "name": "G"}], False),
        ([], False),
    ],
)
def test_calls_in_any_order_one_to_one(calls, passes):
    assert ast_match(calls, ACCEPTED, TOOLS) is passes


@pytest.mark.parametrize(
    "calls",
    [f(1), [[f(1)]], ["f"], "f", None, True, 1, {}, [None], [{}], [{"name": "f"}], [{"arguments": {"x": 1}}]]
    + [[{"name": name, "arguments": {"x": 1}}] for name in (None, 1, ["f"], {"f": 1}, "")]
    + [[{"name": "f", "arguments": arguments}] for arguments in (None, [1], [["x", 1]], "x", '{"x": 1}', 1, True)]
    + [[f(1) | {"id": 1}], [{"f": {"x": 1}}]],
)
def test_any_value_but_a_list_of_calls_is_a_miss(calls):
    assert ast_match([f(1)], [{"f": {"x": [1]}}], TOOLS)
    assert not ast_match(calls, [{"f": {"x": [1]}}], TOOLS)
    assert not ast_match(calls, [], TOOLS)


def test_a_row_without_calls_wants_none():
    assert ast_match([], [], TOOLS)
    assert not ast_match([G], [], TOOLS)


@pytest.mark.parametrize(
    "acceptable", [None, {}, [None], ["f"], [{}], [{"f": None}], [{"f": {"x": 1}}], [{"f": {"x": [1]}, "g": {}}]]
)
def test_a_broken_column_fits_nothing(acceptable):
    assert not ast_match([f(1)], acceptable, TOOLS)


@pytest.mark.parametrize(
    "tools", [None, {}, [], "f", [None], [{"name": ["f"]}], [{"name": "f"}], [{"name": "f", "parameters": []}]]
)
def test_broken_tools_declare_nothing(tools):
    assert not ast_match([f(1)], [{"f": {"x": [1]}}], tools)
    assert ast_match([{"name": "f", "arguments": {}}], [{"f": {}}], tools)


def test_deep_values_and_many_calls_do_not_raise():
    deep = 1
    for _ in range(100_000):
        deep = [deep]
    assert not one_argument(deep, [1], "int")
    assert not one_argument(deep, [[1]], "List[int]")
    assert not one_argument(deep, [deep], "list")  # deeper than any call: a miss, no exception
    assert not one_argument(1, [deep], "int")
    assert not one_argument([1], [[2]], "optional[" * 1000 + "list[" * 1000)
    assert not ast_match([G] * 100_000, ACCEPTED, TOOLS)
    n = 100  # call i fits places i and i + 1: the last call moves all calls
    places = [{"f": {"x": [i - 1, i]}} for i in range(n)]
    assert ast_match([f(i) for i in range(n)], places, TOOLS)
    assert not ast_match([f(i) for i in range(n - 1)] + [f(n - 2)], [*places[:-1], {"f": {"x": [n]}}], TOOLS)


@given(st.lists(st.sets(st.integers(0, 4)), max_size=5))
@example([{0, 1, 2}, {0}, {0}])  # the second call moves the first, the third has no place
def test_the_matching_is_as_good_as_trying_all(choices):
    n = len(choices)
    # Call i has x = i, and place p accepts the calls that may have it.
    calls = [f(i) for i in range(n)]
    acceptable = [{"f": {"x": [i for i in range(n) if place in choices[i]]}} for place in range(n)]
    possible = any(all(map(set.__contains__, choices, places)) for places in itertools.permutations(range(n)))
    assert ast_match(calls, acceptable, TOOLS) is possible


# Rows like the leaderboard's: the accepted values, and one answer that takes one accepted value, or
# none, for each argument.

TEXTS = st.text("abcXY ,'-é", min_size=1, max_size=5).filter(lambda text: text.strip(" ,-"))
LEAVES = {
    "str": TEXTS,
    "int": st.integers(-9, 9),
    "float": st.integers(-9, 9).map(lambda n: n / 2),
    "bool": st.booleans(),
}
TYPES = [*LEAVES, *(f"List[{leaf}]" for leaf in LEAVES), "dict", "List[dict]"]


@st.composite
def accepted_and_chosen(draw, declared):
    """An accepted value in the column's form and in a call's form."""
    if declared.startswith("List["):
        pairs = draw(st.lists(accepted_and_chosen(declared[5:-1]), max_size=3))
        return [accepted for accepted, _ in pairs], [chosen for _, chosen in pairs]
    if declared != "dict":
        return (draw(LEAVES[declared]),) * 2
    accepted, chosen = {}, {}
    for key in draw(st.sets(st.sampled_from("kl"))):
        accepted[key] = draw(st.lists(st.one_of(*LEAVES.values()), min_size=1, max_size=2))
        chosen[key] = draw(st.sampled_from(accepted[key]))
        if draw(st.booleans()):
            accepted[key].append("")
            if draw(st.booleans()):
                del chosen[key]
    return accepted, chosen


@st.composite
def rows(draw, min_calls=0):
    """`(calls, acceptable, tools)` with right calls."""
    optional = {name: {a: draw(st.booleans()) for a in draw(st.sets(st.sampled_from("xyz")))} for name in "fg"}
    types = {name: {a: draw(st.sampled_from(TYPES)) for a in sorted(optional[name])} for name in "fg"}
    marked = {name: {a: t + ", optional" * optional[name][a] for a, t in types[name].items()} for name in "fg"}
    tools = [{"name": name, "parameters": {a: {"type": t} for a, t in marked[name].items()}} for name in "fg"]
    calls, acceptable = [], []
    for name in draw(st.lists(st.sampled_from("fg"), min_size=min_calls, max_size=4)):
        listed, arguments = {}, {}
        for argument, declared in types[name].items():
            pairs = draw(st.lists(accepted_and_chosen(declared), min_size=1, max_size=2))
            listed[argument] = [accepted for accepted, _ in pairs] + [""] * optional[name][argument]
            if not optional[name][argument] or draw(st.booleans()):
                arguments[argument] = draw(st.sampled_from(pairs))[1]
        calls.append({"name": name, "arguments": arguments})
        acceptable.append({name: listed})
    return calls, acceptable, tools


@given(rows(), st.randoms())
def test_the_right_calls_pass_in_any_order(row, random):
    calls, acceptable, tools = row
    assert ast_match(calls, acceptable, tools)
    random.shuffle(calls)
    assert ast_match(calls, acceptable, tools)
    random.shuffle(acceptable)
    assert ast_match(calls, acceptable, tools)


@given(rows(), rows(), st.randoms())
def test_the_order_of_calls_changes_no_verdict(row, other, random):
    calls, acceptable, tools = [*row[0][1:], *other[0]][: len(row[0])], row[1], row[2]
    verdict = ast_match(calls, acceptable, tools)
    random.shuffle(calls)
    assert ast_match(calls, acceptable, tools) is verdict


def places_in(row):
    """`(container, key, declared)` of each value in the calls. Inside objects, nothing is
    declared."""
    calls, _, tools = row
    types = {tool["name"]: {a: spec["type"] for a, spec in tool["parameters"].items()} for tool in tools}

    def walk(container, key, declared):
        yield container, key, declared
        value = container[key]
        if isinstance(value, dict):
            for inner in value:
                yield from walk(value, inner, None)
        elif isinstance(value, list):
            for i in range(len(value)):
                yield from walk(value, i, declared[5:-1])

    for call in calls:
        for argument in call["arguments"]:
            yield from walk(call["arguments"], argument, types[call["name"]][argument].removesuffix(", optional"))


def with_each_changed(row, applies, change):
    """The calls, once for each value for which `applies(value, declared)` is true, with this value
    changed."""
    for i, (container, key, declared) in enumerate(places_in(row)):
        if applies(container[key], declared):
            calls, acceptable, tools = copy.deepcopy(row)
            container, key, _ = next(itertools.islice(places_in((calls, acceptable, tools)), i, None))
            container[key] = change(container[key])
            yield calls


def is_a(*types):
    return lambda value, declared: type(value) in types


FORBIDDEN = {  # name: (applies, change)
    "a number as a string": (is_a(int, float), str),
    "a bool as a string": (is_a(bool), str),
    "a bool as an int": (lambda value, declared: type(value) is bool and declared == "bool", int),
    "an int as a bool": (lambda value, declared: type(value) is int and value in (0, 1) and declared == "int", bool),
    "an int as a float": (lambda value, declared: type(value) is int and declared == "int", float),
    "another number": (is_a(int, float), lambda value: value + 100),
    "another string": (is_a(str), lambda value: value + "q"),
    "a tab in a string": (is_a(str), lambda value: value + "\t"),
    "no string": (is_a(str), lambda value: [value]),
    "null": (is_a(str, int, float, bool, list, dict), lambda value: None),
    "a list of it": (is_a(str, int, float, bool, dict), lambda value: [value]),
    "a list with one more": (is_a(list), lambda value: [*value, "q"]),
    "an object with one more": (is_a(dict), lambda value: value | {"q": 1}),
}


@given(rows(min_calls=1))
def test_each_forbidden_change_of_a_value_fails(row):
    for name, (applies, change) in FORBIDDEN.items():
        for calls in with_each_changed(row, applies, change):
            assert not ast_match(calls, *row[1:]), name


PERMITTED = {
    "a string in capitals": (is_a(str), str.upper),
    "a string with more ignored characters": (is_a(str), lambda value: f" .{value}-_*^/,"),
    "a string with other quotes": (is_a(str), lambda value: value.replace("'", '"')),
    "an int for a whole float": (lambda value, d: type(value) is float and value.is_integer() and d == "float", int),
    "keys in another order": (is_a(dict), lambda value: dict(reversed(value.items()))),
}


@given(rows(min_calls=1))
def test_each_permitted_change_of_a_value_passes(row):
    for name, (applies, change) in PERMITTED.items():
        for calls in with_each_changed(row, applies, change):
            assert ast_match(calls, *row[1:]), name


@given(rows(min_calls=1), st.data())
def test_changes_of_a_call(row, data):
    calls, acceptable, tools = row
    i = data.draw(st.integers(0, len(calls) - 1))

    def verdict(*instead):
        return ast_match([*calls[:i], *instead, *calls[i + 1 :]], acceptable, tools)

    call = calls[i]
    assert verdict(call)
    assert not verdict()
    assert not verdict(call, call)
    assert not verdict(call | {"name": "h"})
    assert not verdict(call | {"arguments": call["arguments"] | {"q": 1}})
    assert not verdict([call])
    for argument in call["arguments"]:
        rest = {a: value for a, value in call["arguments"].items() if a != argument}
        required = not any(
            tool["name"] == call["name"] and "optional" in tool["parameters"][argument]["type"] for tool in tools
        )
        assert verdict(call | {"arguments": rest}) is not required


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "f", "x", "int", "name", "arguments"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["f", "x", "name", "arguments", "parameters", "type"]), inner, max_size=3)
        | st.fixed_dictionaries({"name": inner, "arguments": inner})
        | st.fixed_dictionaries({"name": st.just("f"), "arguments": st.fixed_dictionaries({"x": inner})})
        | st.fixed_dictionaries({"f": st.fixed_dictionaries({"x": inner})})
    ),
    max_leaves=12,
)


@given(JSON, JSON, JSON)
def test_no_value_raises_and_only_equal_counts_pass(calls, acceptable, tools):
    for offered in (tools, TOOLS):
        before = json.dumps([calls, acceptable, offered])
        verdict = ast_match(calls, acceptable, offered)
        assert type(verdict) is bool
        assert not verdict or (isinstance(calls, list) and len(calls) == len(acceptable))
        assert json.dumps([calls, acceptable, offered]) == before


@given(rows(), st.data())
def test_only_equal_counts_pass(row, data):
    calls, acceptable, tools = row
    calls = data.draw(st.lists(st.sampled_from(calls), max_size=5)) if calls else []
    assert not ast_match(calls, acceptable, tools) or len(calls) == len(acceptable)
