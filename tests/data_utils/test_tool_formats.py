"""Other people's tools: read in the flat form, given back as OpenAI's, and rendered by the chat template as training renders them."""

import json

import hypothesis.strategies as st
import pytest
from conftest import ROOT
from hypothesis import given
from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from data_utils.prompt import render_tags, to_json
from data_utils.tool_formats import (
    NotFlat,
    ReadTools,
    flat_tools,
    openai_calls,
    openai_tools,
)
from data_utils.tool_schema import call_problems, parameter_schema, tool_schema, type_schema
from data_utils.written_calls import flat_calls
from demo.rows import generate_rows

CHAT_TEMPLATE = (ROOT / "data_utils" / "chat_template.jinja").read_text(encoding="utf-8")


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
        ("Tuple[float, ...]", {"type": "array", "items": {"type": "number"}}),
        ("Callable[[float], float]", {}),
        ("Union[str, Any]", {}),
        ("", {}),
        ("List[", {"type": "array"}),
    ],
)
def test_informal_types(kind, schema):
    assert type_schema(kind) == schema


def test_a_tool_says_what_may_be_left_out_in_two_ways():
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


def test_types_nested_without_end_accept_anything():
    assert type_schema("List[" * 3000 + "int" + "]" * 3000) == {}


SCHEMA = {"type": "object", "properties": {"x": {"type": "integer", "description": "X"}}, "required": ["x"]}
FLAT = [{"name": "f", "description": "d", "parameters": {"x": {"description": "X", "type": "int"}}}]
FUNCTION = {"name": "f", "description": "d", "parameters": SCHEMA}


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (FLAT, "xLAM"),
        ([{"type": "function", "function": FUNCTION}], "OpenAI"),
        ([FUNCTION], "JSON Schema"),
        ([{"type": "function", **FUNCTION, "strict": True}], "JSON Schema"),  # of OpenAI's Responses
        ([{"name": "f", "description": "d", "inputSchema": SCHEMA}], "MCP"),
        ({"tools": [{"name": "f", "title": "F", "description": "d", "inputSchema": SCHEMA}]}, "MCP"),
        (
            {
                "jsonrpc": "2.0",
                "id": 1,
                "result": {"tools": [{"name": "f", "description": "d", "inputSchema": SCHEMA}]},
            },
            "MCP",
        ),
        ([{"name": "f", "description": "d", "input_schema": SCHEMA}], "Anthropic"),
    ],
)
def test_tools_of_any_format_become_the_same_flat_ones(value, name):
    assert flat_tools(value) == ReadTools(FLAT, name, [], [])


