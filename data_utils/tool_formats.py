"""Conversion of public formats of tools and calls (OpenAI's, MCP's, Anthropic's, ...) to and from
xLAM's flat form.

The flat form is the model's, in training and after: `{"name", "description", "parameters":
{argument: spec}}`; flat_spec.py has the specs. chat_template.jinja has the rules of both files in
Jinja for servers, with the same messages. It reads TABLES."""

from collections import Counter
from typing import NamedTuple

from data_utils.flat_spec import OF_THE_TOOL, PLACED, flat_spec, read_arguments
from data_utils.prompt import to_json
from data_utils.schema_merge import (
    ANNOTATIONS,
    FLAT_TYPES,
    MAX_READ,
    MAX_STEPS,
    NO_MEANING,
    NOT_FLAT,
    SCHEMA_COST,
    STRUCTURE,
    VERBATIM,
    NotFlat,
    Reading,
    refuse,
    within,
)
from data_utils.tool_calls import FLAT_FORM, check_tool, parse_json
from data_utils.tool_schema import PLAIN_TYPES, UNIONS, is_required, parameter_schema, specs_at
from run_utils.files import MAX_DEPTH

# Keys of a tool's arguments (a JSON Schema, or a spec for each argument), and their formats.
SCHEMA_KEYS = {
    "parameters": "JSON Schema", "inputSchema": "MCP", "input_schema": "Anthropic", "parameters_json_schema": "Gemini",
    "parametersJsonSchema": "Gemini", "args_schema": "LangChain", "parameter_definitions": "Cohere",
    "inputs": "smolagents", "args": "LangChain",
}  # fmt: skip
UNREAD_ARGUMENT = f"is not read: arguments belong in a JSON Schema's properties, or in {FLAT_FORM}"
FLAT_KEYS = {"name", "description", "parameters"}
WRAPPERS = {"function": "OpenAI", "toolSpec": "Bedrock", "tool_spec": "Bedrock"}
DECLARATIONS = ("function_declarations", "functionDeclarations")
# Keywords of JSON Schema with a schema, and with schemas by name. Only xLAM's tools may have
# arguments with these names.
SCHEMA_KEYWORDS = (
    "additionalProperties", "not", "if", "then", "else", "propertyNames", "contains", "unevaluatedProperties",
)  # fmt: skip
SCHEMAS_BY_NAME = ("$defs", "definitions", "patternProperties", "dependentSchemas")
NOT_BESIDE = "required beside parameters is not read: put it into a JSON Schema"
# Parts of the names of keys without arguments, though their values may look like arguments.
NO_ARGUMENTS = (
    "output", "return", "response", "result", "annotation", "meta", "example", "cache", "security", "execution",
)  # fmt: skip
TABLES = {
    "flat_types": FLAT_TYPES, "plain_types": PLAIN_TYPES, "schema_keys": SCHEMA_KEYS, "wrappers": WRAPPERS,
    "unions": UNIONS, "declarations": DECLARATIONS, "unread_argument": UNREAD_ARGUMENT, "no_arguments": NO_ARGUMENTS,
    "no_meaning": NO_MEANING, "annotations": ANNOTATIONS, "not_flat": NOT_FLAT, "structure": STRUCTURE,
    "placed": PLACED, "of_the_tool": OF_THE_TOOL, "max_read": MAX_READ, "schema_keywords": SCHEMA_KEYWORDS,
    "schemas_by_name": SCHEMAS_BY_NAME, "not_beside": NOT_BESIDE, "schema_cost": SCHEMA_COST,
    "max_depth": MAX_DEPTH, "max_steps": MAX_STEPS,
}  # fmt: skip

# Any format -> the flat form


class ReadTools(NamedTuple):
    tools: list  # in the flat form
    format: str  # "MCP", or "MCP and OpenAI" of a mixed list
    notes: list[str]  # "tool save_tree, root.children: contains itself, cut at its bare type"
    left_out: list[str]  # "tool c, x: patternProperties cannot be said in the flat form"


def flat_tools(value, *, keep_going=False):
    """Convert a parsed value to ReadTools; docs/formats.md has the table of formats.

    Tools are a list, bare or in the objects of servers and libraries. They are read one by one: a
    list may mix formats. Raises ValueError if the value is not a list of tools. A tool that does
    not fit the flat form raises NotFlat, or is left out with `keep_going`."""
    if (
        isinstance(value, list)
        and all(map(is_flat_tool, value))
        and len({tool["name"] for tool in value}) == len(value)
    ):
        return ReadTools(value, "xLAM", [], [])  # nearly all rows
    tools, formats, notes, left_out, names = [], Counter(), [], [], set()
    for tool, form in entries(value):
        try:
            form, flat = read_tool(tool, form, notes)
            if flat["name"] in names:
                raise NotFlat(f"tool {flat['name']}: two tools have the same name")
        except ValueError as error:
            if not keep_going:
                raise
            left_out.append(str(error))
            continue
        names.add(flat["name"])
        tools.append(flat)
        # A flat tool without arguments fits a list of any format.
        formats[form] += form != "xLAM" or bool(flat.get("parameters"))
    return ReadTools(tools, " and ".join(sorted(+formats)) or "xLAM", notes, left_out)


