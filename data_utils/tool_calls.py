"""Tool calls as text and as values: strict parsing, comparison, and the answer in a generated text.
Pure functions, no torch.

A list of calls is `[{"name": str, "arguments": {...}}, ...]`, the format of xLAM's `answers`."""

import json
import math
import re

from run_utils.files import JSON_STRING, MAX_DEPTH, check_depth

END_TAG = "</answer>"
_STRING_OR_END_TAG = re.compile(f"{JSON_STRING.pattern}|{END_TAG}", re.DOTALL)
# A backslash outside a string is invalid.
_STRING_OR_BRACKET = re.compile(rf"{JSON_STRING.pattern}|[\[{{\]}}\\]", re.DOTALL)
_BLANK_OR_UNKNOWN = re.compile("[\\s\N{REPLACEMENT CHARACTER}]*")
_OBJECT_OR_LIST_OF_OBJECTS = re.compile(r"\{|\[(?=\s*\{)")
_FENCED_EMPTY_LIST = re.compile(r"\s*```\w*\s*\[\s*\]")


def parse_json(text):
    """Parse one JSON value strictly: RFC 8259, unique keys, finite numbers, no text after it.

    Python's own parser accepts NaN, Infinity and 1e999, keeps the last of two equal keys, and
    overflows its stack on deep nesting. Raises ValueError, for syntax json.JSONDecodeError."""
    check_depth(text)
    return _DECODER.decode(text)


def value_at(text, start):
    """Parse the value at `start` as strictly as parse_json, and return its end too. Raises
    ValueError, or RecursionError for endless opening brackets."""
    value, end = _DECODER.raw_decode(text, start)
    check_depth(text[start:end])
    return value, end


class RepeatedKey(ValueError):
    """An object with a key twice. key: the first one."""

    def __init__(self, pairs):
        super().__init__("an object has the same key twice")
        keys = [key for key, _ in pairs]
        self.key = next(key for place, key in enumerate(keys) if key in keys[:place])


def _unique(pairs):
    value = dict(pairs)
    if len(value) != len(pairs):
        raise RepeatedKey(pairs)
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
    """Equality of JSON values: `true` is not 1 (in Python it is), 5 is 5.0, and only lists have an
    order."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(json_equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(json_equal(a[key], b[key]) for key in a)
    return a == b


def hashable(value):
    """A hashable form of a JSON value. Two forms are equal if and only if json_equal is true."""
    if isinstance(value, dict):
        return "object", frozenset((key, hashable(element)) for key, element in value.items())
    if isinstance(value, list):
        return "list", tuple(map(hashable, value))
    return isinstance(value, bool), value


def check_calls(calls):
    """Raise ValueError with the reason unless `calls` is a list of `{"name": str, "arguments":
    {...}}`."""
    if not isinstance(calls, list):
        raise ValueError("not a list of calls")
    for call in calls:
        if not isinstance(call, dict) or set(call) != {"name", "arguments"}:
            raise ValueError('a call must have the keys "name" and "arguments" and no others')
        if not isinstance(call["name"], str) or not isinstance(call["arguments"], dict):
            raise ValueError("a call's name must be a string and its arguments an object")


FLAT_FORM = 'xLAM\'s flat form, [{"name", "description", "parameters": {argument: {"description", "type"}}}]'


def check_tool(tool):
    """Raise ValueError with the reason unless `tool` is in xLAM's flat form."""
    if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
        raise ValueError("a tool must be an object with a name")
    parameters = tool.get("parameters", {})
    if not isinstance(parameters, dict) or not all(isinstance(spec, dict) for spec in parameters.values()):
        raise ValueError(
            f"tool {tool['name']}: parameters must be an object with an object for each argument: {FLAT_FORM}"
        )


# The value of a generated text, and the end of generation. One rule: text after `finished` changes
# no score.


def opening_value(text):
    """The strictly parsed list or object at the start of `text`, and its end; None if there is
    none."""
    start = len(text) - len(text.lstrip())
    if text[start : start + 1] not in ("[", "{"):
        return None
    try:
        return value_at(text, start)
    except (ValueError, RecursionError):
        return None


def has_value(text):
    """Whether the list or object at the start of `text` has closed."""
    return opening_value(text) is not None


