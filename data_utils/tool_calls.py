"""Tool calls as text and as values: strict parsing, comparison, and what counts as the answer. Pure functions, no torch.

A list of calls is `[{"name": str, "arguments": {...}}, ...]`, the format of xLAM's `answers`.
"""

import json
import math
import re

MAX_DEPTH = 64  # far beyond any real call, far below the parser's recursion limit
END_TAG = "</answer>"
_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)  # one that never closes ends with the text
_STRING_OR_END_TAG = re.compile(f"{_STRING.pattern}|{END_TAG}", re.DOTALL)
_OBJECT_OR_LIST_OF_OBJECTS = re.compile(r"\{|\[(?=\s*\{)")
_FENCED_EMPTY_LIST = re.compile(r"\s*```\w*\s*\[\s*\]")


def parse_json(text):
    """The value of `text`, strictly: all of it one JSON value as RFC 8259 defines it, keys unique, numbers finite.

    Python's own parser takes NaN, Infinity and 1e999, keeps the last of two equal keys and overflows its stack on deep
    nesting. Raises ValueError (json.JSONDecodeError among them).
    """
    _check_depth(text)
    return _DECODER.decode(text)


def _check_depth(text):
    if text.count("[") + text.count("{") > MAX_DEPTH:  # else it cannot be deeper, and counting is quick
        depth = 0
        for character in re.findall(r"[\[{\]}]", _STRING.sub("", text)):
            depth += (character in "[{") - (character in "]}")
            if depth > MAX_DEPTH:
                raise ValueError(f"nested deeper than {MAX_DEPTH}")


def _value_at(text, start):
    """The value that begins at `start`, as strictly as parse_json's, and where it ends. Raises ValueError, or RecursionError
    where brackets open without end."""
    value, end = _DECODER.raw_decode(text, start)
    _check_depth(text[start:end])
    return value, end


def _unique(pairs):
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object has the same key twice")
    return value


def _refuse(constant):
    raise ValueError(f"{constant} is not JSON")


def _finite(text):
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large a number")
    return number


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)


def json_equal(a, b):
    """Equality of JSON values: `true` is not 1 (in Python it is), 5 is 5.0, keys have no order, lists have."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(json_equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(json_equal(a[key], b[key]) for key in a)
    return a == b


def check_calls(calls):
    """Raises ValueError, saying what is wrong, unless `calls` is a list of `{"name": str, "arguments": {...}}`."""
    if not isinstance(calls, list):
        raise ValueError("not a list of calls")
    for call in calls:
        if not isinstance(call, dict) or set(call) != {"name", "arguments"}:
            raise ValueError('a call must have the keys "name" and "arguments" and no others')
        if not isinstance(call["name"], str) or not isinstance(call["arguments"], dict):
            raise ValueError("a call's name must be a string and its arguments an object")


FLAT_FORM = 'xLAM\'s flat form, [{"name", "description", "parameters": {argument: {"description", "type"}}}]'


def check_tool(tool):
    """Raises ValueError with the reason unless `tool` is a tool in xLAM's flat form."""
    if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
        raise ValueError("a tool must be an object with a name")
    parameters = tool.get("parameters", {})
    if not isinstance(parameters, dict) or not all(isinstance(spec, dict) for spec in parameters.values()):
        raise ValueError(
            f"tool {tool['name']}: parameters must be an object with an object for each argument: {FLAT_FORM}"
        )


# What a generated text says, and when enough of it has been seen. One rule: whatever `finished` cuts off changes no score.


def opening_value(text):
    """The list or object that `text` starts with, strictly parsed, and where it ends; None where it starts otherwise."""
    start = len(text) - len(text.lstrip())
    if text[start : start + 1] not in ("[", "{"):
        return None
    try:
        return _value_at(text, start)
    except (ValueError, RecursionError):
        return None


def has_value(text):
    """Whether the list or object that `text` starts with has closed."""
    return opening_value(text) is not None


def finished(text):
    """Whether generation may stop here: a value has closed, and what follows it is `</answer>` or cannot become it.

    A text that starts otherwise is never finished: it runs on to the end token or the budget, since its value may come later.
    """
    if (opening := opening_value(text)) is None:
        return False
    rest = text[opening[1] :].lstrip()
    return rest.startswith(END_TAG) or not END_TAG.startswith(rest)


def answer_text(text):
    """What counts as the answer: the text up to the first `</answer>` outside a JSON string, without surrounding blanks.

    Quotes make strings from the first bracket on: before it, they are prose.
    """
    bracket = re.search(r"[\[{]|\Z", text).start()
    end = text.find(END_TAG, 0, bracket)
    if end < 0:
        matches = _STRING_OR_END_TAG.finditer(text, bracket)
        end = next((match.start() for match in matches if match[0] == END_TAG), len(text))
    return text[:end].strip()


def parse_answer(text):
    """The JSON value that the answer in `text` is, all of it; raises ValueError, saying what is wrong with it."""
    return parse_json(answer_text(text))


def lenient_value(text):
    """What a forgiving parser finds in `text`, or None: the list or object that it starts with, else the first object or
    non-empty list of objects anywhere. An empty list only at the start or in a code fence there: in code, `[]` means nothing.
    """
    if opening := opening_value(text):
        return opening[0]
    if _FENCED_EMPTY_LIST.match(text):
        return []
    for start in _OBJECT_OR_LIST_OF_OBJECTS.finditer(text):
        try:
            value, _ = _value_at(text, start.start())
        except ValueError:
            continue
        except RecursionError:
            break  # what follows is only the inside of this one, and trying all of it would take hours
        if isinstance(value, dict) or all(isinstance(element, dict) for element in value):
            return value
    return None
