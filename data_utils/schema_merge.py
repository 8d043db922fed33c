"""Simplification of a JSON Schema: follow references, merge allOf, take unions apart."""

from dataclasses import dataclass, field
from urllib.parse import unquote

from data_utils.prompt import to_json
from data_utils.tool_schema import PLAIN_TYPES, UNIONS

FLAT_TYPES = {
    "string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None",
    "array": "list", "object": "dict",
}  # fmt: skip
# Keywords without a meaning for calls. If two schemas are merged, the last annotation counts.
NO_MEANING = ("title", "$schema", "$id", "$defs", "definitions", "$comment")
ANNOTATIONS = (*NO_MEANING, "description", "default", "examples", "deprecated", "readOnly", "writeOnly")
# Keywords without a place in the flat form.
NOT_FLAT = ("not", "if", "patternProperties", "unevaluatedProperties", "$dynamicRef", "dependentSchemas", "contains")
# Keywords that the members of a union may share. flat_spec has a place for each; keywords
# without a place follow unchanged.
STRUCTURE = ("type", "properties", "required", "items", "additionalProperties", "prefixItems")
# The limit for one tool: the characters of its specs, plus SCHEMA_COST for each schema. Forking
# references (each definition refers twice to the next) double with every level. Of 155 tools of
# eight public servers, the largest needs 556,759 (a message of LINE's, which contains itself), the
# next 6,997.
MAX_READ, SCHEMA_COST = 1_000_000, 100
# Nested references and allOf. Far below Python's recursion limit, also for Jinja's macros.
MAX_STEPS = 16
# Key of the original tool or spec in a schema that would not convert back to it.
VERBATIM = "x-xlam"


class NotFlat(ValueError):
    """A tool that does not fit the flat form. The message names the tool, the argument and the
    reason."""


def refuse(where, *keys, why="cannot be said in the flat form"):
    if keys:
        raise NotFlat(f"{where}: {', '.join(keys)} {why}")


@dataclass
class Reading:
    """The state of reading one tool's schema."""

    root: dict  # the document of the references
    notes: list
    spent: int = 0  # see MAX_READ
    unscored: int = 0  # schemas with keywords that no score reads
    cut: set = field(default_factory=set)  # references that have a note

    def spend(self, cost, where):
        self.spent += cost
        if self.spent > MAX_READ:
            raise NotFlat(f"{where}: its references make it too large, over {MAX_READ} characters")

    def reaches_itself(self, reference, where):
        """Whether the schema at a reference leads back to the reference."""
        seen = [reference]
        for start in seen:
            for piece in to_json(self.target(start, where)).split('"$ref": "')[1:]:
                found = piece.split('"')[0]
                if found == reference:
                    return True
                if found not in seen:
                    seen.append(found)
        return False

    def target(self, reference, where):
        """The schema at a `$ref`: an RFC 6901 pointer into the same document."""
        found = self.root
        for part in str(reference).split("/")[1:]:
            part = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and part in map(str, range(len(found))):
                found = found[int(part)]
            else:
                found = found.get(part) if isinstance(found, dict) else None
        if not (reference == "#" or str(reference).startswith("#/")) or not isinstance(found, dict | bool):
            raise NotFlat(f"{where}: the reference {to_json(reference)} leads nowhere in this schema")
        return found


def within(where, name):
    return f"{where}.{name}" if ", " in where else f"{where}, {name}"


def below(path, *keys):
    """The path to a schema inside the last one, with the inner schema's JSON pointer added."""
    return (*path, "/".join([path[-1], *(key.replace("~", "~0").replace("/", "~1") for key in keys)]))


def refuse_keywords(schema, where):
    closed = schema.get("unevaluatedProperties") is False
    refuse(where, *(key for key in NOT_FLAT if key in schema and not (key == "unevaluatedProperties" and closed)))
    for key, kinds in (("items", dict | list | bool | None), ("additionalProperties", dict | bool | None)):
        if not isinstance(schema.get(key), kinds):
            raise NotFlat(f"{where}: {key} must be a schema")


def kinds_of(schema, where):
    """The names of a schema's types. Without `type`, keywords of objects or arrays imply the
    type."""
    if "type" not in schema:
        values = schema.get("additionalProperties")
        is_object = (
            "properties" in schema
            or isinstance(schema.get("required"), list)
            or values is False
            or bool(values and values is not True)
        )
        kinds = ["object"] * is_object + ["array"] * ("items" in schema or "prefixItems" in schema)
    else:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if not kinds or not all(isinstance(kind, str) for kind in kinds):
            raise NotFlat(f"{where}: the type {to_json(schema['type'])} is not a name")
    if schema.get("nullable") is True and kinds and "null" not in kinds:
        kinds = [*kinds, "null"]
    return kinds


def json_type(kind):
    """JSON Schema's name of a type, or None if the type is unknown. Accepts Python's, Java's and
    Gemini's names."""
    return kind if kind in FLAT_TYPES else PLAIN_TYPES.get(without_mark(kind).lower())


def without_mark(kind):
    return kind[: -len(", optional")] if kind.lower().endswith(", optional") else kind


def choices(schema, where):
    """The values of `const` and `enum`."""
    values = schema.get("enum", [schema.get("const")])
    if not isinstance(values, list):
        raise NotFlat(f"{where}: enum must be a list")
    if "const" in schema:
        values = [value for value in values if to_json(value) == to_json(schema["const"])]
    if not values:
        raise NotFlat(f"{where}: an empty enum, which no value fits")
    return values