def finished(text):
    """Whether generation may stop: a value has closed, and the text after it is `</answer>` or
    cannot become it.

    A text without a value at its start is never finished: its value may follow later, so it runs to
    the end token or the budget."""
    if (opening := opening_value(text)) is None:
        return False
    rest = text[opening[1] :].lstrip()
    return rest.startswith(END_TAG) or not END_TAG.startswith(rest)


class Closing:
    """Detects when to call `finished` on a growing text. `finished` reads the whole text, this
    class reads each piece once.

    Pieces are the texts of single tokens. Whitespace between them may be missing, and a letter of
    several tokens is one U+FFFD per token. Brackets, quotes and backslashes are complete and in
    order."""

    def __init__(self):
        self.opened = self.in_string = self.escaped = False
        self.depth = 0  # number of open brackets
        self.rest_is_blank = True  # the rest is the text after the value

    def add(self, piece):
        """Read the next piece. Returns whether `finished` may be true now and was not before."""
        if not self.opened:
            piece = piece[_BLANK_OR_UNKNOWN.match(piece).end() :]
            if not piece:
                return False
            self.opened = True
            # A text that does not start with a value never closes.
            self.depth = 0 if piece[0] in "[{" else math.inf
        elif self.depth == 0:
            self.rest_is_blank = self.rest_is_blank and not piece.strip()
            return not self.rest_is_blank
        for place, character in enumerate(piece):
            if self.in_string:
                self.in_string = self.escaped or character != '"'
                self.escaped = character == "\\" and not self.escaped
            elif character == '"':
                self.in_string = True
            else:
                self.depth += (character in "[{") - (character in "]}")
                if self.depth == 0:
                    self.rest_is_blank = not piece[place + 1 :].strip()
                    return True
        return False


def answer_text(text):
    """The answer: the text up to the first `</answer>` outside a JSON string, without surrounding
    whitespace.

    Quotes make strings only after the first bracket. Before it, they are prose."""
    bracket = re.search(r"[\[{]|\Z", text).start()
    end = text.find(END_TAG, 0, bracket)
    if end < 0:
        matches = _STRING_OR_END_TAG.finditer(text, bracket)
        end = next((match.start() for match in matches if match[0] == END_TAG), len(text))
    return text[:end].strip()


def parse_answer(text):
    """The JSON value of the whole answer in `text`. Raises ValueError with the reason."""
    return parse_json(answer_text(text))


def lenient_value(text):
    """The value of `text` for a forgiving parser, or None: the list or object at its start, else
    the first object or non-empty list of objects. An empty list counts only at the start, or in a
    code fence at the start: in code, `[]` means nothing."""
    if opening := opening_value(text):
        return opening[0]
    if _FENCED_EMPTY_LIST.match(text):
        return []
    spans = {}
    for match in _OBJECT_OR_LIST_OF_OBJECTS.finditer(text):
        start = match.start()
        if start not in spans:
            _add_spans(text, start, spans)
        if not spans[start] or spans[start][1] > MAX_DEPTH:
            continue
        try:
            value, _ = _DECODER.raw_decode(text[start : spans[start][0]])
        except ValueError:
            continue
        if isinstance(value, dict) or all(isinstance(element, dict) for element in value):
            return value
    return None


def _add_spans(text, start, spans):
    """Add `{place: (end, depth)}` of the bracket at `start` and all brackets in it; None for an
    unclosed bracket.

    Known brackets are skipped: all starts of a text together read it about twice, because a place
    is either in a string or not. (Parsing at each start would read open text once per bracket.)"""
    open_places, depths, place = [], [], start
    while match := _STRING_OR_BRACKET.search(text, place):
        token, place = match[0], match.end()
        if token[0] == '"':
            continue
        if token in "[{":
            if match.start() not in spans:
                open_places.append(match.start())
                depths.append(1)
                continue
            if not spans[match.start()]:
                break
            place, depth = spans[match.start()]
        elif token != "\\" and text[open_places[-1]] + token in ("[]", "{}"):
            depth = depths.pop()
            spans[open_places.pop()] = place, depth
        else:
            break
        if not open_places:
            return
        depths[-1] = max(depths[-1], depth + 1)
    spans.update(dict.fromkeys(open_places))
