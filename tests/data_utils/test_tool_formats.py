"""Public formats of tools: read in the flat form, converted back to OpenAI's, and rendered alike by
chat template and training."""

import copy
import json
import random
import re

import hypothesis.strategies as st
import pytest
from hypothesis import given
from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from benchmarks.schema_oracle import DEFINITIONS, draw_parameters
from data_utils import schema_merge
from data_utils.chat import template_text
from data_utils.prompt import render_tags, to_json
from data_utils.tool_formats import SCHEMA_KEYS, NotFlat, ReadTools, flat_tools, openai_calls, openai_tools
from data_utils.tool_schema import call_problems
from data_utils.written_calls import flat_calls
from demo.rows import generate_rows

CHAT_TEMPLATE = template_text("tags-1")


SCHEMA = {"type": "object", "properties": {"x": {"type": "integer", "description": "X"}}, "required": ["x"]}
FLAT = [{"name": "f", "description": "d", "parameters": {"x": {"description": "X", "type": "int"}}}]
PERSON = {"n": {"type": "str"}, "m": {"type": "int, optional"}}
BARE = {"name": "f", "description": "d"}
FUNCTION = {**BARE, "parameters": SCHEMA}


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (FLAT, "xLAM"),
        ([{"type": "function", "function": FUNCTION}], "OpenAI"),
        ([FUNCTION], "JSON Schema"),
        # OpenAI's Responses.
        ([{"type": "function", **FUNCTION, "strict": True}], "JSON Schema"),
        ([{**BARE, "inputSchema": SCHEMA}], "MCP"),
        ({"tools": [{"name": "f", "title": "F", "description": "d", "inputSchema": SCHEMA}]}, "MCP"),
        ({"jsonrpc": "2.0", "id": 1, "result": {"tools": [{**BARE, "inputSchema": SCHEMA}]}}, "MCP"),
        ([{**BARE, "input_schema": SCHEMA}], "Anthropic"),
        ([{"type": "custom", "name": "f", "description": "d", "input_schema": SCHEMA}], "Anthropic"),
        ([{**BARE, "parameters": {}, "inputSchema": SCHEMA}], "MCP"),
        ([{**BARE, "parametersJsonSchema": SCHEMA}], "Gemini"),
        ([{**BARE, "parameters_json_schema": SCHEMA}], "Gemini"),
        ([{"functionDeclarations": [FUNCTION]}], "Gemini"),
        ({"tools": [{"function_declarations": [FUNCTION]}]}, "Gemini"),
        ({"function_declarations": [FUNCTION]}, "Gemini"),
        ({"functions": [FUNCTION]}, "JSON Schema"),
        ({"toolConfig": {"tools": [{"toolSpec": {**BARE, "inputSchema": {"json": SCHEMA}}}]}}, "Bedrock"),
        ([{**BARE, "inputSchema": {"json": SCHEMA}}], "Bedrock"),
        ([{**BARE, "inputSchema": {"jsonSchema": SCHEMA}}], "AI SDK"),
        ([{**BARE, "args_schema": SCHEMA}], "LangChain"),
        ([{**BARE, "args": {"x": {"type": "integer", "title": "X", "description": "X"}}}], "LangChain"),
        ([{**BARE, "inputs": {"x": {"type": "integer", "description": "X"}}}], "smolagents"),
        ([{**BARE, "parameter_definitions": {"x": {"type": "int", "description": "X", "required": True}}}], "Cohere"),
        ([json.dumps(FUNCTION)], "JSON Schema"),
        ([{"type": "function", "function": {**BARE, "parameters": json.dumps(SCHEMA)}}], "OpenAI"),
        ([{"type": "function", "function": FLAT[0]}], "OpenAI"),
        ([{"type": "function", **FLAT[0]}], "JSON Schema"),
        ([{**BARE, "inputSchema": FLAT[0]["parameters"]}], "MCP"),
    ],
)
def test_tools_of_any_format_have_the_same_flat_form(value, name):
    assert flat_tools(value) == ReadTools(FLAT, name, [], [])


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        ({**BARE, "arguments": SCHEMA}, "tool f: arguments is not read"),
        ({**BARE, "parameters": {}, "api_arguments": {"x": {"type": "string"}}}, "tool f: api_arguments is not read"),
        ({**BARE, "required_parameters": [{"name": "x", "type": "STRING"}]}, "tool f: required_parameters is not read"),
        ({**BARE, "inputSchema": {"type": "object", "x": {"type": "string"}}}, "tool f: x is not read"),
        ({**BARE, "parameters": {"x": "string"}}, "tool f: x is not read"),
        ({**BARE, "parameters": [1]}, "tool f: parameters must be an object"),
        ({"type": "web_search"}, 'tools of the type "web_search" are not read'),
        ({"type": "bash_20250124", "name": "bash"}, 'tool "bash": tools of the type "bash_20250124" are not read'),
        ({"type": "custom", "name": "f", "description": "d"}, 'tool "f": tools of the type "custom" are not read'),
        ({"function": {"parameters": SCHEMA}}, "a tool must be an object with a name"),
        ({**BARE, "inputSchema": {"type": "string"}}, "tool f: its arguments are no object"),
        ({**BARE, "parameters": {"type": "object", "enum": [{}]}}, "tool f: enum cannot be said"),
        ({**BARE, "parameters": PERSON, "required": ["n"]}, "tool f: required beside parameters is not read"),
        (
            {"function": {**BARE, "parameters": PERSON, "required": []}},
            "tool f: required beside parameters is not read",
        ),
        ({**BARE, "inputSchema": PERSON, "required": []}, "tool f: required beside parameters is not read"),
        ({**BARE, "args": PERSON, "required": ["n"]}, "tool f: required beside parameters is not read"),
        ({**BARE, "parameters": {"properties": PERSON}, "required": ["n"]}, "required beside parameters is not read"),
        ({**BARE, "inputSchema": {"a": {"$ref": "#/b"}, "b": {"type": "str"}}}, r"tool f, a: \$ref cannot be said"),
        ({"function": {**BARE, "parameters": {"a": {"allOf": [], "not": {}}}}}, "tool f, a: allOf, not cannot be said"),
        ({**BARE, "inputSchema": {"not": {"type": "string"}}}, "tool f: not cannot be said"),
        ({**BARE, "inputSchema": {"additionalProperties": {"type": "int"}, "a": {"type": "int"}}}, "f: a is not read"),
        ({**BARE, "inputSchema": {"$defs": {"A": {}}, "a": {"type": "int"}}}, "tool f: a is not read"),
        (
            {"functionDeclarations": [FUNCTION], "function_declarations": [{**FUNCTION, "name": "g"}]},
            "two lists of tools: function_declarations, functionDeclarations",
        ),
    ],
)
def test_a_tool_with_unread_arguments_is_refused(tool, message):
    with pytest.raises(NotFlat, match=message):
        flat_tools([tool])
    with pytest.raises(TemplateError, match=message):
        rendered([{"role": "user", "content": "q"}], [tool])


