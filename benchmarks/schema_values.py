"""Values of a JSON Schema, to compare the meaning of two schemas: a value that fits one must fit the other."""

from urllib.parse import unquote

KINDS = ("string", "integer", "number", "boolean", "null", "array", "object")
ARGUMENT_KEYS = ("parameters", "inputSchema", "input_schema", "parameters_json_schema", "parametersJsonSchema")


def plain_schema(tool):
    """A tool's own schema of its arguments, with the keywords whose meaning docs/formats.md keeps: references are put in, objects with
    properties are closed. Written apart from data_utils/, so that both can be compared."""
    tool = tool.get("function", tool)
    schema = next((tool[key] for key in ARGUMENT_KEYS if tool.get(key) is not None), {})
    schema = schema.get("json", schema)
    return plain({"type": "object", "properties": {}, "additionalProperties": False} | schema, schema)


def plain(schema, root, above=()):
    if not isinstance(schema, dict):
        return schema
    while "$ref" in schema:
        if schema["$ref"] in above:  # a schema that contains itself: anything fits its repeat
            return {}
        found, above = root, (*above, schema["$ref"])
        for part in unquote(schema["$ref"]).split("/")[1:]:
            found = found[int(part)] if isinstance(found, list) else found[part.replace("~1", "/").replace("~0", "~")]
        schema = found | {key: value for key, value in schema.items() if key != "$ref"}
    if isinstance(schema.get("items"), list):  # of drafts before 2020-12
        schema = {**schema, "prefixItems": schema["items"], "items": schema.get("additionalItems", True)}
    if schema.get("properties"):
        schema = {"additionalProperties": False, **schema}
    kept = {key: schema[key] for key in ("enum", "const", "required", "not") if key in schema}
    kinds = [schema["type"]] if isinstance(schema.get("type"), str) else schema.get("type", [])
    if kinds and {kind.lower() for kind in kinds} <= {*KINDS}:  # Gemini's are capitals; unknown words allow anything
        kept["type"] = [kind.lower() for kind in kinds]
    if "prefixItems" in schema:
        kept |= {key: schema[key] for key in ("minItems", "maxItems") if key in schema}
    for key in ("items", "additionalProperties"):
        if key in schema:
            kept[key] = plain(schema[key], root, above)
    if "properties" in schema:
        kept["properties"] = {name: plain(inner, root, above) for name, inner in schema["properties"].items()}
    members = schema.get("anyOf") or schema.get("oneOf")
    for key, schemas in (
        ("anyOf", members),
        ("allOf", schema.get("allOf")),
        ("prefixItems", schema.get("prefixItems")),
    ):
        if schemas:
            kept[key] = [plain(inner, root, above) for inner in schemas]
    if schema.get("nullable") is True and "enum" not in schema:  # OpenAPI's; an enum must have null itself
        return {"anyOf": [kept, {"type": "null"}]}
    return kept


def sample(schema, generator, depth=0):
    """A value that a schema without references allows, or nearly so: a validator must decide. generator: random.Random."""
    if not isinstance(schema, dict) or depth > 12:
        return generator.choice(["a", 1, None, {"k": 2}])
    for key in ("anyOf", "allOf"):
        if schema.get(key):
            members = schema[key] if key == "allOf" else [generator.choice(schema[key])]
            merged = {name: value for name, value in schema.items() if name != key}
            for member in members:
                merged = merged | member
            return sample(merged, generator, depth + 1)
    if "const" in schema or schema.get("enum"):
        return schema["const"] if "const" in schema else generator.choice(schema["enum"])
    kinds = schema.get("type") or ("object" if "properties" in schema else "array" if "items" in schema else KINDS)
    kind = kinds if isinstance(kinds, str) else generator.choice(kinds)
    if kind == "object":
        properties, required = schema.get("properties") or {}, schema.get("required") or []
        names = [name for name in properties if name in required or generator.random() < 0.6]
        value = {name: sample(properties[name], generator, depth + 1) for name in names}
        value |= {name: "a" for name in required if name not in properties}
        if schema.get("additionalProperties", True) is not False and generator.random() < 0.6:
            value["another key"] = sample(schema.get("additionalProperties"), generator, depth + 1)
        return value
    if kind == "array":
        places = [sample(place, generator, depth + 1) for place in schema.get("prefixItems", [])]
        more = 0 if schema.get("items") is False else generator.randrange(3)
        return places + [sample(schema.get("items"), generator, depth + 1) for _ in range(more)]
    return generator.choice(
        {"string": ["", "a", "7"], "integer": [0, -1, 3], "number": [0, 2.5], "boolean": [True, False]}.get(
            kind, [None]
        )
    )
