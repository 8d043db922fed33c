"""Tool calls as text and as values: strict parsing and comparison. Pure functions, no torch.

A list of calls is `[{"name": str, "arguments": {...}}, ...]`, the format of xLAM's `answers`.
"""

import json
import math
import re

MAX_DEPTH = 64  # far beyond any real call, far below the parser's recursion limit
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)


def parse_json(text):
    """The value of `text`, strictly: all of it one JSON value as RFC 8259 defines it, keys unique, numbers finite.

    Python's own parser takes NaN, Infinity and 1e999, keeps the last of two equal keys and overflows its stack on deep
    nesting. Raises ValueError (json.JSONDecodeError among them).
    """
    depth = 0
    for character in _STRING.sub("", text):
        depth += (character in "[{") - (character in "]}")
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)


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


def check_calls(calls):
    """Raises ValueError, saying what is wrong, unless `calls` is a list of `{"name": str, "arguments": {...}}`."""
    if not isinstance(calls, list):
        raise ValueError("not a list of calls")
    for call in calls:
        if not isinstance(call, dict) or set(call) != {"name", "arguments"}:
            raise ValueError('a call must have the keys "name" and "arguments" and no others')
        if not isinstance(call["name"], str) or not isinstance(call["arguments"], dict):
            raise ValueError("a call's name must be a string and its arguments an object")


def check_tools(tools):
    """Raises ValueError, saying what is wrong, unless `tools` is a list of objects with unique names."""
    if not isinstance(tools, list):
        raise ValueError("not a list of tools")
    for tool in tools:
        if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
            raise ValueError("a tool must be an object with a name")
    if len({tool["name"] for tool in tools}) != len(tools):
        raise ValueError("two tools have the same name")
