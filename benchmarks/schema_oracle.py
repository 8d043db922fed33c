"""Whether a tool's schema and its flat form accept the same arguments. `jsonschema` on the original
schema is the judge.

Not compared, as in docs/formats.md: keywords that are text for the model (`minimum`, `pattern`,
`format`, ..., a union's members that only require arguments), and the values that a recursive
schema accepts below the cut. Three readings are the project's own and are implemented here a second
time, by other means: objects with named properties are closed unless declared open, `nullable` adds
null, and a schema with only `properties` or `items` is an object or an array.
"""

import json
import random
from urllib.parse import unquote

from data_utils.tool_formats import flat_tools, openai_tools
from data_utils.tool_schema import JSON_TYPES, tool_schema

STRUCTURE = {"type", "properties", "required", "items", "additionalProperties", "prefixItems"}
KNOWN = STRUCTURE | {"anyOf", "oneOf", "enum", "const", "nullable", "additionalItems"} | {
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$schema", "$id", "$defs", "definitions", "$comment",
}  # fmt: skip
JSON_WORDS = {
    "str": "string", "STRING": "string", "String": "string", "int": "integer", "long": "integer", "INTEGER": "integer",
    "float": "number", "double": "number", "NUMBER": "number", "bool": "boolean", "BOOLEAN": "boolean", "NULL": "null",
    "list": "array", "ArrayList": "array", "ARRAY": "array", "dict": "object", "HashMap": "object", "OBJECT": "object",
} | {word: word for word in ("string", "integer", "number", "boolean", "null", "array", "object")}  # fmt: skip


def differences(parameters, count=30, seed=0):
    """Of `count` drawn arguments, those that only one of the JSON Schema `parameters` and its flat
    form accepts, as `(arguments, original accepts, flat accepts)`. Raises NotFlat for a refused
    schema, and AssertionError if the flat form does not survive the way to OpenAI's form and
    back."""
    read = flat_tools([{"name": "f", "inputSchema": parameters}])
    assert json.dumps(flat_tools(openai_tools(read.tools)).tools) == json.dumps(read.tools), read.tools
    original = JSON_TYPES(scored(parameters, parameters, is_root=True) if not read.notes else parameters)
    flat = JSON_TYPES(tool_schema(read.tools[0]))
    drawn = [
        draw(schema, random.Random(f"{seed}/{number}"))
        for number in range(count)
        for schema in (original.schema, flat.schema)
    ]
    verdicts = [(value, original.is_valid(value), flat.is_valid(value)) for value in drawn if isinstance(value, dict)]
    if read.notes:  # cut: the flat form accepts more
        return [verdict for verdict in verdicts if verdict[1] and not verdict[2]]
    return [verdict for verdict in verdicts if verdict[1] != verdict[2]]


def scored(schema, root, is_root=False):
    """The scored schema without references: the parts (all must fit) for each choice of its
    unions."""
    if isinstance(schema, bool):
        return schema
    return whole(parts_of(schema, root), root, is_root)


def parts_of(schema, root):
    """The schemas without `$ref` and `allOf` that must all fit."""
    if schema is True:
        return [{}]
    parts = [{key: value for key, value in schema.items() if key not in ("$ref", "allOf")}]
    if "$ref" in schema:
        target = root
        for name in schema["$ref"].split("/")[1:]:
            name = unquote(name).replace("~1", "/").replace("~0", "~")
            target = target[int(name) if isinstance(target, list) else name]
        parts += parts_of(target, root)
    return parts + [part for member in schema.get("allOf", []) for part in parts_of(member, root)]


