"""Other people's tools and calls, read and written: OpenAI's functions, JSON Schema, MCP, and xLAM's flat form between them.

The flat form is what models are trained on and asked with: `{"name", "description", "parameters": {argument: spec}}`. A spec is
`{"description", "type", "enum", "default", "properties", "items", "additionalProperties", ...}`, in this order, each key only where
there is something to say. FLAT_TYPES is the table of types; an argument that may be left out has `, optional` after its type. What
has keys or values of its own, an object in an object, a list of choices, is a spec in turn. JSON Schema's other keywords (`format`,
`minimum`, `pattern`, ...) stay as they are. chat_template.jinja says the same in Jinja, for servers.
"""

from collections import Counter
from typing import NamedTuple

from data_utils.prompt import to_json
from data_utils.tool_calls import MAX_DEPTH, check_tools
from data_utils.tool_schema import is_required, parameter_schema, specs_at

FLAT_TYPES = {
    "string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None", "array": "list", "object": "dict",
}  # fmt: skip
NO_MEANING = (
    "title",
    "$schema",
    "$id",
    "$defs",
    "definitions",
    "$comment",
)  # of JSON Schema's keywords: nothing about a call
NOT_FLAT = (
    "allOf",
    "not",
    "if",
    "patternProperties",
    "$dynamicRef",
    "dependentSchemas",
    "contains",
)  # those without a place

# JSON Schema -> the flat form


class NotFlat(ValueError):
    """A tool that the flat form cannot hold; the message names tool, argument and reason."""


class ReadTools(NamedTuple):
    tools: list  # in the flat form
    format: str  # "MCP", or "MCP and OpenAI" of a mixed list
    notes: list[str]  # "tool save_tree, root.children: contains itself, cut at its bare type"
    left_out: list[str]  # "tool c, x: patternProperties cannot be said in the flat form"


def flat_tools(value, *, keep_going=False):
    """A parsed value as ReadTools.

    Read are xLAM's flat form, JSON Schema's functions with or without OpenAI's wrapper, MCP's tools (`inputSchema`), Anthropic's
    (`input_schema`), as a list or in the object that `tools/list` gives, bare or in a JSON-RPC `result`; tool by tool, so that a list
    may mix formats. Raises ValueError for a value that is no list of tools. A tool that the flat form cannot hold raises NotFlat, or
    with `keep_going` is left out.
    """
    if isinstance(value, dict):
        result = value.get("result")
        value = result.get("tools") if isinstance(result, dict) and "tools" in result else value.get("tools", value)
    if not isinstance(value, list):
        raise ValueError("not a list of tools")
    tools, formats, notes, left_out = [], Counter(), [], []
    for tool in value:
        try:
            form = format_of(tool)
            flat = tool if form == "xLAM" else flat_tool(tool)
        except NotFlat as error:
            if not keep_going:
                raise
            left_out.append(str(error))
            continue
        tools.append(flat)
        formats[form] += form != "xLAM" or takes_arguments(tool)  # one without arguments fits any list
    check_tools(tools)
    return ReadTools(tools, " and ".join(sorted(+formats)) or "xLAM", notes, left_out)


def takes_arguments(tool):
    return isinstance(tool, dict) and bool(tool.get("parameters"))


def format_of(tool):
    """The name of the format that one tool is in."""
    if not isinstance(tool, dict):
        return "xLAM"
    if isinstance(tool.get("function"), dict):
        return "OpenAI"
    if "inputSchema" in tool:
        return "MCP"
    if "input_schema" in tool:
        return "Anthropic"
    if "function_declarations" in tool or "functionDeclarations" in tool:
        raise NotFlat("Gemini's function_declarations are not read: give the functions as OpenAI's")
    parameters = tool.get("parameters")
    if tool.get("type") == "function":  # of OpenAI's Responses
        return "JSON Schema"
    if not isinstance(parameters, dict):
        return "xLAM"
    properties = parameters.get("properties")
    # An argument may be called "properties": what describes it then has texts, not arguments, in it.
    if isinstance(properties, dict) and all(isinstance(spec, dict) for spec in properties.values()):
        return "JSON Schema"
    return "JSON Schema" if parameters.get("type") == "object" else "xLAM"


def flat_tool(tool):
    """A tool with a schema of its arguments, in the flat form."""
    tool = tool["function"] if isinstance(tool.get("function"), dict) else tool
    if not isinstance(tool.get("name"), str):
        raise NotFlat("a tool must have a name")
    schema = next((tool[key] for key in ("parameters", "inputSchema", "input_schema") if tool.get(key) is not None), {})
    if not isinstance(schema, dict):
        raise NotFlat(f"tool {tool['name']}: the schema of its arguments is not an object")
    if isinstance(schema.get(VERBATIM), dict):
        return schema[VERBATIM]
    where = f"tool {tool['name']}"
    flat = {"name": tool["name"]}
    if tool.get("description") is not None:
        flat["description"] = tool["description"]
    resolved = resolve(schema, schema, where)
    refuse(where, *(key for key in (*NOT_FLAT, "anyOf", "oneOf") if key in resolved))
    return flat | {"parameters": flat_properties(resolved, schema, where, 0)}


def refuse(where, *keys):
    if keys:
        raise NotFlat(f"{where}: {', '.join(keys)} cannot be said in the flat form")


VERBATIM = (
    "x-xlam"  # in a schema made of a tool or spec that the table alone would not give back: the tool or spec itself
)


def flat_properties(schema, root, where, depth):
    properties, required = schema.get("properties") or {}, schema.get("required") or []
    if not isinstance(properties, dict) or not isinstance(required, list):
        raise NotFlat(f"{where}: properties must be an object and required a list")
    return {
        name: flat_spec(inner, root, f"{where}, {name}", depth + 1, optional=name not in required)
        for name, inner in properties.items()
    }


