"""JSON Schemas of flat tools: informal types, and the same accepted values as a tool's original
schema."""

import json

import pytest

from benchmarks.schema_oracle import differences, draw_parameters
from data_utils.misfits import fit
from data_utils.tool_formats import NotFlat, flat_tools
from data_utils.tool_schema import call_problems, parameter_schema, tool_schema, type_schema


@pytest.mark.parametrize(
    ("kind", "schema"),
    [
        ("str", {"type": "string"}),
        (" INT ", {"type": "integer"}),
        ("float", {"type": "number"}),
        ("List[int]", {"type": "array", "items": {"type": "integer"}}),
        ("List[List[float]]", {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}),
        ("list", {"type": "array"}),
        ("Dict[str, float]", {"type": "object", "additionalProperties": {"type": "number"}}),
        ("dict", {"type": "object"}),
        ("Union[str, int]", {"anyOf": [{"type": "string"}, {"type": "integer"}]}),
        ("int | None", {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        ("Optional[bool]", {"anyOf": [{"type": "boolean"}, {"type": "null"}]}),
        ("Tuple[int, int]", {"type": "array", "minItems": 2, "maxItems": 2, "items": {"type": "integer"}}),
        (
            "Tuple[int, str]",
            {"type": "array", "minItems": 2, "maxItems": 2, "prefixItems": [{"type": "integer"}, {"type": "string"}]},
        ),
        ("ArrayList", {"type": "array"}),
        ("Tuple[float, ...]", {"type": "array", "items": {"type": "number"}}),
        ("Callable[[float], float]", {}),
        ("Union[str, Any]", {}),
        ("", {}),
        ("List[", {"type": "array"}),
    ],
)
def test_informal_types_have_a_schema(kind, schema):
    assert type_schema(kind) == schema


def test_a_type_or_a_default_makes_an_argument_optional():
    tool = {
        "name": "f",
        "parameters": {
            "a": {"type": "str"},
            "b": {"type": "List[int], optional"},
            "c": {"type": "int", "default": 3},
            "d": {"type": "str, optional, defaults to 'x'"},
            "e": {"enum": ["p", "q"], "type": "str"},
        },
    }
    schema = tool_schema(tool)
    assert schema["required"] == ["a", "e"] and schema["additionalProperties"] is False
    assert schema["properties"]["b"] == {"type": "array", "items": {"type": "integer"}}
    assert schema["properties"]["d"] == {"type": "string"}
    assert schema["properties"]["e"] == {"type": "string", "enum": ["p", "q"]}
    assert tool_schema({"name": "g"})["properties"] == {} and parameter_schema({}) == {}


def test_too_deep_types_accept_any_value():
    assert type_schema("List[" * 3000 + "int" + "]" * 3000) == {}
    assert type_schema(f"Dict[{'List[' * 63}int{']' * 63}, List[int]]")["type"] == "object"  # 65 brackets, 64 deep
    assert type_schema("List[" * 65 + "int" + "]" * 65) == {} != type_schema("List[" * 64 + "int" + "]" * 64)
    assert type_schema(f"Union[{', '.join(['List[int]'] * 100)}]") == {"type": "array", "items": {"type": "integer"}}


@pytest.mark.parametrize(
    "kind", ["int|" * 50_000 + "str", "List[" * 60 + "int|" * 5_000 + "str" + "]" * 60, ", optional" * 20_000 + "]"]
)
def test_long_types_are_read(kind):
    """Quadratic scans of 200 KB took 38 s."""
    tool_schema({"name": "f", "parameters": {"a": {"type": kind}}})


@pytest.mark.parametrize(
    ("schema", "fits", "does_not"),
    [
        ({"type": ["object", "null"], "properties": {"n": {"type": "string"}}}, [None, {"n": "x"}],
         [{"n": 1}, {"m": 1}, 3]),
        (
            {"type": "object", "properties": {"n": {"type": "string"}}, "additionalProperties": {"type": "integer"}},
            [{"n": "x", "z": 1}, {}], [{"z": "x"}, {"n": 1}],
        ),
        ({"type": "object", "properties": {"n": {}}, "additionalProperties": {}}, [{"z": 1}], [3]),
        ({"type": "object", "properties": {"n": {}}}, [{"n": 1}], [{"z": 1}]),
        ({"type": "array", "items": [{"type": "string"}, {"type": "number"}]}, [["x", 1.5], ["x"], ["x", 1, 2]],
         ["x", [1, "x"]]),
        ({"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "minItems": 2, "maxItems": 2},
         [[1, "a"]], [["a", 1], [1], [1, "a", 2]]),
        ({"type": "array", "prefixItems": [{"type": "string"}], "items": False}, [["a"], []], [["a", 1]]),
        ({"type": "array", "items": [{"type": "string"}], "additionalItems": {"type": "number"}}, [["a", 1]],
         [["a", "b"]]),
        ({"type": "object", "additionalProperties": False}, [{}], [{"a": 1}]),
        ({"type": "object", "properties": {"n": {}}, "required": ["n", "m"]}, [{"n": 1, "m": 2}], [{"n": 1}]),
        ({"type": "object", "properties": {"n": {"default": 1}}, "required": ["n"]}, [{"n": 1}], [{}]),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, [1.5], [1]),
        ({"oneOf": [{"type": "string", "pattern": "^a"}, {"type": "string", "pattern": "^b"}]}, ["a"], [1]),
        ({"anyOf": [{"type": "object", "properties": {"n": {}}}, {"type": "string"}], "nullable": True},
         [None, "x", {"n": 1}], [1, {"m": 1}]),
        ({"type": "object", "properties": {"n": {}},
          "anyOf": [{"properties": {"m": {"type": "string"}}, "required": ["m"]}, {"required": ["n"]}]},
         [{"n": 1}, {"m": "x"}], [{"m": 1}, {}]),
        ({"type": ["integer", "string"], "enum": [1, "a"], "anyOf": [{"type": "string"}, {"minimum": 3}]}, [1, "a"],
         ["b"]),
        ({"type": "object", "additionalProperties": {"type": "object",
            "properties": {"a": {"anyOf": [{"type": ["integer", "string"], "const": 1}, {"type": "null"}]}}}},
         [{"k": {"a": 1}}], [{"k": {"a": 2}}]),
    ],
)  # fmt: skip
def test_calls_are_checked_against_the_original_schema(schema, fits, does_not):
    tools = flat_tools([{"name": "f", "inputSchema": {"type": "object", "properties": {"a": schema}}}]).tools
    for value in fits:
        assert call_problems([{"name": "f", "arguments": {"a": value}}], tools) == []
    for value in does_not:
        assert call_problems([{"name": "f", "arguments": {"a": value}}], tools) != []


@pytest.mark.parametrize("key", ["bare", "inputSchema", "wrapped"])
@pytest.mark.parametrize(
    ("spec", "fits", "does_not"),
    [
        ({"type": ["string", "null"]}, ["x", None], [1]),
        ({"type": ["List[int]", "str"]}, ["x", [1]], [["x"], 1]),
        ({"type": "integer", "nullable": True}, [1, None], ["x"]),
        ({"type": ["integer", "null"], "nullable": True}, [1, None], ["x"]),
        ({"type": "string", "const": "k"}, ["k"], ["x", 1]),
        ({"const": 3}, [3], [4]),
        ({"anyOf": [{"const": 1}, {"enum": ["a"]}]}, [1, "a"], [2]),
        ({"anyOf": [{"type": "string"}, {"required": ["x"]}]}, ["a", 5], []),  # a member that is text for the model
        ({"type": "object", "properties": {"x": {"type": "string"}, "y": {"type": "string"}}, "required": ["x"]},
         [{"x": "a"}, {"x": "a", "y": "b"}], [{"y": "b"}, {"x": 1}, {"x": "a", "z": 1}]),
        ({"type": "object", "properties": {"x": {"type": "string"}}, "required": ["z"]}, [{"z": 1}], [{}, {"x": "a"}]),
        ({"type": "object", "required": ["z"]}, [{"z": 1}, {"z": 1, "a": 2}], [{}]),
        ({"type": "array", "items": {"type": "object", "properties": {"x": {"type": "int"}}, "required": []}}, [[{}]],
         [[{"x": "a"}]]),
    ],
)  # fmt: skip
def test_keywords_of_json_schema_keep_their_meaning_in_specs(key, spec, fits, does_not):
    parameters = {"a": spec}
    tool = {"name": "f", "parameters" if key != "inputSchema" else key: parameters}
    tools = flat_tools([{"type": "function", "function": tool} if key == "wrapped" else tool]).tools
    assert tools == [{"name": "f", "parameters": parameters}]
    for value in fits:
        assert call_problems([{"name": "f", "arguments": {"a": value}}], tools) == []
    for value in does_not:
        assert call_problems([{"name": "f", "arguments": {"a": value}}], tools) != []


@pytest.mark.parametrize("union", ["anyOf", "oneOf"])
def test_a_call_must_fit_a_member_of_its_tool_s_union(union):
    members = [{"properties": {name: {"type": "string"}}, "required": [name]} for name in "ab"]
    tools = flat_tools([{"name": "f", "inputSchema": {"type": "object", union: members}}]).tools
    for arguments in ({}, {"a": "x"}, {"a": "x", "b": "y"}):
        calls = [{"name": "f", "arguments": arguments}]
        assert fit(calls, tools) == (call_problems(calls, tools) == []) == (arguments == {"a": "x"})


def test_misfits_are_described():
    tools = flat_tools([{"name": "f", "inputSchema": {"type": "object", "required": ["a"], "properties": {
        "a": {"type": "integer"}, "b": {"type": "object", "properties": {"c": {"enum": ["p"]}}}}}}]).tools  # fmt: skip
    calls = [{"name": "g", "arguments": {}}, {"name": "f", "arguments": {"b": {"c": "q", "d": 1}, "e": 2}}]
    problems = sorted(call_problems([*calls, {"name": "f", "arguments": {"a": 5.0}}], tools))
    assert problems[0].startswith("f.a: 5.0 is not of type 'integer'") and problems[2].startswith(
        "f.b: Additional properties"
    )
    assert problems[1].startswith("f.b.c: 'q' is not one of") and "g is not among the tools" in problems
    assert any("'a' is a required property" in problem for problem in problems) and any(
        "('e' was unexpected)" in problem for problem in problems
    )
    assert call_problems([{"name": "f", "arguments": {"a": 5, "b": {"c": "p"}}}], tools) == []


def test_a_schema_and_its_flat_form_accept_the_same_values():
    """300 normal and odd schemas, compared with jsonschema on the original."""
    read = refused = 0
    for seed in range(300):
        parameters = draw_parameters(seed)
        try:
            assert differences(parameters, 8, seed) == [], json.dumps(parameters)
            read += 1
        except NotFlat:
            refused += 1
    assert read > 200 and refused > 10
