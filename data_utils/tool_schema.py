"""JSON Schemas of xLAM's flat tools, whose types are informal, and the misfits of calls."""

import functools
import re

import jsonschema

from run_utils.files import MAX_DEPTH

PLAIN_TYPES = {
    "str": "string", "string": "string", "text": "string", "char": "string", "character": "string",
    "int": "integer", "integer": "integer", "long": "integer", "short": "integer", "byte": "integer",
    "bigint": "integer",
    "float": "number", "number": "number", "double": "number",
    "bool": "boolean", "boolean": "boolean",
    "list": "array", "array": "array", "arraylist": "array", "tuple": "array", "set": "array", "sequence": "array",
    "iterable": "array",
    "dict": "object", "object": "object", "mapping": "object", "map": "object", "hashmap": "object",
    "none": "null", "null": "null", "nonetype": "null",
}  # fmt: skip
UNIONS = ("anyOf", "oneOf")
# If a spec has only these keys, only its type constrains values.
PLAIN_KEYS = {"description", "type", "default", "required"}


def tool_schema(tool):
    """The JSON Schema of the `arguments` of a call to a flat tool (a parsed value). Unknown types
    accept any value."""
    schema = object_schema(tool.get("parameters") or {}, tool.get("additionalProperties"))
    return schema | {
        key: list(map(parameter_schema, alternatives(tool, key))) for key in UNIONS if alternatives(tool, key)
    }


def object_schema(properties, others):
    """The schema of an object. properties: specs by name. others: the spec of additional values, or
    True for any value."""
    return {
        "type": "object",
        "properties": {name: parameter_schema(spec) for name, spec in properties.items()},
        "required": [name for name, spec in properties.items() if is_required(spec)],
        "additionalProperties": parameter_schema(others) if isinstance(others, dict) else others is True,
    }


def is_required(spec):
    """Whether an argument must be given. A boolean `required` decides; otherwise a type like "str,
    optional" or a default makes it optional."""
    if isinstance(spec.get("required"), bool):
        return spec["required"]
    return "default" not in spec and not parse_type(str(spec.get("type", "")))[1]


@functools.lru_cache(maxsize=256)  # rows have few types
def parse_type(type_name):
    """The schema of a type, and whether `, optional` after it or `Optional[...]` makes an argument
    optional."""
    end = type_name.rfind("]") + 1  # the mark follows the last bracket
    mark = re.search(r",\s*(optional|default)\b", type_name[end:], re.IGNORECASE)
    is_optional = re.search(r",\s*optional\b", type_name[end:], re.IGNORECASE) or type_name.strip().lower().startswith(
        "optional["
    )
    return type_schema(type_name[: end + mark.start()] if mark else type_name), bool(is_optional)


def parameter_schema(spec):
    """The JSON Schema of a spec's values. Do not change it in place."""
    kinds = spec.get("type", "")
    schema, _ = parse_type(" | ".join(map(str, kinds)) if isinstance(kinds, list) else str(kinds))
    if spec.keys() <= PLAIN_KEYS and not isinstance(spec.get("required"), list):
        return schema
    for key in UNIONS:
        if members := alternatives(spec, key):
            schema = {key: [parameter_schema(member) for member in members]}
    kinds = schema.get("anyOf", [schema])
    if spec.get("nullable") is True and schema and {"type": "null"} not in kinds:
        schema = {"anyOf": [*kinds, {"type": "null"}]}
    schema = with_parts(schema, spec)
    if "const" in spec:
        schema = schema | {"enum": [spec["const"]]}
    elif isinstance(spec.get("enum"), list) and spec["enum"]:
        schema = schema | {"enum": spec["enum"]}
    return schema


def alternatives(spec, key):
    """The specs at `anyOf` or `oneOf`. Members without type and values, such as `{"required":
    [...]}`, are text for the model."""
    members = specs_at(spec, key)
    return members if all(member.keys() & {"type", "const", "enum"} for member in members) else []


def specs_at(spec, key):
    value = spec.get(key)
    return value if isinstance(value, list) and all(isinstance(member, dict) for member in value) else []