def whole(parts, root, is_root):
    union = next(
        ((number, key) for number, part in enumerate(parts) for key in ("anyOf", "oneOf") if key in part), None
    )
    if union:
        number, key = union
        members = [parts_of(member, root) for member in parts[number][key] if is_possible(member)]
        rest = [
            *parts[:number],
            {name: value for name, value in parts[number].items() if name != key},
            *parts[number + 1 :],
        ]
        if any(STRUCTURE & part.keys() for part in rest) and all(is_text(member, rest) for member in members):
            return whole(rest, root, is_root)
        nullable = any(part.get("nullable") for part in rest)
        rest = [{key: value for key, value in part.items() if key != "nullable"} for part in rest]
        branches = [whole([*rest, *member], root, is_root) for member in members]
        if nullable:
            return {"anyOf": [*branches, {"type": "null"}]}
        # Without the unscored keywords, two members may seem to fit.
        is_partial = any(has_text(part, root) for member in [rest, *members] for part in member)
        return {"anyOf" if is_partial else key: branches}
    nullable = any(part.get("nullable") for part in parts)
    schema = {"allOf": [scored_part(part, root, nullable) for part in parts]}
    names = dict.fromkeys(name for part in parts for name in part.get("properties", {}))
    inner = {name: [part["properties"][name] for part in parts if name in part.get("properties", {})] for name in names}
    schema["properties"] = {name: scored({"allOf": schemas}, root) for name, schemas in inner.items()}
    if not any("type" in part for part in parts):
        kinds = ["object"] * any(
            part.keys() & {"properties", "required"} or part.get("additionalProperties", True) not in (True, {})
            for part in parts
        )
        kinds += ["array"] * any(part.keys() & {"items", "prefixItems"} for part in parts)
        schema |= {"type": kinds + ["null"] * nullable} if kinds else {}
    if is_root or any(part.get("properties") for part in parts):
        schema["unevaluatedProperties"] = False
    return schema


def is_possible(member):
    return member is True or (member is not False and member.get("not") != {})


def is_text(member, rest):
    """Whether a union's member only requires declared arguments, or has keywords that are text."""
    declared = {name for part in rest for name in part.get("properties", {})}
    keys = {
        key
        for part in member
        for key, value in part.items()
        if (key, value) not in [("type", other.get("type")) for other in rest]
    }
    required = {name for part in member for name in part.get("required", [])}
    return not keys & (STRUCTURE - {"required"} | {"enum", "const", "anyOf", "oneOf"}) and required <= declared


