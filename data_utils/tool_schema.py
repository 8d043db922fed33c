"""The JSON Schema of xLAM's flat tools, whose types are informal, and what of a call does not fit it."""

import functools
import re

import jsonschema

from run_utils.files import MAX_DEPTH

PLAIN_TYPES = {
    "str": "string", "string": "string", "text": "string", "char": "string", "character": "string",
    "int": "integer", "integer": "integer", "long": "integer", "short": "integer", "byte": "integer", "bigint": "integer",
    "float": "number", "number": "number", "double": "number",
    "bool": "boolean", "boolean": "boolean",
    "list": "array", "array": "array", "arraylist": "array", "tuple": "array", "set": "array", "sequence": "array",
    "iterable": "array",
    "dict": "object", "object": "object", "mapping": "object", "map": "object", "hashmap": "object",
    "none": "null", "null": "null", "nonetype": "null",
}  # fmt: skip
UNIONS = ("anyOf", "oneOf")
PLAIN_KEYS = {"description", "type", "default", "required"}  # of specs whose type is all that their values must fit


def tool_schema(tool):
    """The JSON Schema of the `arguments` of a call to a flat tool (a parsed value). An unknown type accepts any value."""
    schema = object_schema(tool.get("parameters") or {}, tool.get("additionalProperties"))
    return schema | {
        key: list(map(parameter_schema, alternatives(tool, key))) for key in UNIONS if alternatives(tool, key)
    }


def object_schema(properties, others):
    """The schema of an object with these properties (specs by name). others: the spec of its other values, True if any other is
    allowed."""
    return {
        "type": "object",
        "properties": {name: parameter_schema(spec) for name, spec in properties.items()},
        "required": [name for name, spec in properties.items() if is_required(spec)],
        "additionalProperties": parameter_schema(others) if isinstance(others, dict) else others is True,
    }


def is_required(spec):
    """Whether an argument must be given: by `required` if it is true or false, else unless its type ("str, optional") or a
    default marks it as optional."""
    if isinstance(spec.get("required"), bool):
        return spec["required"]
    return "default" not in spec and not parse_type(str(spec.get("type", "")))[1]


@functools.lru_cache(maxsize=256)  # rows have few types
def parse_type(kind):
    """The schema of a type, and whether the type marks an argument as optional: by `, optional` behind it, or as `Optional[...]`."""
    end = kind.rfind("]") + 1  # a mark stands behind the last bracket
    mark = re.search(r",\s*(optional|default)\b", kind[end:], re.IGNORECASE)
    is_optional = re.search(r",\s*optional\b", kind[end:], re.IGNORECASE) or kind.strip().lower().startswith(
        "optional["
    )
    return type_schema(kind[: end + mark.start()] if mark else kind), bool(is_optional)


def parameter_schema(spec):
    """The JSON Schema of the values of a spec; not to be changed in place."""
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
    """The specs at `anyOf` or `oneOf`. Members without type and values are text for the model, such as `{"required": [...]}`."""
    members = specs_at(spec, key)
    return members if all(member.keys() & {"type", "const", "enum"} for member in members) else []


def specs_at(spec, key):
    value = spec.get(key)
    return value if isinstance(value, list) and all(isinstance(member, dict) for member in value) else []


def with_parts(schema, spec):
    """The schema of a spec's type with the spec's properties, values, items and places, each in the types that have such."""
    if "anyOf" in schema:  # a grammar reads nothing beside it
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


def type_schema(kind):
    """The schema of one informal type: `List[int]`, `Dict[str, float]`, `Union[str, None]`, `int | str`, ..., {} of an unknown one."""
    return {} if is_deep(kind) else _type_schema(kind.strip())


def is_deep(kind):
    """Whether brackets are nested deeper than MAX_DEPTH."""
    depth = 0
    if kind.count("[") > MAX_DEPTH:
        for bracket in re.findall(r"[\[\]]", kind):
            depth += 1 if bracket == "[" else -1
            if depth > MAX_DEPTH:
                return True
    return False


def _type_schema(kind):
    if len(members := split_outside_brackets(kind, "|")) > 1:
        return one_of(members)
    head, _, inside = kind.partition("[")
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


def one_of(kinds):
    schemas = []
    for kind in kinds:
        schema = _type_schema(kind)
        if not schema:  # anything goes
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
    """What of the calls does not fit the tools (both as parsed lists), a sentence each."""
    by_name = {tool["name"]: tool for tool in tools}
    problems = []
    for call in calls:
        if call["name"] not in by_name:
            problems.append(f"{call['name']} is not among the tools")
            continue
        for error in JSON_TYPES(tool_schema(by_name[call["name"]])).iter_errors(call["arguments"]):
            where = "".join(f".{part}" if isinstance(part, str) else f"[{part}]" for part in error.absolute_path)
            problems.append(f"{call['name']}{where}: {error.message}")
    return list(dict.fromkeys(problems))  # of two calls with one fault, one sentence


def conforms(value, schema):
    """Whether a value is what a JSON Schema asks for; 5.0 is no integer, as in the published types."""
    return JSON_TYPES(schema).is_valid(value)


def _is_integer(checker, value):
    return isinstance(value, int) and not isinstance(value, bool)


JSON_TYPES = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_integer),
)
