"""Calls beside gold's calls, argument by argument, for the report's page."""

import json

from data_utils.tool_calls import json_equal
from eval_utils.matching import is_call, pair_calls


def compare_calls(gold, value):
    """The output's calls beside gold's. None if the value is no list or object, else a list of

      {"state": "equal" | "changed" | "missing" | "extra", "name": str,
       "arguments": [[state, key, given, wanted]]}

    in the output's order, missing calls last. given and wanted are JSON texts, or None on the side
    without the argument. An element without name and arguments is {"state": "extra", "json": text}.
    Calls are paired as in the figures, by pair_calls. A key beside name and arguments is an
    argument in the state "stray".
    """
    if not isinstance(value, list | dict):
        return None
    calls = value if isinstance(value, list) else [value]
    partners = dict(pair_calls(calls, gold))
    compared = [
        _compare_call(gold[partners[place]], call) if place in partners else _shown_call("extra", call)
        for place, call in enumerate(calls)
    ]
    return compared + [
        _shown_call("missing", call) for place, call in enumerate(gold) if place not in partners.values()
    ]


def _compare_call(wanted, call):
    gold, given = wanted["arguments"], call["arguments"]
    arguments = [
        ["extra", key, _json(value), None]
        if key not in gold
        else ["equal", key, _json(value), None]
        if json_equal(value, gold[key])
        else ["changed", key, _json(value), _json(gold[key])]
        for key, value in given.items()
    ]
    arguments += [["missing", key, None, _json(value)] for key, value in gold.items() if key not in given]
    arguments += [["stray", key, _json(value), None] for key, value in call.items() if key not in ("name", "arguments")]
    state = "equal" if all(argument[0] == "equal" for argument in arguments) else "changed"
    return {"state": state, "name": call["name"], "arguments": arguments}


def _shown_call(state, call):
    """A call whose arguments all have its state."""
    if not is_call(call):
        return {"state": state, "json": _json(call)}
    sides = (lambda text: [None, text]) if state == "missing" else (lambda text: [text, None])
    arguments = [[state, key, *sides(_json(value))] for key, value in call["arguments"].items()]
    return {"state": state, "name": call["name"], "arguments": arguments}


def _json(value):
    return json.dumps(value, ensure_ascii=False)
