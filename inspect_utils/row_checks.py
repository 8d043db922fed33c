"""Checks of one row: its calls against its tools, its values against its texts, and its texts.

To add a check, yield its findings in `row_faults` and add its kind to findings.KINDS."""

import json
import re
from pathlib import Path

import numpy as np

from data_utils import cache
from data_utils.misfits import fit
from data_utils.prompt import to_json
from data_utils.tokens import special_tokens
from data_utils.tool_calls import END_TAG
from data_utils.tool_schema import misfits
from eval_utils import grounding
from eval_utils.grounding import Sources, leaf_values
from run_utils.terminal import progress

# Keywords of JSON Schema: the kind of a misfit.
MISFITS = {
    "required": "missing_argument", "type": "wrong_type", "enum": "not_in_enum", "const": "not_in_enum",
    "additionalProperties": "undeclared_argument",
}  # fmt: skip
HTML = re.compile(
    r"</?(?:a|b|body|br|button|code|div|em|font|form|h[1-6]|head|hr|html|i|iframe|img|input|label|li|link|meta|nav|ol"
    r"|option|p|pre|script|section|select|small|span|strong|style|sub|sup|svg|table|tbody|td|th|thead|title|tr|u|ul"
    r"|video)(?:\s[^<>]*)?/?>|&(?:amp|lt|gt|quot|apos|nbsp|copy|#\d{1,6}|#x[0-9a-f]{1,5});",
    re.IGNORECASE,
)
PLACEHOLDER = re.compile(
    r"\b(?:TODO|TBD|FIXME|XXX+)\b|\bYOUR_\w+|(?i:lorem ipsum|\b(?:your|insert)[ _-]\w+[ _-]here\b|\bplaceholder\b"
    r"|<(?:your|insert|enter)\b[^<>]*>|\[(?:your|insert|enter)\b[^\[\]]*\]|\{\{[^{}]*\}\})"
)
# Texts in place of a missing value, unless the query has them.
NO_VALUES = frozenset("n/a|na|none|null|nan|undefined|unknown|string|str|value|example|???|...|xxx|-".split("|"))
# Controls (in JSON as escapes), invisible characters, changes of direction, and UTF-8 read as
# Windows-1252.
ODD = re.compile(
    r"[\ufffd\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u2060\ufeff\u202a-\u202e\u2066-\u2069]"
    r"|(?<!\\)\\u00[01][0-9a-f]|Ã[\u0080-\u00bf]|â€[\u0090-\u024f\u2018-\u2122]|Â[\u00a0-\u00bf]"
)
AROUND = 25  # characters shown on each side of a match


def prompt_marks(prompt_format, tokenizer):
    """A pattern of the texts with a meaning in the prompts: tags, and the tokenizer's special
    tokens. tokenizer: may be None."""
    tags = set(re.findall(r"</?\w+>", prompt_format.sample()))
    if tags and not prompt_format.end_token:
        tags |= {tag.replace("<", "</") for tag in tags if "/" not in tag} | {END_TAG}
    patterns = list(map(re.escape, sorted(tags)))
    if tokenizer and special_tokens(tokenizer).pattern:
        patterns.append(special_tokens(tokenizer).pattern)
    return re.compile("|".join(patterns) or r"(?!)")


def faults_of(rows, marks):
    """Yields each Row with its parsed tools and calls and the list of its faults. The faults in
    many rows are found once and then read from the cache."""
    file = cache.file_of("faults", ingredients(rows, marks)) if len(rows) >= cache.FROM_ROWS else None
    stored = cache.load(file) if file else None
    known = json.loads(stored["faults"].tobytes()) if stored else {}
    for place, row in enumerate(progress(rows, "Checking the rows")):
        tools, calls = json.loads(row.tools), json.loads(row.answers)
        faults = known.get(str(place), []) if stored else list(row_faults(row, tools, calls, marks))
        if faults and not stored:
            known[str(place)] = faults
        yield row, tools, calls, faults
    if file and not stored:
        cache.save(file, {"faults": np.frombuffer(json.dumps(known).encode(), dtype=np.uint8)})


def ingredients(rows, marks):
    """The ingredients of the rows' faults, as bytes: texts and code."""
    yield marks.pattern.encode()
    for folder in (Path(__file__).parent, Path(grounding.__file__).parent):
        yield from (path.read_bytes() for path in sorted(folder.glob("*.py")))
    yield from (text.encode() for row in rows for text in row)


def row_faults(row, tools, calls, marks):
    """Yields `(kind, detail)` of the faults in one Row. tools, calls: its parsed lists. marks: see
    prompt_marks."""
    if not fit(calls, tools):
        for keyword, sentence in misfits(calls, tools):
            yield MISFITS.get(keyword, "other_misfit"), sentence
    texts = {"query": row.query, "tools": row.tools, "answers": row.answers}
    for field, text in texts.items():
        for kind, pattern in ("prompt_marks", marks), ("html", HTML):
            yield from ((kind, f"{field}: {shown}") for shown in first_match(pattern, text))
        yield from (("odd_characters", f"{field}: {shown!a}") for shown in first_match(ODD, text))
    yield from (("placeholder", f"query: {shown}") for shown in first_match(PLACEHOLDER, row.query))
    if row.id == row.fingerprint:
        yield "no_id", f"query: {row.query[:80]}"
    if not any(map(str.isalnum, row.query)):
        yield "query_without_words", f"query: {row.query!r}"
    if calls and (row.answers in row.query or to_json(calls[0]) in row.query):
        yield "answer_in_query", f"query: {row.answers}"
    if len(calls) > 1:
        rendered = list(map(to_json, calls))
        yield from (("repeated_call", text) for text in dict.fromkeys(rendered) if rendered.count(text) > 1)
    yield from value_faults(row.query, tools, calls)


def value_faults(query, tools, calls):
    """Yields `(kind, detail)` of the faults in the arguments' values."""
    sources = None  # made for the first value
    for call in calls:
        for name, value in call["arguments"].items():
            where = f"{call['name']}.{name}"
            if value is None or (isinstance(value, list | dict) and "null" in to_json(value) and has_null(value)):
                yield "null_argument", f"{where}: {to_json(value)}"
            elif value == "":
                yield "empty_argument", f"{where}: {to_json(value)}"
            for leaf in leaf_values(value):
                shown = f"{where}: {to_json(leaf)}"
                if isinstance(leaf, str):
                    yield from text_faults(leaf, shown)
                    if leaf.strip().casefold() in NO_VALUES and leaf.casefold() not in query.casefold():
                        yield "placeholder", shown
                sources = sources or Sources(query, tools)
                if not sources.is_grounded(leaf):
                    yield "made_up_value", shown


def text_faults(value, shown):
    if PLACEHOLDER.search(value):
        yield "placeholder", shown
    if value != value.strip():
        yield "blanks_around", shown


def has_null(value):
    """Whether a list or object has a null in it, at any depth."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return value is None or any(map(has_null, inner))


def first_match(pattern, text):
    """Yields the first match in a text with its surroundings, if there is one."""
    if found := pattern.search(text):
        start, end = max(0, found.start() - AROUND), min(len(text), found.end() + AROUND)
        yield "... " * (start > 0) + text[start:end] + " ..." * (end < len(text))