@pytest.mark.parametrize(
    ("schema", "flat"),
    [
        ({"additionalProperties": {"type": "string"}}, {"parameters": {}, "additionalProperties": {"type": "str"}}),
        ({"$defs": {"A": {"type": "string"}}}, {"parameters": {}}),
        ({"definitions": {"A": {"type": "string"}}}, {"parameters": {}}),
        ({"definitions": {"type": "str", "description": "d"}}, None),
    ],
)
@pytest.mark.parametrize("key", ["inputSchema", "input_schema", "wrapped"])
def test_a_keyword_of_json_schema_is_not_an_argument(key, schema, flat):
    tools = [{"name": "f", key: schema}]
    if key == "wrapped":
        tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    read = flat_tools(tools).tools
    assert read == [{"name": "f", **(flat or {"parameters": schema})}]
    assert rendered([{"role": "user", "content": "q"}], tools) == render_tags("q", to_json(read))


@pytest.mark.parametrize("tool", [{**FUNCTION, "required": ["x"]}, {**BARE, "parameters": {}, "required": []}])
def test_a_redundant_required_beside_parameters_is_accepted(tool):
    assert flat_tools([{"type": "function", "function": tool}]).left_out == []
    rendered([{"role": "user", "content": "q"}], [{"type": "function", "function": tool}])


