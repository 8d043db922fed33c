"""The Berkeley Function-Calling Leaderboard's AST match of one output, Python categories. Pure functions, no torch.

Written from what its checker does (PyPI `bfcl-eval` 2026.3.23, `eval_checker/ast_eval/ast_checker.py`), and compared with it.
Where that checker fails a right answer or passes a wrong one by accident, this one does not:
- Parallel calls are matched one to one as well as can be. First come, first served, as there, a call that fits two accepted
  ones may take the only place of another.
- `true` is never 1, inside lists and objects too, where Python's `==` says that it is.
- An element of a list must have its type whether the list may be left out or not, and an int may stand for a float in a list
  as it may outside.
- Strings in lists in lists, or in lists in objects, are compared like all others.
- `""` among the accepted values permits to leave the argument out, not to give an empty list.
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
    """Whether `calls` are the calls wanted, each value one of those accepted, in any order. Never raises.

    Args:
        calls: what a model said, any JSON value; all but a list of `{"name", "arguments"}` is a miss.
        acceptable: the calls wanted, a list of `{function name: {argument: [accepted values]}}`, the row's `acceptable` parsed.
            `""` among the values: the argument may be left out. An object among them has lists of accepted values itself,
            and so have the objects in a list.
        tools: the row's tools in xLAM's flat form, parsed.
    """
    try:
        check_calls(calls)
        if not isinstance(acceptable, list) or len(calls) != len(acceptable):
            return False
        parameters = _parameters(tools)
        fitting = best_pairs([[_call_fits(call, want, parameters) for want in acceptable] for call in calls])
        return len(fitting) == len(calls)
    except (ValueError, RecursionError):  # no calls; or both sides nested deeper than any call is
        return False


def _parameters(tools):
    """`{function name: {argument: what describes it}}`, of whatever of the tools is in order."""
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
    """The type that a tool declares of an argument, an informal text; None where it declares none."""
    declared = spec.get("type") if isinstance(spec, dict) else None
    return declared if isinstance(declared, str) else None


def _may_be_absent(accepted, spec):
    """Some lists of accepted values say so of arguments that the tool requires: then the tool is right, as it would refuse."""
    declared = _declared(spec)
    required = declared is not None and "optional" not in declared.lower() and "default" not in spec
    return isinstance(accepted, list) and "" in accepted and not required


def _argument_fits(value, accepted, declared):
    kind, element = _read_type(declared)
    if not isinstance(accepted, list) or not _has_type(value, kind, accepted):
        return False
    if isinstance(value, str) and kind not in (str, None):
        return value in accepted  # a variable's name, `data['sales']`, or a word such as "dontcare": to the letter
    return any(_fits(value, each, element) for each in accepted)


def _read_type(declared):
    """Python's type of JSON values for a text like `List[int], optional`, and the text that stands in its brackets; None where
    it is not understood."""
    match = _TYPE.fullmatch(declared.lower()) if declared else None
    while match and match[1] == "optional" and match[2]:
        match = _TYPE.fullmatch(match[2])
    return (_KINDS.get(match[1]), match[2]) if match else (None, None)


def _has_type(value, kind, accepted):
    """The type declared, or that of the first accepted value, which may be a variable's name; an int may stand for a float."""
    first = next((type(each) for each in accepted if each != ""), None)
    kind = kind or first or str
    return type(value) in (kind, first) or (kind is float and type(value) is int)


def _fits(value, accepted, element):
    """Whether a value is the one accepted; `element` is the type declared of the elements, where the value is a list."""
    if isinstance(value, dict) and isinstance(accepted, dict):
        return _object_fits(value, accepted)
    if isinstance(value, list) and isinstance(accepted, list):
        kind, inner = _read_type(element)
        pairs = zip(value, accepted, strict=False)
        return len(value) == len(accepted) and all(_has_type(v, kind, [a]) and _fits(v, a, inner) for v, a in pairs)
    return _equal(value, accepted)


def _object_fits(value, accepted):
    """Key by key: the types are not known here, since tools in xLAM's form do not declare them, so 5.0 is 5."""
    listed = {key: values if isinstance(values, list) else [] for key, values in accepted.items()}
    return all(key in value or "" in values for key, values in listed.items()) and all(
        key in listed and any(_equal(v, each) for each in listed[key]) for key, v in value.items()
    )


def _equal(a, b):
    """Equality of JSON values, but of strings without what the leaderboard ignores in them."""
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
