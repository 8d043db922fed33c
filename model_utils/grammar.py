"""Constrained decoding: a row's tools as a grammar of the allowed answers.

This module writes the grammar in xgrammar's EBNF. It does not use xgrammar's converter of JSON
Schema, which rewrites an enum's floats (0.7 as 0.69999999999999996), only allows keys in the
declared order, and can give a tool the rule of another tool. xgrammar is optional: it is imported
when a grammar is compiled. Plain torch operations apply its masks, on a CPU and inside a CUDA
graph."""

import itertools
import math
import re

from data_utils.prompt import to_json
from data_utils.tool_schema import conforms, tool_schema
from run_utils.errors import UserError

# Half a surrogate pair is not text. Numbers are finite and have a bounded length. (= ...) is a
# lookahead, which makes masks faster.
TERMINALS = r"""
string ::= "\"" characters
characters ::= ("\"" | [^"\\\x00-\x1f\uD800-\uDFFF] characters | "\\" escape characters) (= [,}\]])
escape ::= ["\\/bfnrt] | "u" code_unit
code_unit ::= [0-9a-cA-CefEF] [0-9a-fA-F]{3} | [dD] [0-7] [0-9a-fA-F]{2} | [dD] [89abAB] [0-9a-fA-F]{2} low_surrogate
low_surrogate ::= "\\u" [dD] [c-fC-F] [0-9a-fA-F]{2}
integer ::= "0" | "-"? [1-9] [0-9]{0,31}
number ::= integer | "-"? ("0" | [1-9] [0-9]{0,31}) fraction | "-"? [0-9] fraction? [eE] exponent
fraction ::= "." [0-9]{1,24}
exponent ::= "-" [0-9]{1,3} | "+"? ([0-2]? [0-9]{1,2} | "30" [0-7])
boolean ::= "true" | "false"
null ::= "null"
key ::= ("\"" | [^"\\\x00-\x1f\uD800-\uDFFF] key | "\\" ["\\bfnrt] key) (= ": ")
"""
KEYWORDS = {
    "type", "enum", "anyOf", "oneOf", "properties", "required", "additionalProperties", "items", "prefixItems",
    "minItems", "maxItems",
}  # fmt: skip
SCALARS = ("string", "number", "boolean", "null")
ANY_DEPTH = 5  # levels of lists and objects in a value of unknown type
ANY_LENGTH = 128  # elements of a list of unknown type, and undeclared keys in a row
# States of the order of an object's keys (pairs_in_order). Each takes about 0.1 ms to compile.
MAX_STATES = 130


def calls_grammar(tools):
    """The EBNF of all lists of calls to these tools (parsed, in xLAM's flat form), the empty list
    included, as `to_json` writes them.

    Keys can have any order, each once; `pairs_in_order` limits objects of more than 6 keys. A tool
    is left out if no arguments fit its schema. Raises UserError if a schema has a keyword outside
    KEYWORDS."""
    rules = {}
    calls = []
    for tool in tools:
        if arguments := value_rule(rules, tool_schema(tool)):
            start = f'{{"name": {to_json(tool["name"])}, "arguments": '
            calls.append(f'{literal(start)} {arguments} "}}"')
    call = rule(rules, calls)
    root = f'"[" ({call} (", " {call})*)? "]"' if call else '"[]"'
    return "\n".join([f"root ::= {root}{TERMINALS}", *(f"{name} ::= {body}" for body, name in rules.items())])


def literal(text):
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def rule(rules, alternatives):
    """The name of the rule of these alternatives. None is a rule without texts, as a parameter and
    as the result.

    rules: `{body: name}`; the rule is added, and equal bodies are one rule."""
    body = " | ".join(dict.fromkeys(filter(None, alternatives)))
    if body.isidentifier():  # a rule's name
        return body
    return rules.setdefault(body, f"rule_{len(rules)}") if body else None


