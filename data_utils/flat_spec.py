"""JSON Schema as specs of xLAM's flat form.

A spec is `{"description", "type", "enum", "default", "properties", "items", "additionalProperties",
...}`: only the keys that it needs, in this order. FLAT_TYPES is the table of types. An optional
argument has `, optional` after its type. Nested objects and members of unions are specs too. Other
keywords of JSON Schema (`format`, `minimum`, `pattern`, ...) stay unchanged: text for the model,
which no score reads. The macros of the same names in chat_template.jinja have the same rules."""

from data_utils.prompt import to_json
from data_utils.schema_merge import (
    ANNOTATIONS,
    FLAT_TYPES,
    NO_MEANING,
    STRUCTURE,
    VERBATIM,
    NotFlat,
    Reading,
    below,
    choices,
    json_type,
    kinds_of,
    refuse,
    refuse_keywords,
    resolve,
    union_of,
    within,
    without_mark,
)
from data_utils.tool_schema import PLAIN_TYPES, UNIONS
from run_utils.files import MAX_DEPTH

PLACED = (*STRUCTURE, *UNIONS, "description", "const", "enum", "default", "nullable")
# Keywords of the whole arguments object, which stay with the tool.
OF_THE_TOOL = ("minProperties", "maxProperties", "dependentRequired", "propertyNames")


def read_arguments(schema, where, notes):
    """The rest of a flat tool after its description: `parameters`, and the keywords of the whole
    arguments object."""
    reading = Reading(schema, notes)
    schema, path = resolve(schema, reading, where, ("#",))
    if "type" in schema and "object" not in map(json_type, kinds_of(schema, where)):
        raise NotFlat(f"{where}: its arguments are no object")
    refuse_keywords(schema, where)
    refuse(where, *(key for key in ("const", "enum") if key in schema))
    schema, union, members, is_text = union_of(schema, reading, where, path)
    others = schema.get("additionalProperties")
    if members:
        parameters = united_properties(members, reading, where)
        opened = [inner.get("additionalProperties") for inner, _ in members if "additionalProperties" in inner]
        others = next((value for value in opened if value is not False), None)
        if isinstance(others, dict) and others:
            refuse(where, f"additionalProperties in {union}")
    else:
        parameters = flat_properties(schema, reading, where, 0, path)
    flat = {"parameters": parameters}
    if others is True or others == {}:
        flat["additionalProperties"] = True
    elif isinstance(others, dict):
        flat["additionalProperties"] = flat_spec(others, reading, where, 1, below(path, "additionalProperties"))
    if is_text:
        flat[union] = schema[union]
    elif members:
        unscored = reading.unscored
        specs = [flat_spec(inner, reading, where, 1, path) for inner, path in members]
        flat["anyOf" if reading.unscored > unscored else union] = specs
    return flat | {key: schema[key] for key in OF_THE_TOOL if key in schema}


def united_properties(members, reading, where):
    """The specs of the arguments of all members of a union. An argument is required only if all
    members require it."""
    objects = []
    for schema, path in members:
        if "type" in schema and "object" not in map(json_type, kinds_of(schema, where)):
            raise NotFlat(f"{where}: its arguments are no object")
        objects.append((*properties_of(schema, where), schema.get("additionalProperties"), path))
    specs = {}
    for name in dict.fromkeys(name for properties, *_ in objects for name in properties):
        schemas = {}  # by JSON text
        for properties, _, others, path in objects:
            if name in properties or others is True or others == {}:
                inner = properties.get(name, {})
                schemas.setdefault(to_json(inner), (inner, below(path, "properties", name)))
        optional = not all(name in required for _, required, *_ in objects)
        schemas = list(schemas.values())
        inner, path = schemas[0] if len(schemas) == 1 else ({}, ("",))
        specs[name] = flat_spec(
            inner, reading, within(where, name), 1, path, optional=optional, members=schemas if len(schemas) > 1 else ()
        )
    return specs


def flat_properties(schema, reading, where, depth, path):
    """The specs of a schema's properties by name."""
    properties, required = properties_of(schema, where)
    return {
        name: flat_spec(
            inner,
            reading,
            within(where, name),
            depth + 1,
            below(path, "properties", name),
            optional=name not in required,
        )
        for name, inner in properties.items()
    }


def properties_of(schema, where):
    """The schemas of an object's properties by name, and the required names.

    A required name without a schema has the schema of `additionalProperties`, or accepts any value.
    """
    properties, required = schema.get("properties") or {}, schema.get("required") or []
    if required is True:  # draft 3 marks the schema itself as required
        required = []
    if (
        not isinstance(properties, dict)
        or not isinstance(required, list)
        or not all(isinstance(name, str) for name in required)
    ):
        raise NotFlat(f"{where}: properties must be an object and required a list of names")
    others = schema.get("additionalProperties")
    undeclared = [name for name in required if name not in properties]
    if undeclared and others is False:
        raise NotFlat(f"{where}: requires {undeclared[0]}, which additionalProperties forbids")
    properties = properties | {name: others if isinstance(others, dict) else {} for name in undeclared}
    in_draft_3 = [
        name for name, inner in properties.items() if isinstance(inner, dict) and inner.get("required") is True
    ]
    return properties, [*required, *in_draft_3]