@pytest.mark.parametrize(
    "keys", [("tools", "functions"), ("functions", "functionDeclarations"), ("toolConfig", "tools")]
)
def test_two_lists_of_tools_are_refused(keys):
    with pytest.raises(ValueError, match="two lists of tools: " + ", ".join(keys)):
        flat_tools({key: [FUNCTION] for key in keys})


def test_an_output_schema_is_not_read_as_arguments():
    extras = {"outputSchema": SCHEMA, "annotations": {"title": {"type": "x"}}, "securitySchemes": [{"type": "noauth"}]}
    assert flat_tools([{"name": "now", "inputSchema": {}, **extras}]).tools == [{"name": "now", "parameters": {}}]


@pytest.mark.parametrize(
    ("schema", "spec"),
    [
        ({"type": "string", "enum": ["a", "b"], "default": "a"},
         {"type": "str", "enum": ["a", "b"], "default": "a", "required": True}),
        ({"const": 3, "enum": [1, 3]}, {"type": "any", "enum": [3]}),
        ({"const": 3}, {"type": "any", "enum": [3]}),
        ({"type": ["string", "null"]}, {"type": "Union[str, None]"}),
        ({"type": "string", "nullable": True}, {"type": "Union[str, None]"}),
        ({"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "number"}}]},
         {"type": "Union[int, List[float]]"}),
        ({"type": "array", "items": {}}, {"type": "list"}),
        ({"type": "object", "additionalProperties": {"type": "boolean"}}, {"type": "Dict[str, bool]"}),
        ({"type": "object", "additionalProperties": False}, {"type": "dict", "additionalProperties": False}),
        ({"type": "integer", "minimum": 0, "title": "N"}, {"type": "int", "minimum": 0}),
        ({}, {"type": "any"}),
        ({"type": "array", "items": [{"type": "string"}, {"type": "number"}]},
         {"type": "list", "prefixItems": [{"type": "str"}, {"type": "float"}]}),
        (
            {"type": "array", "prefixItems": [{"type": "string"}, {"type": "number"}], "minItems": 2, "maxItems": 2},
            {"type": "Tuple[str, float]", "minItems": 2, "maxItems": 2},
        ),
        (
            {"type": "array", "items": [{"type": "string"}], "additionalItems": {"type": "number"}},
            {"type": "list", "items": {"type": "float"}, "prefixItems": [{"type": "str"}]},
        ),
        ({"$ref": "#/$defs/a~1b"}, {"type": "int"}),
        ({"$ref": "#/$defs/a%7E1b"}, {"type": "int"}),
        ({"$ref": "#/$defs/L/anyOf/1"}, {"type": "bool"}),
        ({"$ref": "#/$defs/P", "description": "beside"}, {"description": "beside", "type": "dict", "properties": PERSON}),
        ({"$ref": "#/$defs/T", "description": "beside"}, {"description": "beside", "type": "int"}),
        ({"$ref": "#/$defs/T"}, {"description": "its own", "type": "int"}),
        ({"allOf": [{"$ref": "#/$defs/P"}], "description": "d"}, {"description": "d", "type": "dict", "properties": PERSON}),
        (
            {"allOf": [{"$ref": "#/$defs/P"}, {"properties": {"k": {"type": "string"}}, "required": ["k"]}]},
            {"type": "dict", "properties": PERSON | {"k": {"type": "str"}}},
        ),
        (
            {"allOf": [{"type": "object", "additionalProperties": True}, {"additionalProperties": {"type": "integer"}}]},
            {"type": "Dict[str, int]"},
        ),
        (
            {"allOf": [{"type": "object", "additionalProperties": {"type": "integer"}}, {"additionalProperties": {}}]},
            {"type": "Dict[str, int]"},
        ),
        ({"anyOf": [{"type": "string"}, {"not": {}}]}, {"type": "str"}),
        ({"type": "string", "anyOf": [{"format": "email"}, {"format": "uri"}]},
         {"type": "str", "anyOf": [{"format": "email"}, {"format": "uri"}]}),
        (
            {"type": "object", "properties": {"n": {"type": "string"}},
             "oneOf": [{"required": ["n"]}, {"not": {"required": ["n"]}}]},
            {"type": "dict", "properties": {"n": {"type": "str, optional"}},
             "oneOf": [{"required": ["n"]}, {"not": {"required": ["n"]}}]},
        ),
        ({"type": "string", "anyOf": [{"enum": ["a"]}, {"pattern": "b"}]},
         {"type": "Union[str, str]", "anyOf": [{"type": "str", "enum": ["a"]}, {"type": "str", "pattern": "b"}]}),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]},
         {"type": "Union[int, float]", "oneOf": [{"type": "int"}, {"type": "float"}]}),
        ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, {"type": "Union[int, str]"}),
        ({"type": "object", "required": ["z"]},
         {"type": "dict", "properties": {"z": {"type": "any"}}, "additionalProperties": True}),
        ({"type": "STRING"}, {"type": "str"}),
        ({"type": "ArrayList", "items": {"type": "long"}}, {"type": "List[int]"}),
        ({"type": "List[str]"}, {"type": "List[str]"}),
        ({"type": "datetime"}, {"type": "datetime"}),
        ({"type": "str, optional"}, {"type": "str"}),
        ({"type": "Optional[int]"}, {"type": "Optional[int]", "required": True}),
        (
            {"type": "object", "properties": {"n": {"type": "string"}}, "additionalProperties": True},
            {"type": "dict", "properties": {"n": {"type": "str, optional"}}, "additionalProperties": True},
        ),
        ({"$ref": "#/$defs/P"}, {"type": "dict", "properties": PERSON}),
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
        "$defs": {
            "P": person,
            "T": {"type": "integer", "description": "its own"},
            "a/b": {"type": "integer"},
            "L": {"anyOf": [{}, {"type": "boolean"}]},
        },
    }
    (tool,) = flat_tools([{"name": "f", "inputSchema": whole}]).tools
    assert to_json(tool["parameters"]["a"]) == to_json(spec)
    assert rendered([{"role": "user", "content": "q"}], [{"name": "f", "inputSchema": whole}]) == render_tags(
        "q", to_json([tool])
    )


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "two different type at once cannot be said"),
        ({"allOf": [{"minimum": 1}, {"minimum": 2}]}, "two different minimum at once cannot be said"),
        (
            {"allOf": [{"properties": {"x": {}}, "additionalProperties": False}, {"properties": {"y": {}}}]},
            "y beside additionalProperties",
        ),
        ({"type": "array", "items": {"not": {}}}, "not cannot be said in the flat form"),
        ({"anyOf": [{}], "oneOf": [{}]}, "anyOf beside oneOf cannot be said"),
        ({"anyOf": [{"not": {}}, False]}, "no value fits anyOf"),
        ({"enum": []}, "an empty enum, which no value fits"),
        ({"required": ["x"], "additionalProperties": False}, "requires x, which additionalProperties forbids"),
        ({"$ref": "#/$defs/None"}, 'the reference "#/$defs/None" leads nowhere in this schema'),
        ({"$ref": "https://example.org/a"}, "leads nowhere in this schema"),
        ({"$ref": "#/$defs/L/2"}, "leads nowhere in this schema"),
        ({"items": [{}], "prefixItems": [{}]}, "a list of items beside prefixItems cannot be said"),
        ({"unevaluatedProperties": {"type": "string"}}, "unevaluatedProperties cannot be said"),
        ({"type": {"x": 1}}, 'the type {"x": 1} is not a name'),
        ({"type": None}, "the type null is not a name"),
        ({"type": []}, "the type [] is not a name"),
        ({"properties": ["x"]}, "properties must be an object and required a list of names"),
        ({"items": "string"}, "items must be a schema"),
        ("text", "a schema must be an object"),
    ],
)
def test_reader_and_template_name_unsupported_schemas_alike(schema, reason):
    whole = {"type": "object", "properties": {"a": schema}, "$defs": {"L": [{}, {}]}}
    tools = [{"name": "f", "inputSchema": whole}]
    with pytest.raises(NotFlat) as raised:
        flat_tools(tools)
    assert str(raised.value).startswith("tool f, a: ") and reason in str(raised.value)
    with pytest.raises(TemplateError) as rendering:
        rendered([{"role": "user", "content": "q"}], tools)
    assert str(rendering.value) == str(raised.value)