def flat_spec(schema, root, where, depth=0, optional=False):
    """A JSON Schema as a spec. root: the document that references are into. Raises ValueError, which begins with `where`, if there is
    no such spec."""
    schema = resolve(schema, root, where)
    if isinstance(schema.get(VERBATIM), dict):
        return schema[VERBATIM]
    if depth > MAX_DEPTH:
        raise NotFlat(f"{where}: a schema that contains itself, or is nested deeper than {MAX_DEPTH}")
    refuse(where, *(key for key in NOT_FLAT if key in schema))
    if isinstance(schema.get("items"), list):  # how drafts before 2020-12 say prefixItems
        schema = {**schema, "items": {}, "prefixItems": schema["items"]}
    if schema.get("prefixItems") and schema.get("items"):
        refuse(where, "items beside prefixItems")
    if (schema.get("anyOf") or schema.get("oneOf")) and (schema.get("type") or schema.get("properties")):
        refuse(where, "anyOf or oneOf beside type or properties")

    def inner(key):
        """The specs of the schemas that stand at a key, one or a list of them."""
        value = schema.get(key)
        schemas = value if isinstance(value, list) else [value] if isinstance(value, dict) and value else []
        return [flat_spec(each, root, where, depth + 1) for each in schemas]

    items, values, places = inner("items"), inner("additionalProperties"), inner("prefixItems")
    members = inner("anyOf") or inner("oneOf")
    kinds = schema.get("type", [])
    names = []
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if not isinstance(kind, str) or kind not in FLAT_TYPES:
            raise NotFlat(f"{where}: {kind!r} is not one of JSON Schema's types")
        arguments = {"array": places or items, "object": values}.get(kind, [])
        name = "Dict" if kind == "object" else "Tuple" if places else "List"
        said = ", ".join(["str"] * (kind == "object") + list(map(type_of, arguments)))
        names.append(f"{name}[{said}]" if arguments else FLAT_TYPES[kind])
    names += [*map(type_of, members)] + ["None"] * (schema.get("nullable") is True)
    kind = (
        f"Union[{', '.join(names)}]"
        if len(names) > 1
        else "".join(names) or ("dict" if "properties" in schema else "any")
    )
    spec = {"description": schema["description"]} if "description" in schema else {}
    spec["type"] = kind + ", optional" * optional
    if "const" in schema:
        spec["enum"] = [schema["const"]]
    spec |= {key: schema[key] for key in ("enum", "default") if key in schema}
    if schema.get("properties"):
        spec["properties"] = flat_properties(schema, root, where, depth)
    for key, specs in (("items", items), ("additionalProperties", values), ("prefixItems", places), ("anyOf", members)):
        if any(set(each) != {"type"} for each in specs):  # else the type says it all: List[int]
            spec[key] = specs if key in ("prefixItems", "anyOf") else specs[0]
        elif key == "additionalProperties" and schema.get("properties") and schema.get(key) in (True, {}):
            spec[key] = True
    return spec | {key: value for key, value in schema.items() if key not in (*SAID, *NO_MEANING)}


def type_of(spec):
    return str(spec.get("type", "any"))  # one that is put in as it is may have none


# The keywords that flat_spec has a place for; all others stay as they are, after these.
SAID = (
    *("description", "type", "const", "enum", "default", "properties", "required"),
    *("items", "additionalProperties", "prefixItems", "anyOf", "oneOf", "nullable"),
)


def resolve(schema, root, where):
    """The schema that a `$ref` into the same document means, with what stands beside it."""
    if not isinstance(schema, dict):
        raise NotFlat(f"{where}: a schema must be an object")
    for _ in range(MAX_DEPTH):
        if "$ref" not in schema:
            return schema
        found = root
        for part in str(schema["$ref"]).split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            found = found.get(part) if isinstance(found, dict) else None
        if not str(schema["$ref"]).startswith("#/") or not isinstance(found, dict):
            break
        schema = found | {key: value for key, value in schema.items() if key != "$ref"}
    raise NotFlat(f"{where}: the reference {schema['$ref']} leads nowhere in this schema")


# The flat form -> OpenAI's


def openai_tools(tools):
    """Tools in the flat form as OpenAI's functions. flat_tools makes the same tools of them, to the last character."""
    return [{"type": "function", "function": openai_function(tool)} for tool in tools]


def openai_function(tool):
    parameters = tool.get("parameters") or {}
    schema = {
        "type": "object",
        "properties": {name: schema_of(spec) for name, spec in parameters.items()},
        "required": [name for name, spec in parameters.items() if is_required(spec)],
    }
    function = {key: tool[key] for key in ("name", "description") if key in tool} | {"parameters": schema}
    if to_json(flat_tool(function)) != to_json(tool):
        schema[VERBATIM] = tool
    return function


def schema_of(spec):
    """What flat_spec makes this spec of. What the table of types does not say the same way is put in as it is, beside the types."""
    inner = {key: schema_of(spec[key]) for key in ("items", "additionalProperties") if isinstance(spec.get(key), dict)}
    if isinstance(spec.get("properties"), dict):
        inner["properties"] = {name: schema_of(each) for name, each in spec["properties"].items()}
    inner |= {
        key: [schema_of(each) for each in specs_at(spec, key)]
        for key in ("prefixItems", "anyOf")
        if specs_at(spec, key)
    }
    schema = {key: value for key, value in spec.items() if key not in SAID} | parameter_schema(spec) | inner
    schema |= {key: spec[key] for key in ("description", "default") if key in spec}
    try:
        if to_json(flat_spec(schema, {}, "", optional=not is_required(spec))) == to_json(spec):
            return schema
    except ValueError:
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
