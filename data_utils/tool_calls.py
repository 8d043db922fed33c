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
    if text.count("[") + text.count("{") > MAX_DEPTH:  # else it cannot be deeper, and counting is quick
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


# Scores of a generated text. An output that does not parse is a miss, never an exclusion.


def answer_text(text):
    """What counts as the answer: the text up to the first `</answer>`, without surrounding blanks."""
    return text.split("</answer>", 1)[0].strip()


def parse_calls(text):
    """The list of calls that `text` is; raises ValueError, saying what is wrong with it."""
    calls = parse_json(answer_text(text))
    check_calls(calls)
    return calls


def first_json_value(text):
    """The first list or object anywhere in `text`, prose and code fences around it forgiven, or None."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
    for start in re.finditer(r"[\[{]", text):
        try:
            return decoder.raw_decode(text, start.start())[0]
        except ValueError:
            continue
        except RecursionError:
            break  # the brackets that follow are only the inside of this one
    return None


def score(text, gold, tools):
    """The verdicts on one generated text, a dict of booleans.

    gold: the list of calls wanted; tools: the tools on offer, both as parsed values.
    json_valid: the answer is strict JSON, all of it, a list or an object. exact_match: it equals gold, calls in order.
    tools_exist: it is valid, makes at least one call (none only where gold has none), and names tools on offer alone.
    The lenient_ ones are upper bounds, for comparison with figures whose parser is unknown: the first JSON value anywhere,
    and elements that name no tool pass.
    """
    names = {tool["name"] for tool in tools}
    try:
        value = parse_json(answer_text(text))
    except ValueError:
        value = None
    lenient = first_json_value(text)
    return {
        "json_valid": isinstance(value, list | dict),
        "exact_match": value == gold,
        "tools_exist": _tools_exist(value, names, gold, nameless_pass=False),
        "lenient_json_valid": lenient is not None,
        "lenient_exact_match": lenient == gold,
        "lenient_tools_exist": _tools_exist(lenient, names, gold, nameless_pass=True),
    }


def _tools_exist(value, names, gold, nameless_pass):
    if not isinstance(value, list | dict):
        return False
    calls = value if isinstance(value, list) else [value]
    if not calls:
        return not gold
    named = [call.get("name") if isinstance(call, dict) else None for call in calls]
    return all(nameless_pass if name is None else isinstance(name, str) and name in names for name in named)


def wilson_interval(k, n, z=1.959964):
    """The 95% interval of a proportion k/n, as (low, high): Wilson (1927), which holds near 0 and 1 and for small n."""
    if n == 0:
        return 0.0, 1.0
    p = k / n
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)
    return (0.0 if k == 0 else low), (1.0 if k == n else high)


class ValueWatcher:
    """Follows a text as it is generated and says when enough has been seen: feed it the pieces in order.

    Enough is one non-blank character after the top-level list or object closes (so that trailing text is still seen to be
    there) or `</answer>`. A text that opens otherwise runs on: its value may come later.
    """

    def __init__(self):
        self.started = self.opened = self.closed = self.in_string = self.escaped = False
        self.depth = 0
        self.tail = ""

    def feed(self, piece):
        self.tail = self.tail[-len("</answer>") :] + piece
        enough = "</answer>" in self.tail
        for character in piece:
            if not self.started:
                self.started = not character.isspace()
                self.opened = self.started and character in "[{"
            if not self.opened:
                continue
            if self.in_string:
                if self.escaped:
                    self.escaped = False
                elif character == "\\":
                    self.escaped = True
                elif character == '"':
                    self.in_string = False
            elif self.closed:
                if not character.isspace():
                    return True
            elif character == '"':
                self.in_string = True
            else:
                self.depth += (character in "[{") - (character in "]}")
                self.closed = self.depth == 0
        return enough
