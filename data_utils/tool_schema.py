"""The JSON Schema of xLAM's flat tools, whose types are informal, and what of a call does not fit it."""

import re

import jsonschema

from data_utils.tool_calls import MAX_DEPTH

PLAIN_TYPES = {
    "str": "string", "string": "string", "text": "string", "char": "string",
    "int": "integer", "integer": "integer", "long": "integer",
    "float": "number", "number": "number", "double": "number",
    "bool": "boolean", "boolean": "boolean",
    "list": "array", "array": "array", "tuple": "array", "set": "array", "sequence": "array", "iterable": "array",
    "dict": "object", "object": "object", "mapping": "object", "hashmap": "object",
    "none": "null", "null": "null", "nonetype": "null",
}  # fmt: skip


def tool_schema(tool):
    """The JSON Schema of the `arguments` of a call to an xLAM tool (a parsed value). What a type does not say, the schema does not
    ask: unknown types accept anything."""
    parameters = tool.get("parameters") or {}
    return {
        "type": "object",
        "properties": {name: parameter_schema(spec) for name, spec in parameters.items()},
        "required": [name for name, spec in parameters.items() if is_required(spec)],
        "additionalProperties": False,
    }


def is_required(spec):
    """xLAM marks what may be left out: in the type ("str, optional"), or by giving its default."""
    return not is_marked_optional(spec) and "default" not in spec and spec.get("required") is not False


def is_marked_optional(spec):
    kind = str(spec.get("type", "")).strip().lower()
    return kind.startswith("optional[") or re.search(r",\s*optional\b[^\]]*$", kind) is not None


def parameter_schema(spec):
    """The JSON Schema of the values of a spec."""
    kind = str(spec.get("type", ""))
    schema = type_schema(re.sub(r",\s*(optional|default)\b[^\]]*$", "", kind, flags=re.IGNORECASE))
    if members := specs_at(spec, "anyOf"):
        schema = {"anyOf": [parameter_schema(each) for each in members]}
    if isinstance(spec.get("enum"), list) and spec["enum"]:
        schema = schema | {"enum": spec["enum"]}
    properties = spec.get("properties")
    if isinstance(properties, dict) and all(isinstance(each, dict) for each in properties.values()):
        schema = with_properties(schema, spec, properties)
    for key in ("items", "additionalProperties"):
        if isinstance(spec.get(key), dict):
            schema = schema | {key: parameter_schema(spec[key])}
    if places := specs_at(spec, "prefixItems"):
        schema = schema | {"prefixItems": [parameter_schema(each) for each in places]}
    return schema


def with_properties(schema, spec, properties):
    """The schema of a spec's type, its objects with these properties: with others too only where the type or the spec says so."""
    named = tool_schema({"parameters": properties})
    if spec.get("additionalProperties") is True:
        named["additionalProperties"] = True
    others = [each for each in schema.get("anyOf", []) if each.get("type") != "object"]
    values = [each for each in [schema, *schema.get("anyOf", [])] if "additionalProperties" in each]
    if values:  # Dict[str, int]
        named["additionalProperties"] = values[0]["additionalProperties"]
    if "anyOf" in schema and len(others) < len(schema["anyOf"]):  # Union[dict, None]
        return schema | {"anyOf": [named, *others]}
    return schema | named


def specs_at(spec, key):
    value = spec.get(key)
    return value if isinstance(value, list) and all(isinstance(each, dict) for each in value) else []


def type_schema(kind):
    """The schema of one informal type: `List[int]`, `Dict[str, float]`, `Union[str, None]`, `int | str`, ..., {} where it is
    not known."""
    kind = kind.strip()
    if kind.count("[") > MAX_DEPTH:
        return {}
    if len(alternatives := split_outside_brackets(kind, "|")) > 1:
        return one_of(alternatives)
    head, _, inside = kind.partition("[")
    head = head.strip().lower()
    parts = split_outside_brackets(inside.strip()[:-1], ",") if inside.strip().endswith("]") else []
    if head == "optional" and parts:
        return one_of([*parts, "None"])
    if head == "union" and parts:
        return one_of(parts)
    name = PLAIN_TYPES.get(head)
    if name == "array" and parts:
        if head == "tuple" and parts[-1] != "...":
            return {"type": "array", "minItems": len(parts), "maxItems": len(parts), "items": one_of(parts)}
        return {"type": "array", "items": type_schema(parts[0])}
    if name == "object" and len(parts) == 2:
        return {"type": "object", "additionalProperties": type_schema(parts[1])}
    return {"type": name} if name else {}


def one_of(kinds):
    schemas = []
    for kind in kinds:
        schema = type_schema(kind)
        if not schema:  # anything goes
            return {}
        if schema not in schemas:
            schemas.append(schema)
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def split_outside_brackets(text, separator):
    parts, depth = [""], 0
    for character in text:
        depth += (character == "[") - (character == "]")
        if character == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


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
