"""Calls as `{"name", "arguments"}`, read from values and from an assistant's text.

In a text, JSON and Python literals are read, alone or between the ends of FORMS, and `[f(a="b")]`.
Any other text that looks like a call raises BadRow: its row would teach a model to answer in words.
To read another form, add its two ends to FORMS."""

import ast
import json
import math
import re
import warnings

from data_utils.bad_rows import BadRow, keys_of, not_json
from data_utils.tool_calls import opening_value, parse_json

# Both ends of a value, as regular expressions. With a group `name`, the value is only arguments.
FORMS = (
    (r"<tool_call>", r"</tool_call>|\Z"),  # Hermes, Qwen
    (r"<tool_calls>", r"</tool_calls>|\Z"),  # Jamba
    (r"<TOOLCALL>", r"</TOOLCALL>|\Z"),  # NVIDIA
    (r"<functioncall>", r"</functioncall>|<\|endoftext\|>|\Z"),  # glaive
    (r"<function=(?P<name>[^<>{}]+)>", r"</function>|\Z"),  # Llama 3.1, functionary
    (r"<\|python_tag\|>", r"<\|eo[mt]_id\|>|\Z"),  # Llama
    (
        r"\[TOOL_CALLS\](?:(?P<name>[^\s\[\]{}]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?)?",
        r"(?=\[TOOL_CALLS\])|</s>|\Z",
    ),  # Mistral
    (r"<\|tool_call\|>", r"<\|/tool_call\|>|\Z"),  # Granite, Phi
    (r"<\|START_ACTION\|>", r"<\|END_ACTION\|>|\Z"),  # Cohere
)
COMPILED = [(re.compile(start), re.compile(rf"\s*(?:{end})")) for start, end in FORMS]
MARKS = re.compile(
    r"</?(?:tool_?calls?|function_?calls?|tool_use|invoke|function)\b"
    r"|<\|/?(?:tool|python_tag|action|START_ACTION|call\b|channel)|<\uff5ctool|\[TOOL_CALLS\]|\[ARGS\]|\bto=functions\."
    r"|^\s*Action Input:|```tool_(?:code|call)",
    re.IGNORECASE | re.MULTILINE,
)
# Cohere writes `Action:` before it.
FENCED = re.compile(r"\s*(?:Action:\s*)?```(?:json)?\s(.*)```\s*", re.DOTALL)
NAME_KEYS = ("name", "tool_name")
ARGUMENT_KEYS = ("arguments", "args", "parameters", "input")
PYTHON_STRING = r'"(?:[^"\\]|\\.)*+"|' + r"'(?:[^'\\]|\\.)*+'"
PYTHON_CALL = re.compile(r"\s*([^()\[\]{}\"'=,]*[^()\[\]{}\"'=,\s])\s*\(")
PYTHON_LIST = re.compile(rf"\s*\[{PYTHON_CALL.pattern}.*\)\s*\]\s*", re.DOTALL)
PYTHON_ALONE = re.compile(r"\s*[\w.]+\(\s*\w+\s*=.*\)\s*", re.DOTALL)  # with any name
SEPARATOR = re.compile(r"\s*(?:,(?!\s*\])|\](?=\s*\Z))")


def read_call(call):
    """`{"name", "arguments"}` of a call, with or without OpenAI's wrapper. Its arguments are an
    object or JSON text. Raises BadRow."""
    if type(call) is dict and list(map(type, call.values())) == [str, dict] and list(call) == ["name", "arguments"]:
        return call  # the usual form, for speed
    if isinstance(call, str):
        call = parse_value(call, "a call")
    if isinstance(call, dict) and isinstance(call.get("function"), dict):
        call = call["function"]
    if not isinstance(call, dict):
        raise BadRow("a call that is not an object")
    names = [call[key] for key in NAME_KEYS if call.get(key) is not None]
    if len(names) != 1 or not isinstance(names[0], str):
        raise BadRow(f"a call without a name: it has {keys_of(call)}")
    known = [key for key in ARGUMENT_KEYS if key in call]
    # Parquet pads each call with the keys of all calls.
    given = [key for key in known if call[key] is not None]
    if not known:
        raise BadRow(f"a call without arguments: it has {keys_of(call)}; known are {', '.join(ARGUMENT_KEYS)}")
    if len(given) > 1:
        raise BadRow(f"a call with {' and '.join(given)}")
    arguments = call[given[0]] if given else {}
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments or "{}")
        except ValueError as error:
            raise not_json("the arguments of a call", error) from None
    if not isinstance(arguments, dict):
        raise BadRow("a call whose arguments are not an object")
    return {"name": names[0], "arguments": arguments}


def read_calls(value):
    """The calls of a list or of a single call, or of the text of either. Raises BadRow."""
    value = parse_value(value, "calls") if isinstance(value, str) else value
    return [read_call(call) for call in (value if isinstance(value, list) else [value])]


def flat_calls(value):
    """A parsed list of xLAM's calls or OpenAI's `tool_calls` in xLAM's form. Raises BadRow."""
    if not isinstance(value, list):
        raise BadRow("not a list of calls")
    return [read_call(call) for call in value]


def parse_value(text, where):
    """The value of a JSON text, or of a Python literal. Raises BadRow."""
    try:
        return parse_json(text)
    except ValueError as error:
        try:
            return python_value(python_tree(text.strip()))
        except ValueError:
            raise not_json(where, error) from None