def resolve(schema, reading, where, path, steps=0):
    """A schema with its references followed and its allOf merged, and the path with the places on
    the way.

    A reference to an enclosing schema is cut at its bare type, because a schema that contains
    itself has no end."""
    schema = {} if schema is True else schema
    if not isinstance(schema, dict):
        raise NotFlat(f"{where}: a schema must be an object")
    reading.spend(SCHEMA_COST, where)
    if steps > MAX_STEPS:
        raise NotFlat(f"{where}: more than {MAX_STEPS} references or allOf lead to one schema")
    if isinstance(schema.get(VERBATIM), dict) or not ("$ref" in schema or "allOf" in schema):
        return schema, path
    parts = []
    if "$ref" in schema:
        reference = schema["$ref"]
        target = reading.target(reference, where)
        place = unquote(reference)
        if place not in path or not (reference in reading.cut or reading.reaches_itself(reference, where)):
            parts.append(resolve(target, reading, where, (*path, place), steps + 1))
        else:
            reading.unscored += 1
            kinds = kinds_of(target, where) if isinstance(target, dict) else []
            parts.append(({"type": kinds} if kinds else {}, path))
            if reference not in reading.cut:
                reading.notes.append(f"{where}: contains itself, cut at its bare type")
                reading.cut.add(reference)
    if not isinstance(schema.get("allOf", []), list):
        raise NotFlat(f"{where}: allOf must be a list")
    for number, member in enumerate(schema.get("allOf", [])):
        parts.append(resolve(member, reading, where, below(path, "allOf", str(number)), steps + 1))
    merged = {}
    for part, part_path in parts:
        merged = merge(merged, part, where)
        path = (*path, *(place for place in part_path if place not in path))
    return merge(merged, {key: value for key, value in schema.items() if key not in ("$ref", "allOf")}, where), path


def merge(first, second, where):
    """A schema for the values that fit both schemas."""
    for one, other in ((first, second), (second, first)):
        names = [name for name in properties_in(other) if name not in properties_in(one)]
        if names and one.get("additionalProperties", True) not in (True, {}):
            raise NotFlat(f"{where}: {names[0]} beside additionalProperties cannot be said in the flat form")
    return {
        key: merge_values(key, first[key], second[key], where) if key in second else first[key] for key in first
    } | {key: value for key, value in second.items() if key not in first}


def properties_in(schema):
    return schema["properties"] if isinstance(schema.get("properties"), dict) else {}


def merge_values(key, first, second, where):
    """The value of a keyword that both schemas have."""
    if to_json(first) == to_json(second) or key in ANNOTATIONS:
        return second
    if key == "properties" and isinstance(first, dict) and isinstance(second, dict):
        both = {name: {"allOf": [first[name], second[name]]} for name in first if name in second}
        return (
            first
            | second
            | {name: inner for name, inner in both.items() if to_json(first[name]) != to_json(second[name])}
        )
    if key == "required" and isinstance(first, list) and isinstance(second, list):
        return [*first, *(name for name in second if name not in first)]
    if key == "additionalProperties" and (first is True or first == {}):
        return second
    if key == "additionalProperties" and (second is True or second == {}):
        return first
    if key == "type":
        first, second = ([kinds] if isinstance(kinds, str) else kinds for kinds in (first, second))
        if (
            isinstance(first, list)
            and isinstance(second, list)
            and (kinds := [kind for kind in first if kind in second])
        ):
            return kinds
    raise NotFlat(f"{where}: two different {key} at once cannot be said in the flat form")


def union_of(schema, reading, where, path):
    """Take a union out of a schema. Returns the schema without `anyOf` or `oneOf`, this keyword,
    its members as pairs of schema and path, and whether they are text.

    Members that only require arguments, or have keywords that no score reads, stay in the schema as
    text for the model. Any other member is merged with the keywords beside the union."""
    keys = [key for key in UNIONS if key in schema]
    if len(keys) > 1:
        refuse(where, "anyOf beside oneOf")
    if not keys:
        return schema, None, [], False
    (key,) = keys
    if not isinstance(schema[key], list):
        raise NotFlat(f"{where}: {key} must be a list")
    members = [
        resolve(member, reading, where, below(path, key, str(number)))
        for number, member in enumerate(schema[key])
        if not is_never(member)
    ]
    if not members:
        raise NotFlat(f"{where}: no value fits {key}")
    shared = {key: schema[key] for key in schema if key in STRUCTURE}
    rest = {other: value for other, value in schema.items() if other not in STRUCTURE and other != key}
    if not shared:
        return rest, key, members, False
    texts = [{key: inner for key, inner in member.items() if not is_same(key, inner, shared)} for member, _ in members]
    if all(is_text(member, shared) for member in texts):
        return schema | {key: texts}, key, [], True
    if "prefixItems" in shared or isinstance(shared.get("items"), list):
        refuse(where, f"{key} beside the places of a tuple")
    return rest, key, [(merge(shared, member, where), path) for member, path in members], False


def is_never(schema):
    """Whether no value fits a schema: `false` or `{"not": {}}`."""
    return schema is False or (isinstance(schema, dict) and (schema.get("not") is True or schema.get("not") == {}))


def is_same(key, value, shared):
    return key == "type" and "type" in shared and to_json(value) == to_json(shared["type"])


def is_text(member, shared):
    """Whether no score reads anything in a member of a union."""
    required = member.get("required", [])
    unread = [key for key in (*STRUCTURE, *UNIONS, *NOT_FLAT, "const", "enum") if key not in ("required", "not")]
    declared = isinstance(required, list) and all(name in list(properties_in(shared)) for name in required)
    return declared and not any(key in member for key in unread)
