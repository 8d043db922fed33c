"""Calls beside gold's calls, value by value, for the report's page."""

import difflib
import json
import re

from data_utils.tool_calls import hashable, json_equal
from eval_utils.matching import is_call, pair_calls

MAX_ALIGNED = 10_000  # pairs of elements: aligning longer lists could take minutes
_PLAIN_KEY = re.compile(r"[^\W\d][\w-]*")


def compare_calls(gold, value):
    """The output's calls beside gold's. None if the value is no list or object, else a list of

      {"state": "equal" | "changed" | "missing" | "extra", "name": str,
       "arguments": [[state, path, given, wanted]]}

    in the output's order, missing calls last. Lists and objects that differ are compared element by
    element, so a path is an argument or a place in it, such as `filters.tags[1]`. given and wanted
    are JSON texts, or None on the side without the path. An element without name and arguments is
    {"state": "extra", "json": text}. Calls are paired as in the figures, by pair_calls. A key
    beside name and arguments is an argument in the state "stray"."""
    if not isinstance(value, list | dict):
        return None
    calls = value if isinstance(value, list) else [value]
    partners = dict(pair_calls(calls, gold))
    missing = set(range(len(gold))) - set(partners.values())
    compared = [
        _compare_call(gold[partners[place]], call) if place in partners else show_call("extra", call)
        for place, call in enumerate(calls)
    ]
    return compared + [show_call("missing", gold[place]) for place in sorted(missing)]


def show_call(state, call):
    """A call whose arguments all have its state, in the form of compare_calls."""
    if not is_call(call):
        return {"state": state, "json": _json(call)}
    sides = (lambda text: [None, text]) if state == "missing" else (lambda text: [text, None])
    arguments = [[state, _join("", key), *sides(_json(value))] for key, value in call["arguments"].items()]
    return {"state": state, "name": call["name"], "arguments": arguments}


def _compare_call(wanted, call):
    arguments = [*_compare_objects("", call["arguments"], wanted["arguments"])]
    arguments += [["stray", key, _json(value), None] for key, value in call.items() if key not in ("name", "arguments")]
    state = "equal" if all(argument[0] == "equal" for argument in arguments) else "changed"
    return {"state": state, "name": call["name"], "arguments": arguments}


def _compare(path, given, wanted):
    """Lines [state, path, given, wanted] of two values at the same path."""
    if json_equal(given, wanted):
        yield ["equal", path, _json(given), None]
    elif isinstance(given, dict) and isinstance(wanted, dict):
        yield from _compare_objects(path, given, wanted)
    elif isinstance(given, list) and isinstance(wanted, list):
        yield from _compare_lists(path, given, wanted)
    else:
        yield ["changed", path, _json(given), _json(wanted)]


def _compare_objects(path, given, wanted):
    for key, value in given.items():
        if key in wanted:
            yield from _compare(_join(path, key), value, wanted[key])
        else:
            yield ["extra", _join(path, key), _json(value), None]
    for key, value in wanted.items():
        if key not in given:
            yield ["missing", _join(path, key), None, _json(value)]


def _compare_lists(path, given, wanted):
    """Equal elements are paired in order, elements between them by place. An element's index is the
    output's, a missing element's gold's."""
    for i, i_end, j, j_end in _aligned(given, wanted):
        pairs = min(i_end - i, j_end - j)
        for place in range(pairs):
            yield from _compare(f"{path}[{i + place}]", given[i + place], wanted[j + place])
        for place in range(i + pairs, i_end):
            yield ["extra", f"{path}[{place}]", _json(given[place]), None]
        for place in range(j + pairs, j_end):
            yield ["missing", f"{path}[{place}]", None, _json(wanted[place])]


def _aligned(given, wanted):
    """Spans (i, i_end, j, j_end) of given[i:i_end] beside wanted[j:j_end]."""
    if len(given) * len(wanted) > MAX_ALIGNED:
        return [(0, len(given), 0, len(wanted))]
    sides = [list(map(hashable, elements)) for elements in (given, wanted)]
    return [opcode[1:] for opcode in difflib.SequenceMatcher(None, *sides, autojunk=False).get_opcodes()]


def _join(path, key):
    """The path of an object's key. A key that is no plain word is quoted."""
    if _PLAIN_KEY.fullmatch(key):
        return f"{path}.{key}" if path else key
    return f"{path}[{_json(key)}]" if path else _json(key)


def _json(value):
    return json.dumps(value, ensure_ascii=False)