@pytest.mark.parametrize(
    ("schema", "spec"),
    [
        ({"type": "string", "enum": ["a", "b"], "default": "a"}, {"type": "str", "enum": ["a", "b"], "default": "a"}),
        ({"const": 3}, {"type": "any", "enum": [3]}),
        ({"type": ["string", "null"]}, {"type": "Union[str, None]"}),
        ({"type": "string", "nullable": True}, {"type": "Union[str, None]"}),
        ({"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "number"}}]}, {"type": "Union[int, List[float]]"}),
        ({"type": "array", "items": {}}, {"type": "list"}),
        ({"type": "object", "additionalProperties": {"type": "boolean"}}, {"type": "Dict[str, bool]"}),
        ({"type": "object", "additionalProperties": False}, {"type": "dict"}),
        ({"type": "integer", "minimum": 0, "title": "N"}, {"type": "int", "minimum": 0}),
        ({}, {"type": "any"}),
        ({"type": "array", "items": [{"type": "string"}, {"type": "number"}]}, {"type": "Tuple[str, float]"}),
        ({"$ref": "#/$defs/a~1b"}, {"type": "int"}),
        (
            {"type": "object", "properties": {"n": {"type": "string"}}, "additionalProperties": True},
            {"type": "dict", "properties": {"n": {"type": "str, optional"}}, "additionalProperties": True},
        ),
        ({"$ref": "#/$defs/P"}, {"type": "dict", "properties": {"n": {"type": "str"}, "m": {"type": "int, optional"}}}),
        (
            {"type": "array", "description": "d", "items": {"type": "string", "description": "one", "enum": ["a"]}},
            {"description": "d", "type": "List[str]", "items": {"description": "one", "type": "str", "enum": ["a"]}},
        ),
        (
            {"oneOf": [{"$ref": "#/$defs/P"}, {"type": "null"}], "description": "who"},
            {
                "description": "who",
                "type": "Union[dict, None]",
                "anyOf": [
                    {"type": "dict", "properties": {"n": {"type": "str"}, "m": {"type": "int, optional"}}},
                    {"type": "None"},
                ],
            },
        ),
    ],
)  # fmt: skip
def test_a_schema_keeps_its_meaning(schema, spec):
    person = {"type": "object", "properties": {"n": {"type": "string"}, "m": {"type": "integer"}}, "required": ["n"]}
    whole = {
        "type": "object",
        "properties": {"a": schema},
        "required": ["a"],
        "$defs": {"P": person, "a/b": {"type": "integer"}},
    }
    (tool,) = flat_tools([{"name": "f", "inputSchema": whole}]).tools
    assert to_json(tool["parameters"]["a"]) == to_json(spec)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"allOf": [{}]}, "f, a: allOf cannot be said in the flat form"),
        ({"type": "array", "items": {"not": {}}}, "f, a: not cannot be said"),
        ({"$ref": "#/$defs/Node"}, "f, a.* contains itself"),
        ({"$ref": "#/$defs/None"}, "f, a: the reference #/\\$defs/None leads nowhere"),
        ({"$ref": "https://example.org/a"}, "leads nowhere in this schema"),
        (
            {"type": "object", "properties": {"x": {}}, "anyOf": [{"required": ["x"]}]},
            "f, a: anyOf or oneOf beside type or properties",
        ),
        ({"type": "object", "oneOf": [{"properties": {}}]}, "f, a: anyOf or oneOf beside type or properties"),
        ({"prefixItems": [{"type": "string"}], "items": {"type": "number"}}, "f, a: items beside prefixItems"),
        ({"type": {"x": 1}}, "is not one of JSON Schema's types"),
        ({"type": "strin"}, "f, a: 'strin' is not one of JSON Schema's types"),
        ("text", "f, a: a schema must be an object"),
    ],
)
def test_what_the_flat_form_cannot_say_is_named(schema, message):
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}}
    whole = {"type": "object", "properties": {"a": schema}, "$defs": {"Node": node}}
    with pytest.raises(NotFlat, match=message):
        flat_tools([{"name": "f", "inputSchema": whole}])


def test_two_tools_of_one_name_are_not_rendered():
    """Which of them a call is for nobody could say; training refuses such a row."""
    tools = [{"type": "function", "function": {"name": "f"}}, {"name": "f", "inputSchema": {}}]
    with pytest.raises(TemplateError, match="Two tools have the name f"):
        rendered([{"role": "user", "content": "q"}], tools)


@pytest.mark.parametrize("key", ["allOf", "anyOf", "oneOf"])
def test_a_tool_s_arguments_are_not_composed(key):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", key: [SCHEMA]}}}]
    with pytest.raises(NotFlat, match=f"f: {key} cannot be said"):
        flat_tools(tools)
    with pytest.raises(TemplateError, match=f"{key} cannot be said"):
        rendered([{"role": "user", "content": "q"}], tools)


@pytest.mark.parametrize(
    ("schema", "fits", "does_not"),
    [
        ({"type": ["object", "null"], "properties": {"n": {"type": "string"}}}, [None, {"n": "x"}], [{"n": 1}, {"m": 1}, 3]),
        (
            {"type": "object", "properties": {"n": {"type": "string"}}, "additionalProperties": {"type": "integer"}},
            [{"n": "x", "z": 1}, {}], [{"z": "x"}, {"n": 1}],
        ),
        ({"type": "object", "properties": {"n": {}}, "additionalProperties": {}}, [{"z": 1}], [3]),
        ({"type": "object", "properties": {"n": {}}}, [{"n": 1}], [{"z": 1}]),
        ({"type": "array", "items": [{"type": "string"}, {"type": "number"}]}, [["x", 1.5]], ["x"]),
    ],
)  # fmt: skip
def test_calls_are_checked_as_the_schema_means(schema, fits, does_not):
    tools = flat_tools([{"name": "f", "inputSchema": {"type": "object", "properties": {"a": schema}}}]).tools
    for value in fits:
        assert call_problems([{"name": "f", "arguments": {"a": value}}], tools) == []
    for value in does_not:
        assert call_problems([{"name": "f", "arguments": {"a": value}}], tools) != []


