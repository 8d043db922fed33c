"""The character at which the strict parser stops in an output, for the report's page."""

import json
import math
import re

from run_utils.files import JSON_STRING, MAX_DEPTH

_TOKEN = re.compile(rf"{JSON_STRING.pattern}|[{{}}\[\]]|-?Infinity|NaN|-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?", re.DOTALL)
_COLON = re.compile(r"\s*:")


def find_fault(text, error):
    """`{"place", "reason"}` of an output that does not parse.

    place: the index of the first refused character, in UTF-16 units as browsers count; the text's
    length if the text ends too early; None if the parser names no character. error: the parser's
    ValueError.
    """
    reason = str(error)
    if isinstance(error, json.JSONDecodeError):
        # The parser reads a part of the text: the answer.
        start = text.find(error.doc)
        place, reason = (start + error.pos if start >= 0 else None), error.msg
    else:
        place, reason = _refused_value(text) or (None, reason)
    if place is not None:
        place = len(text[:place].encode("utf-16-le", "surrogatepass")) // 2
    return {"place": place, "reason": reason}


def _refused_value(text):
    """`(place, reason)` of the first value that JSON's grammar allows and the strict parser
    refuses: a key twice, an infinite number, or deep nesting. None if the text has no such
    value."""
    start = re.search(r"[\[{]|\Z", text).start()
    open_objects = []  # for each open bracket the keys of its object
    for match in _TOKEN.finditer(text, start):
        token = match[0]
        if token in "[{":
            open_objects.append(set())
            if len(open_objects) > MAX_DEPTH:
                return match.start(), f"nested deeper than {MAX_DEPTH}"
        elif token in "]}":
            if open_objects:
                open_objects.pop()
        elif token[0] != '"':
            if not math.isfinite(float(token)):
                return match.start(), f"{token[:20]} is not a finite number"
        elif open_objects and _COLON.match(text, match.end()):
            if token in open_objects[-1]:
                return match.start(), f"an object has the key {token} twice"
            open_objects[-1].add(token)
    return None