TREE = {
    "type": "object",
    "properties": {"label": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}}},
}


@pytest.mark.parametrize(
    ("schema", "children"),
    [
        ({"type": "object", "properties": {"root": {"$ref": "#/$defs/Node"}}, "$defs": {"Node": TREE}},
         "tool f, root.children"),
        ({"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#"}}}}, "tool f, children"),
        (
            {"type": "object", "properties": {"root": {"type": "object",
                "properties": {"children": {"type": "array", "items": {"$ref": "#/properties/root"}}}}}},
            "tool f, root.children",
        ),
        ({"$ref": "#/$defs/Node", "$defs": {"Node": {**TREE, "required": ["label"]}}}, "tool f, children"),
    ],
)  # fmt: skip
def test_a_schema_that_contains_itself_is_cut_at_the_first_repeat_and_noted(schema, children):
    tools = [{"name": "f", "inputSchema": schema}]
    read = flat_tools(tools)
    assert read.notes == [f"{children}: contains itself, cut at its bare type"]
    inner = read.tools[0]["parameters"]
    assert (inner["root"]["properties"] if "root" in inner else inner)["children"] == {"type": "List[dict], optional"}
    assert rendered([{"role": "user", "content": "q"}], tools) == render_tags("q", to_json(read.tools))


def test_a_schema_that_contains_itself_in_two_places_has_one_note():
    sides = {key: {"$ref": "#/$defs/Node"} for key in ("left", "right")}
    schema = {"type": "object", "properties": {"root": {"$ref": "#/$defs/Node"}}, "$defs": {"Node": {"type": "object", "properties": sides}}}  # fmt: skip
    read = flat_tools([{"name": "f", "inputSchema": schema}])
    assert read.notes == ["tool f, root.left: contains itself, cut at its bare type"]
    assert read.tools[0]["parameters"]["root"]["properties"] == {key: {"type": "dict, optional"} for key in sides}