def python_tree(text):
    """The syntax tree of a Python expression, which is not run. Raises ValueError."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about escapes like "\\d"
            return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ValueError("not a Python expression") from None


def python_value(node):
    """The JSON value of a literal's syntax tree, with JSON's `true`, `false` and `null`. Raises
    ValueError."""
    match node:
        case ast.Constant(value=str() | bool() | int() | None as value):
            return value
        case ast.Constant(value=float() as value) if math.isfinite(value):
            return value
        case ast.Name(id="true" | "false" | "null" as name):
            return json.loads(name)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float())) if node.operand.value is not True:
            return -python_value(node.operand)
        case ast.List(elts=elements):
            return [python_value(element) for element in elements]
        case ast.Dict(keys=keys, values=values):
            return unique([(python_value(key), python_value(value)) for key, value in zip(keys, values, strict=True)])
    raise ValueError("not a literal that JSON has too")


def unique(pairs):
    value = dict(pairs)
    if len(value) != len(pairs) or not all(isinstance(key, str) for key in value):
        raise ValueError("not a literal that JSON has too")
    return value


def split_calls(text, names):
    """The words and the calls of an assistant's text. names: the names of the tools. Raises BadRow
    for an unread text that looks like a call."""
    thought, tag, text = text.rpartition("</think>")
    words, calls = read_bare(text, names)
    if not calls:
        words, calls = read_forms(text)
    if not calls and PYTHON_LIST.fullmatch(text):
        words, calls = "", read_python_list(text)
    if "<think>" in words:  # a call in it may be only a thought
        raise BadRow("an assistant's text has a thought that does not end: <think> without </think>")
    if mark := MARKS.search(words) or mark_of_tool(words, names) or PYTHON_ALONE.fullmatch(words):
        raise BadRow(f"an assistant's text holds a call that is not read: {mark[0].strip()[:40]}")
    if not calls:
        return thought + tag + text, []
    return "\n".join(filter(None, [thought + tag, words])), calls


def read_bare(text, names):
    """No words and the calls, if the text is a JSON value of calls only; else the text and no
    calls."""
    fenced = FENCED.fullmatch(text)
    inside = fenced[1] if fenced else text
    opening = opening_value(inside)
    if opening is None or inside[opening[1] :].strip():
        return text, []
    elements = opening[0] if isinstance(opening[0], list) else [opening[0]]
    return ("", read_calls(elements)) if elements and all(map(looks_like_call, elements)) else (text, [])


def looks_like_call(value):
    if not isinstance(value, dict):
        return False
    value = value["function"] if isinstance(value.get("function"), dict) else value
    return any(key in value for key in NAME_KEYS) and any(key in value for key in ARGUMENT_KEYS)


def read_forms(text):
    """The words of a text, and its calls in the first of FORMS that occurs. Raises BadRow."""
    for start, end in COMPILED:
        words, calls, position = [], [], 0
        while opened := start.search(text, position):
            words.append(text[position : opened.start()])
            value, closed = value_between(text, opened, end)
            name = opened.groupdict().get("name")
            calls += read_calls({"name": name.strip(), "arguments": value} if name else value)
            position = closed.end()
        if calls:
            return "\n".join(filter(None, map(str.strip, [*words, text[position:]]))), calls
    return text, []


def value_between(text, opened, end):
    """The value after a match, and the match of its end. Raises BadRow."""
    start = opened.end()
    if opening := opening_value(text[start:]):
        value, closed = opening[0], end.match(text, start + opening[1])
    else:
        closed = end.search(text, start)
        value = closed and parse_value(text[start : closed.start()], f"a call written in the text, {opened[0].strip()}")
    if not closed:
        raise BadRow(f"a call written in the text does not end: {opened[0].strip()}")
    return value, closed


def read_python_list(text):
    """The calls of `[f(a="b"), g()]`. Names may contain spaces. Raises BadRow."""
    calls, position = [], text.index("[") + 1
    try:
        while position < len(text.rstrip()):
            opened = PYTHON_CALL.match(text, position)
            end = opened and closing_parenthesis(text, opened.end())
            separator = end and SEPARATOR.match(text, end)
            if not separator:
                raise ValueError("not a list of calls")
            node = python_tree(f"f({text[opened.end() : end]}")
            if not isinstance(node, ast.Call) or node.args:
                raise ValueError("an argument without a name")
            arguments = unique([(keyword.arg, python_value(keyword.value)) for keyword in node.keywords])
            calls.append({"name": opened[1], "arguments": arguments})
            position = separator.end()
    except ValueError:
        raise BadRow("an assistant's text holds a call that is not read: [name(...)]") from None
    return calls


def closing_parenthesis(text, start):
    """The position after the parenthesis that closes the one before `start`, or None."""
    depth = 1
    for found in re.finditer(rf"{PYTHON_STRING}|[()]", text[start:], re.DOTALL):
        depth += (found[0] == "(") - (found[0] == ")")
        if depth == 0:
            return start + found.end()
    return None


def mark_of_tool(text, names):
    """The match of a tool's name written as in a call, or None: as a value or key of JSON, before
    `{`, before `(` at a line's start or with arguments, in or as an XML tag, after `functions.`, or
    after a word like `Action:`."""
    for name in names:
        if name and name in text:
            word = re.escape(name)
            pattern = (
                rf"""["']\w+["']\s*:\s*["']{word}["']|["']{word}["']\s*:\s*["'{{\[]|(?<!\w){word}\W?\s*\{{|^\W*{word}\s*\(|(?<!\w){word}\((?=\s*(?:\w+\s*[=:]|["'{{\[]))"""
                rf"""|</?{word}\b|>\s*{word}\s*<|>>>\s*{word}\b|\bfunctions\.{word}\b|\b(?:action|call|function|tool)\w*\s*:\W*{word}\b"""
            )
            if mark := re.search(pattern, text, re.MULTILINE | re.IGNORECASE):
                return mark
    return None