@pytest.mark.parametrize(
    "tools",
    [
        [{"name": "now"}, FUNCTION],
        [{"name": "now", "parameters": {}}, *FLAT],
        [{"type": "function", "name": "now"}, {"type": "function", **FUNCTION}],
        [{"name": "f", "description": "d", "inputSchema": SCHEMA}],
        [{"name": "f", "input_schema": SCHEMA}],
        FLAT,
    ],
)
def test_the_chat_template_reads_the_other_formats_too(tools):
    flat = flat_tools(tools).tools
    assert rendered([{"role": "user", "content": "q"}], tools) == render_tags("q", to_json(flat))


def test_a_list_of_several_formats_is_read_tool_by_tool():
    tools = [{"name": "g", "inputSchema": SCHEMA}, *FLAT, {"name": "now"}]
    read = flat_tools(tools)
    assert read.format == "MCP and xLAM" and read.left_out == []
    assert read.tools == [{"name": "g", "parameters": FLAT[0]["parameters"]}, *FLAT, {"name": "now"}]


def test_one_tool_that_cannot_be_said_does_not_cost_the_others():
    closed = {"type": "object", "properties": {"x": {"patternProperties": {}}}}
    tools = [{"name": "c", "inputSchema": closed}, *FLAT]
    with pytest.raises(NotFlat, match="tool c, x: patternProperties cannot be said"):
        flat_tools(tools)
    read = flat_tools(tools, keep_going=True)
    assert read.tools == FLAT and read.left_out == ["tool c, x: patternProperties cannot be said in the flat form"]


def test_arguments_may_be_called_as_the_words_of_other_formats():
    spec = {"description": "d", "type": "str"}
    tools = [{"name": "f", "parameters": {"type": spec, "properties": spec, "required": spec}}, {"name": "g"}]
    assert flat_tools(tools) == ReadTools(tools, "xLAM", [], [])


def test_what_does_not_fit_is_told_in_words():
    tools = flat_tools([{"name": "f", "inputSchema": {"type": "object", "required": ["a"], "properties": {
        "a": {"type": "integer"}, "b": {"type": "object", "properties": {"c": {"enum": ["p"]}}}}}}]).tools  # fmt: skip
    calls = [{"name": "g", "arguments": {}}, {"name": "f", "arguments": {"b": {"c": "q", "d": 1}, "e": 2}}]
    said = sorted(call_problems([*calls, {"name": "f", "arguments": {"a": 5.0}}], tools))
    assert said[0].startswith("f.a: 5.0 is not of type 'integer'") and said[2].startswith("f.b: Additional properties")
    assert said[1].startswith("f.b.c: 'q' is not one of") and "g is not among the tools" in said
    assert any("'a' is a required property" in each for each in said) and any(
        "('e' was unexpected)" in each for each in said
    )
    assert call_problems([{"name": "f", "arguments": {"a": 5, "b": {"c": "p"}}}], tools) == []