def test_flat_tools_become_plain_functions_of_openai_s():
    assert openai_tools(FLAT) == [{"type": "function", "function": FUNCTION}]


def test_a_definition_may_be_used_twice():
    base = {"type": "object", "properties": {"x": {"type": "string"}}}
    schema = {"allOf": [{"$ref": "#/$defs/B"}], "properties": {"b": {"type": "array", "items": {"$ref": "#/$defs/B"}}}}
    read = flat_tools(
        [{"name": "f", "inputSchema": {"type": "object", "properties": {"a": schema}, "$defs": {"B": base}}}]
    )
    assert read.notes == [] and "items" in read.tools[0]["parameters"]["a"]["properties"]["b"]


FORKS = pytest.mark.parametrize(
    "fork",
    [
        lambda ref: {"type": "object", "properties": {"l": {"$ref": ref}, "r": {"$ref": ref}}},
        lambda ref: {"allOf": [{"$ref": ref}, {"$ref": ref}]},
        lambda ref: {"anyOf": [{"$ref": ref}, {"$ref": ref}]},
    ],
)


def forking_tools(fork, levels):
    definitions = {f"D{level}": fork(f"#/$defs/D{level + 1}") for level in range(levels)}
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/D0"}}}
    return [{"name": "f", "inputSchema": schema | {"$defs": definitions | {f"D{levels}": {"type": "string"}}}}]


@FORKS
def test_references_that_fork_are_refused_before_they_fill_the_memory(fork):
    with pytest.raises(NotFlat, match="too large, over 1000000 characters|more than 16 references or allOf"):
        flat_tools(forking_tools(fork, 40))