def entries(value):
    """The tools in a parsed value, each with the format of the object around it, or None."""
    value = from_text(value)
    for key in ("result", "toolConfig", "tools", "functions"):
        refuse_two_lists(value, ("toolConfig", "tools", "functions", *DECLARATIONS))
        if isinstance(value, dict) and key in value:
            value = from_text(value[key])
    if isinstance(value, dict) and any(key in value for key in DECLARATIONS):
        value = [value]
    if not isinstance(value, list):
        raise ValueError("not a list of tools")
    for tool in value:
        refuse_two_lists(tool, DECLARATIONS)
        declared = [key for key in DECLARATIONS if tool.get(key) is not None] if isinstance(tool, dict) else []
        if declared and isinstance(tool[declared[0]], list):
            yield from ((function, "Gemini") for function in tool[declared[0]])
        else:
            yield tool, None


def refuse_two_lists(value, keys):
    if isinstance(value, dict) and len(given := [key for key in keys if value.get(key) is not None]) > 1:
        raise NotFlat(f"two lists of tools: {', '.join(given)}")


def from_text(value):
    """A value, parsed if it is JSON text. Raises NotFlat."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except ValueError as error:
        raise NotFlat(f"a tool that is text and no JSON: {error}") from None


def is_flat_tool(tool):
    """Whether a tool is certainly in the flat form."""
    if not isinstance(tool, dict) or not tool.keys() <= FLAT_KEYS:
        return False
    return isinstance(tool.get("name"), str) and has_specs(tool.get("parameters", {}))


def has_specs(parameters):
    """Whether an object has a spec for each argument, and is not a JSON Schema of all arguments."""
    if not isinstance(parameters, dict) or not all(isinstance(spec, dict) for spec in parameters.values()):
        return False
    # The spec of an argument named "properties" has texts in it, not specs.
    properties = parameters.get("properties")
    return properties is None or not all(isinstance(spec, dict) for spec in properties.values())


def has_keywords(parameters):
    """Whether an object has schemas at keywords of JSON Schema. A single argument's spec has texts
    instead."""
    by_name = [parameters[key] for key in SCHEMAS_BY_NAME if isinstance(parameters.get(key), dict)]
    return any(key in parameters for key in SCHEMA_KEYWORDS) or any(
        all(isinstance(schema, dict) for schema in schemas.values()) for schemas in by_name
    )


def read_tool(tool, form, notes):
    """The format of a tool, and the tool in the flat form. form: the format of the object around
    the tool, if known."""
    tool = from_text(tool)
    if not isinstance(tool, dict):
        raise NotFlat("a tool must be an object with a name")
    wrapped = dict if "name" in tool else dict | str
    wrapper = next((key for key in WRAPPERS if isinstance(tool.get(key), wrapped)), None)
    function = from_text(tool[wrapper]) if wrapper else tool
    if not isinstance(function, dict):
        raise NotFlat("a tool must be an object with a name")
    keys = [key for key in SCHEMA_KEYS if function.get(key) is not None]
    key = next((key for key in keys if function[key]), keys[0] if keys else "parameters")
    tool_type = tool.get("type")
    if tool_type is not None and tool_type != "function" and not (tool_type == "custom" and key == "input_schema"):
        raise NotFlat(f"tool {to_json(tool.get('name'))}: tools of the type {to_json(tool_type)} are not read")
    if not isinstance(function.get("name"), str):
        raise NotFlat("a tool must be an object with a name")
    where = f"tool {function['name']}"
    is_bare = form is None and wrapper is None and tool_type is None and key == "parameters"
    form = form or WRAPPERS.get(wrapper) or SCHEMA_KEYS[key]
    flat = {key: function[key] for key in ("name", "description") if function.get(key) is not None}
    schema = from_text(function[key]) if keys else {}
    for inner, name in (("json", "Bedrock"), ("jsonSchema", "AI SDK")):
        if key == "inputSchema" and isinstance(schema, dict) and isinstance(schema.get(inner), dict):
            form, schema = name if form == "MCP" else form, schema[inner]
    if not isinstance(schema, dict):
        raise NotFlat(f"{where}: {key} must be an object")
    required = function.get("required")
    if isinstance(required, list) and (schema or required) and required != schema.get("required"):
        raise NotFlat(f"{where}: {NOT_BESIDE}")
    if is_bare and has_specs(schema):
        form, flat = "xLAM", tool if keys or "parameters" not in tool else flat
    elif key in ("inputs", "args", "parameter_definitions") and has_specs(schema):
        flat |= read_arguments({"properties": schema, "required": required_names(schema, key)}, where, notes)
    elif schema and has_specs(schema) and not has_keywords(schema):
        for name, spec in schema.items():
            refuse(within(where, name), *(word for word in ("$ref", "allOf", *NOT_FLAT) if word in spec))
        flat["parameters"] = schema
    elif isinstance(schema.get(VERBATIM), dict):
        flat = schema[VERBATIM]
    else:
        flat |= read_arguments(schema, where, notes)
        if not flat.get("parameters"):
            # Beside additionalProperties, a text is a remark, but an object may be an argument.
            unread = dict if flat.get("additionalProperties") else dict | list | str
            known = (*PLACED, *ANNOTATIONS, *OF_THE_TOOL, "allOf", "$ref")
            odd = {key: value for key, value in schema.items() if key not in known and not key.startswith(("$", "x-"))}
            refuse(
                where, *(key for key, value in odd.items() if value and isinstance(value, unread)), why=UNREAD_ARGUMENT
            )
    check_tool(flat)
    if not flat.get("parameters"):
        holders = [*function.items(), *(tool.items() if wrapper else ())]
        names = [key for key, value in holders if key not in (*SCHEMA_KEYS, *WRAPPERS) and holds_schemas(key, value)]
        refuse(where, *names, why="is not read")
    return form, flat


def required_names(specs, key):
    """The required arguments in specs of LangChain, smolagents or Cohere."""
    if key == "inputs":
        return [name for name, spec in specs.items() if spec.get("nullable") is not True]
    # Cohere's specs contain `required`.
    return [name for name, spec in specs.items() if key == "args" and "default" not in spec]


def holds_schemas(key, value):
    """Whether a tool's unread key seems to hold its arguments."""
    if any(part in key.lower() for part in NO_ARGUMENTS):
        return False
    specs = value if isinstance(value, list) else [value, *value.values()] if isinstance(value, dict) else []
    return any(
        isinstance(spec, dict) and ("type" in spec or isinstance(spec.get("properties"), dict)) for spec in specs
    )