# Any flat tool and back

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
types = st.sampled_from(
    ["str", "int", "float", "bool", "list", "dict", "any", "None", "List[int]", "List[List[str]]", "Dict[str, float]", "Tuple[int, int]",
     "Union[str, None]", "Optional[int]", "int | str", "STR", "string", "str, optional", "Callable", ", optional", ""]
)  # fmt: skip
specs = st.recursive(
    st.fixed_dictionaries(
        {},
        optional={"description": texts, "type": types, "enum": st.lists(values, max_size=2), "default": values, "format": texts,
                  "required": st.booleans(), "x": values},
    ),
    lambda inner: st.fixed_dictionaries(
        {"type": types},
        optional={"properties": st.dictionaries(texts, inner, max_size=2), "items": inner, "additionalProperties": inner,
                  "anyOf": st.lists(inner, max_size=2), "description": texts},
    ),
    max_leaves=4,
)  # fmt: skip
tools_strategy = st.lists(
    st.fixed_dictionaries(
        {"name": texts},
        optional={"description": texts, "parameters": st.dictionaries(texts, specs, max_size=3), "x": values},
    ),
    max_size=2,
    unique_by=lambda tool: tool["name"],
)


def rendered(messages, tools):
    (prompt,), _ = render_jinja_template(
        [messages], tools=tools, chat_template=CHAT_TEMPLATE, add_generation_prompt=True
    )
    return prompt


@given(tools_strategy, texts)
def test_any_flat_tools_come_back_from_openai_s_form_to_the_last_character(tools, query):
    try:
        flat, name, *_ = flat_tools(tools)
    except ValueError:
        return  # it looks like another format
    if name != "xLAM":
        return
    given_out = openai_tools(flat)
    assert to_json(flat_tools(given_out).tools) == to_json(flat) or not flat
    assert rendered([{"role": "user", "content": query}], given_out) == render_tags(query, to_json(flat))


schemas = st.recursive(
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["string", "integer", "number", "boolean", "null", "array", "object", ["string", "null"], []]),
            "description": texts, "enum": st.lists(values, max_size=2), "const": values, "default": values, "title": texts,
            "nullable": st.booleans(), "minimum": st.integers(), "format": texts,
        },
    )
    | st.just({"$ref": "#/$defs/P"})
    | st.just({"$ref": "#/$defs/P", "description": "beside"}),
    lambda inner: st.fixed_dictionaries(
        {"type": st.sampled_from(["array", "object", ["array", "null"]])},
        optional={"items": inner | st.lists(inner, max_size=2), "prefixItems": st.lists(inner, max_size=2), "additionalProperties": inner | st.booleans(),
                  "properties": st.dictionaries(texts, inner, max_size=2), "required": st.lists(texts, max_size=2), "description": texts},
    )
    | st.fixed_dictionaries({}, optional={"anyOf": st.lists(inner, max_size=3), "oneOf": st.lists(inner, max_size=2), "description": texts}),
    max_leaves=6,
)  # fmt: skip


@given(st.dictionaries(texts, schemas, max_size=3), st.lists(texts, max_size=2), texts)
def test_the_chat_template_makes_of_any_schema_what_flat_tools_makes(properties, required, description):
    person = {"type": "object", "properties": {"n": {"type": "string"}}, "required": ["n"]}
    parameters = {"type": "object", "properties": properties, "required": required, "$defs": {"P": person}}
    tools = [{"type": "function", "function": {"name": "f", "description": description, "parameters": parameters}}]
    try:
        flat = flat_tools(tools).tools
    except NotFlat:
        with pytest.raises(TemplateError, match="cannot be said in the flat form"):
            rendered([{"role": "user", "content": "q"}], tools)
        return
    assert rendered([{"role": "user", "content": "q"}], tools) == render_tags("q", to_json(flat))
    back = flat_tools(openai_tools(flat)).tools
    assert to_json(back) == to_json(flat)


def test_the_chat_template_is_the_prompt_of_every_row_of_the_demo():
    for row in generate_rows(300, seed=5):
        tools = json.loads(row["tools"])
        assert rendered([{"role": "user", "content": row["query"]}], openai_tools(tools)) == render_tags(
            row["query"], to_json(tools)
        )


@given(
    st.lists(
        st.fixed_dictionaries({"name": texts, "arguments": st.dictionaries(texts, values, max_size=3)}), max_size=3
    )
)
def test_calls_come_back_from_openai_s_form(calls):
    assert flat_calls(openai_calls(calls)) == calls
    assert len({call["id"] for call in openai_calls(calls)}) == len(calls)