@FORKS
@pytest.mark.parametrize("levels", [3, 12])
def test_the_chat_template_counts_references_that_fork_as_flat_tools_does(fork, levels, monkeypatch):
    monkeypatch.setattr(schema_merge, "MAX_READ", 10_000)
    template = CHAT_TEMPLATE.replace("max_read = 1000000", "max_read = 10000")
    assert template != CHAT_TEMPLATE
    tools, messages = forking_tools(fork, levels), [{"role": "user", "content": "q"}]
    try:
        expected = render_tags("q", to_json(flat_tools(tools).tools))
    except NotFlat as error:
        assert levels == 12
        with pytest.raises(TemplateError, match=re.escape(str(error))):
            render_jinja_template([messages], tools=tools, chat_template=template, add_generation_prompt=True)
    else:
        assert levels == 3 and rendered(messages, tools) == expected


@pytest.mark.parametrize(
    ("link", "reason"),
    [
        (lambda ref: {"$ref": ref}, "more than 16 references or allOf lead to one schema"),
        (lambda ref: {"allOf": [{"$ref": ref}]}, "more than 16 references or allOf lead to one schema"),
        (lambda ref: {"type": "array", "items": {"$ref": ref}}, "nested deeper than 64"),
        (lambda ref: {"anyOf": [{"$ref": ref}, {"type": "null"}]}, "nested deeper than 64"),
    ],
)
def test_long_chains_are_refused_before_python_s_recursion_ends_them(link, reason):
    definitions = {f"D{level}": link(f"#/$defs/D{level + 1}") for level in range(900)} | {"D900": {"type": "string"}}
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/D0"}}, "$defs": definitions}
    tools = [{"name": "f", "inputSchema": schema}]
    with pytest.raises(NotFlat, match=f"tool f, a: {reason}"):
        flat_tools(tools)
    with pytest.raises(TemplateError, match=f"tool f, a: {reason}"):
        rendered([{"role": "user", "content": "q"}], tools)


def test_a_union_of_required_arguments_stays_text_for_the_model():
    """The example of MCP's specification of 2026-07-28, and a union whose members have the
    arguments."""
    both = {"id": {"type": "string"}, "name": {"type": "string"}}
    choice = [{"required": ["id"]}, {"required": ["name"]}]
    tools = [
        {"name": "find", "inputSchema": {"type": "object", "properties": both, "oneOf": choice}},
        {
            "name": "get",
            "inputSchema": {
                "type": "object",
                "oneOf": [{"properties": {key: both[key]}, "required": [key]} for key in both],
            },
        },
    ]
    find, get = flat_tools(tools).tools
    optional = {key: {"type": "str, optional"} for key in both}
    assert find == {"name": "find", "parameters": optional, "oneOf": choice}
    assert get["parameters"] == optional and get["oneOf"][0] == {"type": "dict", "properties": {"id": {"type": "str"}}}
    assert rendered([{"role": "user", "content": "q"}], tools) == render_tags("q", to_json([find, get]))
    for name, arguments, fits in (
        ("find", {"id": "a"}, True),
        ("get", {"id": "a"}, True),
        ("get", {"id": "a", "name": "b"}, False),
    ):
        assert (call_problems([{"name": name, "arguments": arguments}], [find, get]) == []) == fits


def test_two_tools_of_one_name_are_not_rendered():
    """A call to one of them would be ambiguous. Training refuses such a row."""
    tools = [{"type": "function", "function": {"name": "f"}}, {"name": "f", "inputSchema": {}}]
    with pytest.raises(TemplateError, match="tool f: two tools have the same name"):
        rendered([{"role": "user", "content": "q"}], tools)