def flat_spec(schema, reading, where, depth, path, *, optional=None, members=()):
    """Convert a JSON Schema to a spec.

    path: JSON pointers of the enclosing schemas and references, with the schema's own pointer last.
    optional: whether an argument may be left out; None if the schema is not an argument. members:
    the pairs of schema and path of a union that is already taken apart. Raises NotFlat; its message
    begins with `where`."""
    schema, path = resolve(schema, reading, where, path)
    if isinstance(schema.get(VERBATIM), dict):
        return schema[VERBATIM]
    if depth > MAX_DEPTH:
        raise NotFlat(f"{where}: nested deeper than {MAX_DEPTH}")
    refuse_keywords(schema, where)
    schema = with_places(schema, where)
    union, is_text = "anyOf", False
    if not members:
        schema, union, members, is_text = union_of(schema, reading, where, path)
    kinds = kinds_of(schema, where)

    def inner(schema, path):
        return flat_spec(schema, reading, where, depth + 1, path)

    places = schema.get("prefixItems") or []
    places = [inner(place, below(path, "prefixItems", str(number))) for number, place in enumerate(places)]
    is_tuple = bool(places) and has_length(schema, len(places))
    items, values = schema.get("items"), schema.get("additionalProperties")
    item = inner(items, below(path, "items")) if isinstance(items, dict) and items and not is_tuple else None
    value = inner(values, below(path, "additionalProperties")) if isinstance(values, dict) and values else None
    unscored = reading.unscored
    members = [inner(member, path) for member, path in members]
    if union == "oneOf" and (reading.unscored > unscored or are_disjoint(members) or schema.get("nullable") is True):
        # Equivalent for disjoint types; otherwise anyOf still accepts every valid value.
        union = union if is_text else "anyOf"
    if schema.get("nullable") is True and members and not kinds and "None" not in map(type_of, members):
        members.append({"type": "None"})

    names = []  # of types
    for kind in kinds:
        word = json_type(kind)
        if word == "array" and is_tuple:
            names.append(f"Tuple[{', '.join(map(type_of, places))}]")
        elif word == "array" and item is not None and not places:
            names.append(f"List[{type_of(item)}]")
        elif word == "object" and value is not None:
            names.append(f"Dict[str, {type_of(value)}]")
        else:
            names.append(FLAT_TYPES[word] if word else without_mark(kind))
    names += map(type_of, members)
    kind = f"Union[{', '.join(names)}]" if len(names) > 1 else "".join(names) or "any"

    spec = {"description": schema["description"]} if "description" in schema else {}
    spec["type"] = kind + ", optional" * (optional is True)
    if "const" in schema or "enum" in schema:
        spec["enum"] = choices(schema, where)
    if "default" in schema:
        spec["default"] = schema["default"]
    if optional is False and ("default" in schema or "optional" in kind.lower()):
        spec["required"] = True
    others = {key: value for key, value in schema.items() if key not in (*PLACED, *NO_MEANING)}
    reading.spend(len(to_json(spec | others)), where)
    lengths = ("minItems", "maxItems") if places else ()
    if is_text or not all(map(json_type, kinds)) or any(key not in (*ANNOTATIONS, *lengths) for key in others):
        reading.unscored += 1
    properties = flat_properties(schema, reading, where, depth, path)
    if properties:
        spec["properties"] = properties
    # A type like List[int] needs no items.
    if item is not None and (places or set(item) != {"type"}):
        spec["items"] = item
    elif items is False and not is_tuple:
        spec["items"] = False
    if value is not None and set(value) != {"type"}:
        spec["additionalProperties"] = value
    elif properties and (not schema.get("properties") or values is True or values == {}):
        spec["additionalProperties"] = True
    elif values is False and not properties:
        spec["additionalProperties"] = False
    if places and not (is_tuple and all(set(place) == {"type"} for place in places)):
        spec["prefixItems"] = places
    if is_text:
        spec[union] = schema[union]
    elif members and (union == "oneOf" or any(set(member) != {"type"} for member in members)):
        spec[union] = members
    return spec | others


def with_places(schema, where):
    """Move a list at `items` (drafts before 2020-12) to `prefixItems`, and `additionalItems` to
    `items`."""
    if isinstance(schema.get("items"), list):
        if "prefixItems" in schema:
            refuse(where, "a list of items beside prefixItems")
        rest = {"items": schema["additionalItems"]} if "additionalItems" in schema else {}
        schema = (
            {key: value for key, value in schema.items() if key not in ("items", "additionalItems")}
            | rest
            | {"prefixItems": schema["items"]}
        )
    if not isinstance(schema.get("prefixItems"), list | None):
        raise NotFlat(f"{where}: prefixItems must be a list")
    return schema


def has_length(schema, length):
    """Whether an array's schema allows only this length, its number of places."""
    closed = schema.get("items") is False or schema.get("maxItems") == length
    return closed and schema.get("minItems") == length


def type_of(spec):
    return str(spec.get("type", "any"))  # a verbatim spec may have no type


def are_disjoint(specs):
    """Whether no value fits two of these specs, because their JSON types differ."""
    heads = [PLAIN_TYPES.get(type_of(spec).split("[")[0].lower()) for spec in specs]
    heads = ["number" if head == "integer" else head for head in heads]
    return None not in heads and len(set(heads)) == len(heads)