def has_text(part, root):
    """Whether a schema has unscored keywords or types at any depth."""
    unions = [part[key] for key in ("anyOf", "oneOf") if key in part]
    members = [parts_of(member, root) for union in unions for member in union if is_possible(member)]
    if members and STRUCTURE & part.keys() and all(is_text(member, [part]) for member in members):
        return True
    kinds = part.get("type", [])
    if any(kind not in JSON_WORDS for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        return True
    places = part["items"] if isinstance(part.get("items"), list) else part.get("prefixItems", [])
    if part.keys() - KNOWN - ({"minItems", "maxItems"} if places else set()):
        return True
    inner = [
        *part.get("properties", {}).values(),
        *places,
        *(part.get(key) for key in ("items", "additionalProperties", "additionalItems")),
    ]
    members += [parts_of(schema, root) for schema in inner if isinstance(schema, dict)]
    return any(has_text(part, root) for member in members for part in member)


def scored_part(part, root, nullable):
    schema = {key: part[key] for key in ("required", "enum", "const") if key in part}
    kinds = part.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and all(kind in JSON_WORDS for kind in kinds):
        schema["type"] = [JSON_WORDS[kind] for kind in kinds] + ["null"] * nullable
    for key in ("items", "additionalProperties"):
        if isinstance(part.get(key), dict | bool):
            schema[key] = scored(part[key], root)
    schema["properties"] = dict.fromkeys(part.get("properties", {}), True)
    # A required argument is declared, with any value.
    if part.get("additionalProperties", True) in (True, {}):
        schema["properties"] = dict.fromkeys(part.get("required", []), True) | schema["properties"]
    places = part["items"] if isinstance(part.get("items"), list) else part.get("prefixItems")
    if places:
        schema["prefixItems"] = [scored(place, root) for place in places]
        schema |= {key: part[key] for key in ("minItems", "maxItems") if key in part}
        if isinstance(part.get("items"), list) and "additionalItems" in part:
            schema["items"] = scored(part["additionalItems"], root)
    return schema


def draw(schema, rng, depth=0):
    """A value from a schema's suggestions, more often valid than not."""
    if depth > 6 or rng.random() < 0.07 or not isinstance(schema, dict):
        return rng.choice([None, True, 0, 7, 2.5, "", "x", [], ["x"], [1, "x"], {}, {"a": 1}, {"a": "x", "zz": 1}])
    parts = [schema, *schema.get("allOf", [])]
    for key in ("anyOf", "oneOf"):
        members = [member for part in parts if isinstance(part, dict) for member in part.get(key, [])]
        if members and rng.random() < 0.9:
            return draw(rng.choice(members), rng, depth + 1)
    flat = {}
    for part in parts:
        part = {"allOf": []} if not isinstance(part, dict) else part
        named = {
            name: inner
            for name, inner in part.get("properties", {}).items()
            if inner is not True or name not in schema.get("properties", {})
        }
        flat = {**flat, **part, "properties": flat.get("properties", {}) | named}
    if flat.get("allOf") and parts[1:] and flat["allOf"] is not schema.get("allOf"):
        return draw({"allOf": flat["allOf"]}, rng, depth + 1)
    if "const" in flat or flat.get("enum"):
        return rng.choice(flat.get("enum") or [flat["const"]])
    kinds = flat.get("type") or [
        "object" if flat["properties"] else rng.choice(["string", "integer", "array", "object", "null"])
    ]
    kind = rng.choice([kinds] if isinstance(kinds, str) else kinds)
    if kind == "array":
        values = [draw(place, rng, depth + 1) for place in flat.get("prefixItems", [])]
        values += [draw(flat.get("items", {}), rng, depth + 1) for _ in range(rng.choice([0, 0, 1, 2]))]
        if rng.random() < 0.2:
            rng.shuffle(values)
        return values[: rng.choice([len(values)] * 4 + [1])]
    if kind == "object":
        required = {name for part in parts if isinstance(part, dict) for name in part.get("required", [])}
        names = [
            name
            for name in {**flat["properties"], **dict.fromkeys(sorted(required))}
            if rng.random() < (0.93 if name in required else 0.6)
        ]
        values = {name: draw(flat["properties"].get(name, {}), rng, depth + 1) for name in names}
        if rng.random() < 0.25:
            values[rng.choice(["zz", "a", "other"])] = draw(flat.get("additionalProperties", {}), rng, depth + 1)
        return values
    return {"string": rng.choice(["x", "", "a", "b"]), "integer": rng.choice([0, 3, -1]), "number": rng.choice([0.5, 2, -1.0]),
            "boolean": rng.choice([True, False]), "null": None}[kind]  # fmt: skip


KINDS = ["string", "integer", "number", "boolean", "null", "array", "object"]


def draw_schema(rng, depth=0):
    """A JSON Schema such as tools have, with rare features too."""
    if depth > 3:
        return {"type": rng.choice(KINDS[:5])}
    if depth and rng.random() < 0.12:
        return {
            "$ref": rng.choice(["#/$defs/Plain", "#/$defs/Object", "#/$defs/Union", "#/$defs/Li%73t/anyOf/0"])
        } | rng.choice([{}, {}, {"description": "d"}, {"default": 1}, {"nullable": True}])
    form = rng.choice(["plain", "plain", "array", "object", "object", "union", "tuple", "allOf", "union beside", "odd"])
    if form == "plain":
        schema = {
            "type": rng.choice(
                [*KINDS[:5], ["string", "null"], ["integer", "string"], "float", "STRING", "long", "word"]
            )
        }
        return schema | rng.choice(
            [
                {},
                {},
                {"enum": rng.sample(["a", "b", 1, 2.5, None, True], 2)},
                {"const": rng.choice(["a", 1, True])},
                {"nullable": True},
                {"default": "x", "minimum": 0},
                {"format": "date"},
            ]
        )
    if form == "array":
        return {
            "type": rng.choice(["array", "array", ["array", "null"], "ARRAY"]),
            "items": rng.choice([{}, True, draw_schema(rng, depth + 1), draw_schema(rng, depth + 1)]),
        }
    if form == "object":
        return draw_object(rng, depth)
    if form == "union":
        members = [draw_schema(rng, depth + 1) for _ in range(rng.choice([1, 2, 2, 3]))] + rng.choice(
            [[], [], [{"not": {}}], [False]]
        )
        return {rng.choice(["anyOf", "oneOf"]): members} | rng.choice(
            [{}, {"description": "d"}, {"nullable": True} if "oneOf" not in members else {}, {"default": None}]
        )
    if form == "tuple":
        places = [draw_schema(rng, depth + 1) for _ in range(rng.choice([1, 2, 2, 3]))]
        schema = {"type": "array"} | rng.choice(
            [
                {},
                {"minItems": len(places)},
                {"minItems": len(places), "maxItems": len(places)},
                {"minItems": 1},
                {"maxItems": 2},
            ]
        )
        rest = rng.choice([None, False, True, {"type": "integer"}])
        if rng.random() < 0.5:
            return schema | {"items": places} | ({} if rest is None else {"additionalItems": rest})
        return schema | {"prefixItems": places} | ({} if rest is None else {"items": rest})
    if form == "allOf":
        return rng.choice([{"allOf": [draw_schema(rng, depth + 1)], "description": "d"}, {"allOf": [draw_object(rng, depth), draw_object(rng, depth)]},
                           {"allOf": [{"$ref": "#/$defs/Object"}], "properties": {"q": draw_schema(rng, depth + 1)}}])  # fmt: skip
    if form == "union beside":
        base = draw_object(rng, depth) | {"type": "object"}
        names = [*base.get("properties", {}), "q"]
        members = [
            rng.choice(
                [
                    {"required": [rng.choice(names)]},
                    {"minProperties": 1},
                    {"properties": {"q": draw_schema(rng, depth + 1)}, "required": ["q"]},
                ]
            )
            for _ in range(2)
        ]
        return base | {rng.choice(["anyOf", "oneOf"]): members}
    return rng.choice([{}, {"items": {"type": "string"}}, {"properties": {"a": {"type": "string"}}}, {"required": ["a"]}, {"type": "array", "items": False},
                       {"type": "object", "additionalProperties": False}, {"enum": ["a", 1]}, {"minimum": 3}, {"type": ["object", "null"], "properties": {"a": {"type": "integer"}}}])  # fmt: skip


def draw_object(rng, depth):
    names = rng.sample(["a", "b", "c", "d"], rng.choice([0, 1, 2, 2]))
    schema = {"type": "object", "properties": {name: draw_schema(rng, depth + 1) for name in names}}
    if not names and rng.random() < 0.5:
        del schema["properties"]
    required = [name for name in names if rng.random() < 0.5] + ["undeclared"] * (rng.random() < 0.1)
    schema |= {"required": required} if required else {}
    others = rng.choice([None, None, None, False, True, {"type": "integer"}, draw_schema(rng, depth + 1)])
    return schema if others is None else schema | {"additionalProperties": others}


DEFINITIONS = {
    "Plain": {"type": "string", "enum": ["a", "b"]},
    "Object": {"type": "object", "properties": {"n": {"type": "string"}, "m": {"$ref": "#/$defs/Plain"}}, "required": ["n"]},
    "Union": {"anyOf": [{"$ref": "#/$defs/Object"}, {"type": "object", "properties": {"k": {"type": "integer"}}, "required": ["k"]}, {"type": "null"}]},
    "List": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/Object"}}, {"type": "null"}]},
}  # fmt: skip


def draw_parameters(seed):
    """The JSON Schema of a tool's arguments."""
    rng = random.Random(seed)
    root = draw_object(rng, 0) | {"$defs": DEFINITIONS}
    union = draw_schema(rng, 1)
    # If a member has no properties, nobody can tell whether arguments are closed to the other
    # members' arguments.
    members = [member for key in ("anyOf", "oneOf") for member in union.get(key, [])]
    if rng.random() < 0.3 and all(isinstance(member, dict) and member.get("properties") for member in members):
        root |= {key: value for key, value in union.items() if key in ("anyOf", "oneOf", "allOf")}
    return root