def value_rule(rules, schema, depth=ANY_DEPTH):
    """The rule of the values that fit a JSON Schema, or None. depth: the levels allowed in a value
    of unknown type.

    `oneOf` is read as `anyOf`: values of overlapping members are allowed."""
    if isinstance(schema, bool):
        return value_rule(rules, {}, depth) if schema else None
    if "enum" in schema:
        beside = {key: value for key, value in schema.items() if key != "enum"}
        values = [value for member in schema["enum"] for value in number_types(member) if conforms(value, beside)]
        return rule(rules, [literal(to_json(value)) for value in values])
    if unknown := schema.keys() - KEYWORDS:
        raise UserError(f"constrained decoding does not know the keyword {min(unknown)!r} of a schema")
    if (members := union_members(schema)) is not None:
        return rule(rules, [value_rule(rules, member, depth) for member in members])
    any_type = ("object", "array", *SCALARS) if depth else SCALARS
    types = [schema["type"]] if "type" in schema else any_type
    compound = {"object": object_rule, "array": array_rule}
    return rule(rules, [compound[name](rules, schema, depth) if name in compound else name for name in types])


def number_types(value):
    """A value of an enum. For a whole number, both the integer and the float: 5 fits [5.0], and 5.0
    fits [5]."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_whole = is_number and abs(value) < 2**53 and value == int(value)
    return (int(value), float(value)) if is_whole else (value,)


def union_members(schema):
    """The members of a schema's union, each with the keywords beside the union; None without a
    union."""
    for union in ("anyOf", "oneOf"):
        if union in schema:
            beside = {key: value for key, value in schema.items() if key != union}
            return [both(beside, member) for member in schema[union]]
    return None


def both(first, second):
    """The schema of the values of both schemas."""
    if isinstance(first, bool) or isinstance(second, bool):
        return second if first is True else first if second is True else False
    schemas = (first, second)
    for schema in schemas:
        if "enum" in schema:
            return {"enum": schema["enum"], "allOf": [first, second]}
    for schema, other in (schemas, schemas[::-1]):
        if (members := union_members(schema)) is not None:
            return {"anyOf": [both(member, other) for member in members]}
    types = {schema["type"] for schema in schemas if "type" in schema}
    if types == {"integer", "number"}:
        types = {"integer"}
    if len(types) > 1:
        return False
    properties = [schema.get("properties", {}) for schema in schemas]
    others = [schema.get("additionalProperties", True) for schema in schemas]
    places = [dict(enumerate(schema.get("prefixItems", []))) for schema in schemas]
    items = [schema.get("items", True) for schema in schemas]
    joint = {
        "properties": merged(properties, others),
        "required": [name for schema in schemas for name in schema.get("required", [])],
        "additionalProperties": both(*others),
        "prefixItems": list(merged(places, items).values()),
        "items": both(*items),
        "minItems": max(schema.get("minItems", 0) for schema in schemas),
    }
    if most := [schema["maxItems"] for schema in schemas if "maxItems" in schema]:
        joint["maxItems"] = min(most)
    return joint | ({"type": types.pop()} if types else {})


def merged(parts, others):
    """The schemas of the named or numbered parts of two schemas. For a missing part, a schema has
    its element of `others`."""
    first, second = parts
    return {key: both(first.get(key, others[0]), second.get(key, others[1])) for key in first | second}


def array_rule(rules, schema, depth):
    """The rule of a schema's arrays, or None."""
    items = schema.get("items", {})
    is_open = items in ({}, True)
    item = value_rule(rules, items, depth - is_open)
    places = [value_rule(rules, place, depth) for place in schema.get("prefixItems", [])]
    fewest, most = schema.get("minItems", 0), schema.get("maxItems", ANY_LENGTH if is_open else math.inf)
    if item is None:
        most = min(most, len(places))
    places = places or [item]
    most = min(most, *(place for place, value in enumerate(places) if value is None), math.inf)
    if fewest > most:
        return None
    rest = ""
    if most > len(places):
        bounds = max(0, fewest - len(places)), "" if most == math.inf else most - len(places)
        rest = f'(", " {item}){{{bounds[0]},{bounds[1]}}}'
    for place in reversed(range(min(len(places), most))):
        rest = f"{places[place]} {rest}" if place == 0 else f'", " {places[place]} {rest}'
        rest = rest if place < fewest else f"({rest})?"
    return rule(rules, [f'"[" {rest} "]"'])