@pytest.mark.parametrize(
    "tools",
    [
        [{"name": "now"}, FUNCTION],
        [{"name": "now", "parameters": {}}, *FLAT],
        [{"type": "function", "name": "now"}, {"type": "function", **FUNCTION}],
        [{**BARE, "inputSchema": SCHEMA}],
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


def test_an_unsupported_tool_is_left_out_and_the_others_are_kept():
    closed = {"type": "object", "properties": {"x": {"patternProperties": {}}}}
    tools = [{"name": "c", "inputSchema": closed}, *FLAT]
    with pytest.raises(NotFlat, match="tool c, x: patternProperties cannot be said"):
        flat_tools(tools)
    read = flat_tools(tools, keep_going=True)
    assert read.tools == FLAT and read.left_out == ["tool c, x: patternProperties cannot be said in the flat form"]


def test_arguments_may_have_the_names_of_keywords():
    spec = {"description": "d", "type": "str"}
    tools = [{"name": "f", "parameters": {"type": spec, "properties": spec, "required": spec}}, {"name": "g"}]
    assert flat_tools(tools) == ReadTools(tools, "xLAM", [], [])


# Any flat tool and back

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
types = st.sampled_from(
    ["str", "int", "float", "bool", "list", "dict", "any", "None", "List[int]", "List[List[str]]", "Dict[str, float]",
     "Tuple[int, int]",
     "Union[str, None]", "Optional[int]", "int | str", "STR", "string", "str, optional", "Callable", ", optional", "",
     "List[" * 70 + "int" + "]" * 70]
)  # fmt: skip
specs = st.recursive(
    st.fixed_dictionaries(
        {},
        optional={"description": texts, "type": types, "enum": st.lists(values, max_size=2), "default": values,
                  "format": texts,
                  "required": st.booleans(), "x": values, "$ref": values, "allOf": values, "not": values,
                  "nullable": values, "const": values},
    ),
    lambda inner: st.fixed_dictionaries(
        {"type": types},
        optional={"properties": st.dictionaries(texts, inner, max_size=2), "items": inner,
                  "additionalProperties": inner,
                  "anyOf": st.lists(inner, max_size=2), "oneOf": st.lists(inner | values, max_size=2),
                  "prefixItems": st.lists(inner, max_size=2),
                  "description": texts, "$defs": inner, "x-xlam": inner, "minItems": st.integers(0, 3)},
    ) | st.fixed_dictionaries({}, optional={"properties": values, "items": values, "additionalProperties": values,
        "anyOf": values, "enum": values}),
    max_leaves=4,
)  # fmt: skip
tools_strategy = st.lists(
    st.fixed_dictionaries(
        {"name": texts},
        optional={
            "description": texts,
            "x": values,
            "additionalProperties": st.booleans(),
            "oneOf": st.lists(specs, max_size=2),
            "parameters": st.dictionaries(
                texts | st.sampled_from(["$ref", "type", "items", "anyOf", "x-xlam"]), specs, max_size=3
            ),
        },
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
def test_flat_tools_survive_openai_s_form_exactly(tools, query):
    try:
        flat, name, *_ = flat_tools(tools)
    except ValueError:
        return  # looks like another format
    if name != "xLAM":
        return
    given_out = openai_tools(flat)
    assert to_json(flat_tools(given_out).tools) == to_json(flat) or not flat
    assert rendered([{"role": "user", "content": query}], given_out) == render_tags(query, to_json(flat))


ODD = [None, True, 0, "", "x", [], {}, [1], [[]], {"type": 3}, {"type": []}, {"$ref": 3}, {"$ref": "#"},
       {"$ref": "#/$defs/A%"}, {"$ref": "#/$defs/A%zz"},
       {"$ref": "#/$defs/%C3%A9"}, {"properties": [1]}, {"required": [1]}, {"required": [[]]}, {"items": 3},
       {"enum": 3}, {"anyOf": 3}, {"anyOf": []},
       {"oneOf": [1]}, {"allOf": {}}, {"not": {}}, {"x-xlam": {"type": 3}},
       {"x-xlam": {"name": "g", "parameters": [1]}}, {"prefixItems": {}},
       {"additionalProperties": 3}, {"nullable": 1}, {"const": 1, "enum": [2]},
       {"type": "String, Optional", "default": 1}]  # fmt: skip


def odd_tools(rng, seed):
    """Tools of one format with up to three values replaced by invalid ones."""
    schema = copy.deepcopy(draw_parameters(seed)) | {"$defs": copy.deepcopy(DEFINITIONS) | {"é": {"type": "string"}}}
    key = rng.choice([*SCHEMA_KEYS, "schema"])
    tool = {
        "name": "f",
        key: schema.get("properties", {}) if key in ("args", "inputs", "parameter_definitions") else schema,
    }
    tool = rng.choice(
        [tool, tool, {"type": "function", "function": tool}, {"toolSpec": tool}, {"functionDeclarations": [tool]}]
    )
    tools = [tool, {"name": rng.choice("fg")}]
    for _ in range(rng.randrange(4)):
        inner = list(containers(tools[0]))
        chosen, odd = rng.choice(inner), copy.deepcopy(rng.choice(ODD))
        if isinstance(chosen, dict):
            chosen[rng.choice([*chosen, "type", "properties", "anyOf", "$ref", "x-xlam", "enum"])] = odd
        else:
            chosen.append(odd)
    return tools


def containers(value):
    if isinstance(value, dict | list):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from containers(inner)


def test_the_chat_template_reads_and_refuses_the_same_tools_as_flat_tools():
    read = refused = 0
    for seed in range(250):
        tools = odd_tools(random.Random(seed), seed)
        try:
            expected = render_tags("q", to_json(flat_tools(tools).tools))
            read += 1
        except ValueError as error:
            refused += 1
            with pytest.raises(TemplateError) as raised:
                rendered([{"role": "user", "content": "q"}], tools)
            # A template cannot parse JSON text, so its message for a tool as text differs.
            assert str(raised.value) == str(error) or "is text and no JSON" in str(error), json.dumps(tools)
        else:
            assert rendered([{"role": "user", "content": "q"}], tools) == expected, json.dumps(tools)
    assert read > 50 and refused > 50


def rendered_by_minijinja(messages, tools):
    """minijinja is the engine of servers in Rust. The values are literals: it reads Python's dicts
    with their methods as keys."""
    import minijinja

    environment = minijinja.Environment(auto_escape_callback=lambda name: False)

    def raise_exception(message):
        raise TemplateError(message)

    environment.add_function("raise_exception", raise_exception)
    values = {"messages": messages, "tools": tools}
    literals = "".join(f"{{%- set {name} = {to_json(value)} -%}}" for name, value in values.items())
    return environment.render_str("{%- set null = none -%}" + literals + CHAT_TEMPLATE)


def test_minijinja_renders_and_refuses_like_jinja2():
    pytest.importorskip("minijinja")
    messages, num_read = [{"role": "user", "content": "it's <q>"}], 0
    drawn = [[{"name": "f", "inputSchema": draw_parameters(seed) | {"$defs": DEFINITIONS}}] for seed in range(20)]
    odd = [odd_tools(random.Random(seed), seed) for seed in range(30)]
    for tools in drawn + odd:
        if "%C3%A9" in to_json(tools):  # without Python's bytes, a template decodes only ASCII
            continue
        try:
            expected = rendered(messages, tools)
            num_read += 1
        except TemplateError as error:
            with pytest.raises(TemplateError, match=re.escape(str(error))):
                rendered_by_minijinja(messages, tools)
        else:
            assert rendered_by_minijinja(messages, tools) == expected, json.dumps(tools)
    assert num_read > 10


def test_minijinja_renders_conversations_like_jinja2():
    pytest.importorskip("minijinja")
    written = ['{"a": 1.0, "b":[true,null] }', '{"a": "x\\"y\\\\", "\\u003c": "\\n\\/"}', "{}", '\n{\t"a": "it\'s" }']
    for arguments in [*written, {"a": [1.5, {"b": "<&'>\\u0027"}]}, {}, None]:
        messages = [
            {"role": "user", "content": [{"type": "text", "text": "q"}]},
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]},
            {"role": "tool", "content": {"temperature": 1.0, "words": "it's"}},
        ]
        assert rendered_by_minijinja(messages, []) == rendered(messages, []), arguments


def test_the_chat_template_renders_the_demo_s_prompts():
    for row in generate_rows(100, seed=5):
        tools = json.loads(row["tools"])
        assert rendered([{"role": "user", "content": row["query"]}], openai_tools(tools)) == render_tags(
            row["query"], to_json(tools)
        )


@given(
    st.lists(
        st.fixed_dictionaries({"name": texts, "arguments": st.dictionaries(texts, values, max_size=3)}), max_size=3
    )
)
def test_calls_survive_openai_s_form(calls):
    assert flat_calls(openai_calls(calls)) == calls
    assert len({call["id"] for call in openai_calls(calls)}) == len(calls)