def with_parts(schema, spec):
    """The schema of a spec's type with the spec's properties, values, items and places, each in the
    types that allow them."""
    if "anyOf" in schema:  # a grammar ignores keywords beside it
        return schema | {"anyOf": [with_parts(member, spec) for member in schema["anyOf"]]}
    properties, others, items = spec.get("properties"), spec.get("additionalProperties"), spec.get("items")
    required = spec.get("required")
    if isinstance(required, list) and isinstance(properties, dict | None):  # as in JSON Schema
        if required and properties is None and others is None:
            others = True
        undeclared = [name for name in required if isinstance(name, str) and name not in (properties or {})]
        if undeclared:
            properties = (properties or {}) | dict.fromkeys(undeclared, others if isinstance(others, dict) else {})
    has_properties = isinstance(properties, dict) and all(isinstance(inner, dict) for inner in properties.values())
    if schema.get("type", "object") == "object" and has_properties:
        named = object_schema(properties, others)
        if isinstance(required, list):
            named["required"] = [
                name for name, inner in properties.items() if name in required or inner.get("required") is True
            ]
        if not isinstance(others, dict) and "additionalProperties" in schema:  # Dict[str, int]
            named["additionalProperties"] = schema["additionalProperties"]
        return schema | named
    if schema.get("type") == "object" and others is False:
        return schema | {"additionalProperties": False}
    if schema.get("type", "object") == "object" and isinstance(others, dict):
        return schema | {"additionalProperties": parameter_schema(others)}
    if schema.get("type", "array") == "array":
        places = specs_at(spec, "prefixItems")
        if places:
            lengths = {key: spec[key] for key in ("minItems", "maxItems") if isinstance(spec.get(key), int)}
            schema = schema | {"prefixItems": [parameter_schema(place) for place in places]} | lengths
        if isinstance(items, dict):
            schema = schema | {"items": parameter_schema(items)}
        elif items is False:
            schema = schema | {"maxItems": min(len(places), schema.get("maxItems", len(places)))}
    return schema


def type_schema(type_name):
    """The schema of an informal type: `List[int]`, `Dict[str, float]`, `Union[str, None]`, `int |
    str`, ...; {} for an unknown type."""
    return {} if is_deep(type_name) else _type_schema(type_name.strip())


def is_deep(type_name):
    """Whether brackets are nested deeper than MAX_DEPTH."""
    depth = 0
    if type_name.count("[") > MAX_DEPTH:
        for bracket in re.findall(r"[\[\]]", type_name):
            depth += 1 if bracket == "[" else -1
            if depth > MAX_DEPTH:
                return True
    return False


def _type_schema(type_name):
    if len(members := split_outside_brackets(type_name, "|")) > 1:
        return one_of(members)
    head, _, inside = type_name.partition("[")
    head, inside = head.strip().lower(), inside.rstrip()
    parts = split_outside_brackets(inside[:-1], ",") if inside.endswith("]") else []
    if head == "optional" and parts:
        return one_of([*parts, "None"])
    if head == "union" and parts:
        return one_of(parts)
    name = PLAIN_TYPES.get(head)
    if name == "array" and parts:
        if head == "tuple" and parts[-1] != "...":
            places = [_type_schema(part) for part in parts]
            items = {"items": places[0]} if places == places[:1] * len(places) else {"prefixItems": places}
            return {"type": "array", "minItems": len(parts), "maxItems": len(parts), **items}
        return {"type": "array", "items": _type_schema(parts[0])}
    if name == "object" and len(parts) == 2:
        return {"type": "object", "additionalProperties": _type_schema(parts[1])}
    return {"type": name} if name else {}


def one_of(type_names):
    schemas = []
    for type_name in type_names:
        schema = _type_schema(type_name)
        if not schema:  # any value
            return {}
        if schema not in schemas:
            schemas.append(schema)
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def split_outside_brackets(text, separator):
    parts, start, depth = [], 0, 0
    for mark in re.finditer(rf"[\[\]{re.escape(separator)}]", text):
        depth += (mark[0] == "[") - (mark[0] == "]")
        if mark[0] == separator and depth == 0:
            parts.append(text[start : mark.start()])
            start = mark.end()
    return [part.strip() for part in (*parts, text[start:]) if part.strip()]


def call_problems(calls, tools):
    """A sentence for each misfit of the calls with the tools (both as parsed lists)."""
    return list(dict.fromkeys(sentence for _, sentence in misfits(calls, tools)))  # without repeats


def misfits(calls, tools):
    """Yields `(keyword, sentence)` for each misfit. keyword: the violated keyword of JSON Schema,
    such as "required", or "name" for a call to no tool of the list."""
    by_name = {tool["name"]: tool for tool in tools}
    for call in calls:
        if call["name"] not in by_name:
            yield "name", f"{call['name']} is not among the tools"
            continue
        for error in JSON_TYPES(tool_schema(by_name[call["name"]])).iter_errors(call["arguments"]):
            where = "".join(f".{part}" if isinstance(part, str) else f"[{part}]" for part in error.absolute_path)
            yield error.validator, f"{call['name']}{where}: {error.message}"


def conforms(value, schema):
    """Whether a value fits a JSON Schema. 5.0 is not an integer, as in the published types."""
    return JSON_TYPES(schema).is_valid(value)


def _is_integer(checker, value):
    return isinstance(value, int) and not isinstance(value, bool)


JSON_TYPES = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_integer),
)