# The flat form -> OpenAI's


def openai_tools(tools):
    """Convert flat tools to OpenAI's functions. flat_tools converts them back to exactly the same
    tools."""
    return [{"type": "function", "function": openai_function(tool)} for tool in tools]


def openai_function(tool):
    parameters = tool.get("parameters") or {}
    schema = {
        "type": "object",
        "properties": {name: schema_of(spec) for name, spec in parameters.items()},
        "required": [name for name, spec in parameters.items() if is_required(spec)],
    }
    if tool.get("additionalProperties") is True:
        schema["additionalProperties"] = True
    schema |= {key: tool[key] for key in OF_THE_TOOL if key in tool}
    function = {key: tool[key] for key in ("name", "description") if key in tool} | {"parameters": schema}
    try:
        is_same_tool = to_json(read_tool(function, None, [])[1]) == to_json(tool)
    except NotFlat:
        is_same_tool = False
    if not is_same_tool:
        schema[VERBATIM] = tool
    return function


def schema_of(spec):
    """The schema that flat_spec converts to this spec. It contains the spec itself if the rules
    alone would not restore it."""
    inner = {key: schema_of(spec[key]) for key in ("items", "additionalProperties") if isinstance(spec.get(key), dict)}
    if isinstance(spec.get("properties"), dict) and all(
        isinstance(inside, dict) for inside in spec["properties"].values()
    ):
        inner["properties"] = {name: schema_of(inside) for name, inside in spec["properties"].items()}
    for key in ("prefixItems", *UNIONS):
        if specs_at(spec, key):
            inner[key] = [schema_of(member) for member in spec[key]]
    schema = {key: value for key, value in spec.items() if key not in PLACED} | parameter_schema(spec) | inner
    schema |= {key: spec[key] for key in ("description", "default") if key in spec}
    try:
        same = flat_spec(schema, Reading({}, []), "", 0, ("",), optional=not is_required(spec))
        if to_json(same) == to_json(spec):
            return schema
    except NotFlat:
        pass
    return schema | {VERBATIM: spec}


def openai_calls(calls):
    """Calls as an OpenAI message's `tool_calls`."""
    return [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": call["name"], "arguments": to_json(call["arguments"])},
        }
        for number, call in enumerate(calls)
    ]
