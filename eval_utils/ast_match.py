"""The Berkeley Function-Calling Leaderboard's AST match of one output, for its Python categories.
Pure functions, no torch.

Written after the leaderboard's checker (PyPI `bfcl-eval` 2026.3.23,
`eval_checker/ast_eval/ast_checker.py`) and compared with it. The checker fails some right answers
and passes some wrong ones by accident. This match differs:
- Parallel calls are matched one to one, with the most matches possible. The checker gives a call
  the first accepted call that fits, which may be the only fit of a later call.
- `true` is never 1, not even inside lists and objects. Python's `==` makes them equal.
- Elements of a list must have the declared type, whether the list is optional or required. An int
  may stand for a float in a list, as outside of one.
- Strings in nested lists, or in lists in objects, are compared like all strings.
- `""` among the accepted values makes the argument optional. It does not accept an empty list.
"""

import re

from data_utils.tool_calls import check_calls
from eval_utils.matching import best_pairs

_KINDS = {
    "str": str, "string": str, "any": str, "int": int, "integer": int, "float": float, "number": float,
    "bool": bool, "boolean": bool, "list": list, "array": list, "tuple": list, "dict": dict, "object": dict,
}  # fmt: skip
_TYPE = re.compile(r"\s*(\w+)\s*(?:\[(.*)\]\s*)?(?:,.*)?", re.DOTALL)  # `List[int], optional`
_IGNORED = str.maketrans({**dict.fromkeys(" ,./-_*^"), "'": '"'})


def ast_match(calls, acceptable, tools):
    """Whether `calls` are the wanted calls in any order, with accepted values. Never raises.

    Args:
        calls: the model's answer, any JSON value. Only a list of `{"name", "arguments"}` can match.
        acceptable: the row's `acceptable`, parsed: the wanted calls as a list of
            `{function name: {argument: [accepted values]}}`. `""` among the values: the argument
            may be left out. An accepted object holds lists of accepted values too, also in a list.
        tools: the row's tools in xLAM's flat form, parsed.
    """
    try:
        check_calls(calls)
        if not isinstance(acceptable, list) or len(calls) != len(acceptable):
            return False
        parameters = _parameters(tools)
        fitting = best_pairs([[_call_fits(call, want, parameters) for want in acceptable] for call in calls])
        return len(fitting) == len(calls)
    except (ValueError, RecursionError):  # no calls, or both sides nested too deep
        return False


def _parameters(tools):
    """`{function name: {argument: its spec}}`, without malformed tools."""
    named = [tool for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    parameters = {tool["name"]: tool.get("parameters") for tool in named if isinstance(tool.get("name"), str)}
    return {name: specs for name, specs in parameters.items() if isinstance(specs, dict)}


def _call_fits(call, want, parameters):
    name, arguments = call["name"], call["arguments"]
    if not isinstance(want, dict) or list(want) != [name] or not isinstance(want[name], dict):
        return False
    accepted, specs = want[name], parameters.get(name, {})
    known = all(argument in accepted and argument in specs for argument in arguments)
    return (
        known
        and all(_may_be_absent(accepted[a], specs.get(a)) for a in accepted if a not in arguments)
        and all(_argument_fits(value, accepted[a], _declared(specs[a])) for a, value in arguments.items())
    )


def _declared(spec):
    """An argument's declared type, an informal text, or None."""
    declared = spec.get("type") if isinstance(spec, dict) else None
    return declared if isinstance(declared, str) else None


def _may_be_absent(accepted, spec):
    """Whether an argument may be left out. Some rows accept "" for an argument that the tool
    requires. The tool would refuse the call, so the argument stays required."""
    declared = _declared(spec)
    required = declared is not None and "optional" not in declared.lower() and "default" not in spec
    return isinstance(accepted, list) and "" in accepted and not required


def _argument_fits(value, accepted, declared):
    python_type, element = _read_type(declared)
    if not isinstance(accepted, list) or not _has_type(value, python_type, accepted):
        return False
    if isinstance(value, str) and python_type not in (str, None):
        # A variable's name (`data['sales']`) or a word such as "dontcare" must match to the letter.
        return value in accepted
    return any(_fits(value, candidate, element) for candidate in accepted)


def _read_type(declared):
    """The Python type for a text like `List[int], optional`, and the text in its brackets. An
    unknown type is None."""
    match = _TYPE.fullmatch(declared.lower()) if declared else None
    while match and match[1] == "optional" and match[2]:
        match = _TYPE.fullmatch(match[2])
    return (_KINDS.get(match[1]), match[2]) if match else (None, None)


def _has_type(value, declared, accepted):
    """Whether a value has the declared type, or the type of the first accepted value, which may be
    a variable's name. An int may stand for a float."""
    first = next((type(candidate) for candidate in accepted if candidate != ""), None)
    python_type = declared or first or str
    return type(value) in (python_type, first) or (python_type is float and type(value) is int)


def _fits(value, accepted, element):
    """Whether a value equals an accepted value. element: the declared type of a list's elements."""
    if isinstance(value, dict) and isinstance(accepted, dict):
        return _object_fits(value, accepted)
    if isinstance(value, list) and isinstance(accepted, list):
        element_type, inner = _read_type(element)
        pairs = zip(value, accepted, strict=False)
        fitting = (_has_type(v, element_type, [a]) and _fits(v, a, inner) for v, a in pairs)
        return len(value) == len(accepted) and all(fitting)
    return _equal(value, accepted)


def _object_fits(value, accepted):
    """Compare key by key. Tools in xLAM's form do not declare the types inside an object, so 5.0 is
    5."""
    listed = {key: values if isinstance(values, list) else [] for key, values in accepted.items()}
    return all(key in value or "" in values for key, values in listed.items()) and all(
        key in listed and any(_equal(v, candidate) for candidate in listed[key]) for key, v in value.items()
    )


def _equal(a, b):
    """JSON equality. Strings are compared as the leaderboard does: without case, spaces and some
    punctuation."""
    if isinstance(a, str) and isinstance(b, str):
        return _standard(a) == _standard(b)
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return a == b


def _standard(text):
    return text.translate(_IGNORED).lower()