def object_rule(rules, schema, depth):
    """The rule of a schema's objects, or None."""
    other_values = schema.get("additionalProperties", {})
    other_value = value_rule(rules, other_values, depth - (other_values in ({}, True)))
    required = set(schema.get("required", ()))
    properties = schema.get("properties", {})
    properties = properties | dict.fromkeys(sorted(required - properties.keys()), other_values)
    pairs = {}
    for name, spec in properties.items():
        if value := value_rule(rules, spec, depth):
            pairs[name] = rule(rules, [f"{literal(to_json(name) + ': ')} {value}"])
    if not required <= pairs.keys():
        return None
    other = f'"\\"" {other_key(rules, properties)} ": " {other_value}' if other_value else None
    return pairs_in_order(rules, pairs, required, other)


def pairs_in_order(rules, pairs, required, other):
    """The rule of an object. pairs: `{declared name: rule of the key and its value}`, each at most
    once; other: the EBNF of any other key and its value, or None.

    Keys have the declared order, but some can be postponed: they are owed. If all keys but one can
    be owed, every order is possible. A state is a place in the declared order and the keys owed
    there. The number of owed keys is bounded to keep the states below MAX_STATES: up to 6 keys have
    any order; of up to 8 keys two can be owed, of up to 14 keys one."""
    names = list(pairs)
    most_owed = 0
    while most_owed + 1 < len(names) and num_states(len(names), most_owed + 1) <= MAX_STATES:
        most_owed += 1
    # A separate rule: each occurrence of a repetition takes time to compile.
    others = rule(rules, [f'(", " {other}){{0,{ANY_LENGTH - 1}}}']) + " " if other else ""
    # By state: a pair not owed, any pair, and the rest after a pair.
    onward, next_pair, after = {}, {}, {}
    for place in reversed(range(len(names) + 1)):
        for num_owed in range(min(most_owed, place) + 1):
            for owed in map(frozenset, itertools.combinations(range(place), num_owed)):
                if place < len(names):
                    name = names[place]
                    left_out = onward.get((place + 1, owed)) if name not in required else None
                    put_off = onward.get((place + 1, owed | {place})) if num_owed < most_owed else None
                    onward[place, owed] = rule(rules, [f"{pairs[name]} {after[place + 1, owed]}", left_out, put_off])
                late = [f"{pairs[names[key]]} {after[place, owed - {key}]}" for key in sorted(owed)]
                next_pair[place, owed] = rule(rules, [onward.get((place, owed)), *late])
                may_end = not owed and required.isdisjoint(names[place:])
                more = f'", " {next_pair[place, owed]}' if next_pair[place, owed] else None
                after[place, owed] = others + rule(rules, ['"}"' if may_end else None, more])
    start = 0, frozenset()
    first_other = f"{other} {after[start]}" if other else None
    empty = '"}"' if required.isdisjoint(names) else None
    return rule(rules, [f'"{{" {rule(rules, [empty, next_pair[start], first_other])}'])


def num_states(num_keys, most_owed):
    """The number of states: a place, and the owed keys before it."""
    return sum(math.comb(num_keys + 1, owed + 1) for owed in range(most_owed + 1))


def other_key(rules, names):
    """The EBNF of a key unlike these names, after its opening quote. Each character has one
    spelling, so no name passes as an escape."""
    following = {}  # {beginning of a name: its next characters}, as JSON spells them
    spelled = [re.findall(r"\\u....|\\.|.", to_json(name)[1:-1], re.DOTALL) for name in names]
    for characters in spelled:
        for length, character in enumerate(characters):
            following.setdefault("".join(characters[:length]), {})[character] = None
    ends = {"".join(characters) for characters in spelled}
    found = {}
    for beginning in sorted({*following, *ends}, key=len, reverse=True):
        characters = following.get(beginning, {})
        excluded = "".join(f"\\U{ord(character):08x}" for character in characters if len(character) == 1)
        escapes = "".join(f"\\U{ord(letter):08x}" for letter in '"\\bfnrt' if "\\" + letter not in characters)
        found[beginning] = rule(
            rules,
            [
                f'[^"\\\\\\x00-\\x1f\\uD800-\\uDFFF{excluded}] key',
                f'"\\\\" [{escapes}] key' if escapes else None,
                *(f"{literal(character)} {found[beginning + character]}" for character in characters),
                None if beginning in ends else '"\\""',
            ],
        )
    return found.get("", "key")
