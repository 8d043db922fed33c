"""xLAM's tools as JSON Schema: what a tool's informal types say about the arguments of a call."""

import re

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
    kind = str(spec.get("type", ""))
    schema = type_schema(re.sub(r",\s*(optional|default)\b[^\]]*$", "", kind, flags=re.IGNORECASE))
    if isinstance(spec.get("enum"), list) and spec["enum"]:
        schema = schema | {"enum": spec["enum"]}
    return schema


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
