"""The kinds of findings in rows, and the findings of one inspection.

To add a kind, add a line to KINDS and call `Findings.add` with its name."""

from collections import Counter, defaultdict
from typing import NamedTuple

MOST_ITEMS = 100  # of a finding, in the result
MOST_CHARACTERS = 300  # of an item's detail
SEVERITIES = ("error", "warning", "note")


class Kind(NamedTuple):
    severity: str  # of SEVERITIES
    title: str
    advice: str
    unit: str = "row"  # of the count


LEFT_OUT = "Left out"  # begins the titles of rows not trained on
CORRECT = "Correct the row's answers, or leave the row out."
CORRECT_RECORD = "The row is left out: correct it in the file."
KINDS = {
    # Rows left out of training
    "broken_json": Kind("error", "Left out: broken JSON", CORRECT_RECORD),
    "missing_field": Kind("error", "Left out: a missing field", CORRECT_RECORD),
    "empty_query": Kind("error", "Left out: an empty query", CORRECT_RECORD),
    "unknown_tool": Kind("error", "Left out: a call to a tool not on offer", CORRECT_RECORD),
    "repeated_tool_name": Kind("error", "Left out: two tools with one name", CORRECT_RECORD),
    "repeated_id": Kind("error", "Left out: the id of another row, with other content", CORRECT_RECORD),
    "broken_text": Kind("error", "Left out: half a surrogate pair", CORRECT_RECORD),
    "wrong_form": Kind("error", "Left out: fields, tools or calls of another form", CORRECT_RECORD),
    "refused_by_template": Kind(
        "error", "Left out: the chat template cannot write the row", "Take another --prompt_format or correct the row."
    ),
    "repeated_row": Kind("note", "Left out: the same content as an earlier row", "Nothing: training reads it once."),
    # Answers
    "missing_argument": Kind(
        "error", "A required argument is missing in a call", 'Correct the answer, or the schema: type "str, optional".'
    ),
    "wrong_type": Kind("error", "An argument of another type than its schema's", CORRECT),
    "not_in_enum": Kind("error", "An argument's value is not one of its schema's", CORRECT),
    "undeclared_argument": Kind("error", "An argument not declared by the tool", CORRECT),
    "other_misfit": Kind("error", "A call that does not fit its tool's schema", CORRECT),
    "conflicting_answers": Kind(
        "error", "The same query and tools as another row, with other answers", "Keep one of the two answers."
    ),
    "null_argument": Kind("warning", "A null in the arguments", "Leave the argument out, if null means absent."),
    "made_up_value": Kind(
        "warning",
        "A value in neither the query nor the tools",
        "Correct the value: it teaches the model to make values up.",
    ),
    "placeholder": Kind("warning", "A placeholder instead of a text or a value", "Fill it in, or leave the row out."),
    "repeated_call": Kind("note", "The same call twice in one answer", "Leave one out, unless it is meant."),
    "empty_argument": Kind("note", "An empty text as an argument", "Leave the argument out, if it means absent."),
    "blanks_around": Kind("note", "Blanks around an argument's text", "Take them off, unless they are meant."),
    # Texts
    "prompt_marks": Kind(
        "warning", "The prompt's own tags or special tokens in a row's text", "Remove them, if they are not meant."
    ),
    "odd_characters": Kind("warning", "Control, invisible or wrongly decoded characters", "Decode the source again."),
    "html": Kind("note", "HTML in a text", "Remove it, if the queries in use have none."),
    "query_without_words": Kind("warning", "A query without a letter or digit", "Leave the row out."),
    "answer_in_query": Kind("warning", "The answer is in the query, word for word", "Take it out of the query."),
    "no_id": Kind("note", "A row without an id, named by its content's hash", "Give each row an id."),
    # Tools
    "several_schemas": Kind(
        "warning", "A tool with other arguments in other rows", "Give each version its own name, if it is not meant.",
        "tool",
    ),
    "unknown_type": Kind("warning", "An argument of an unknown type: any value fits", "Correct the type.", "tool"),
    "wrong_default": Kind("note", "A default that does not fit its own argument", "Correct the default.", "tool"),
    "no_description": Kind("note", "A tool without a description", "Describe it: the model has only its name.", "tool"),
    "argument_without_description": Kind("note", "Arguments without a description", "Describe them.", "tool"),
    # Tokens
    "answer_changed": Kind(
        "error", "The supervised tokens decode to another text than the answer", "Take a base whose tokenizer has it."
    ),
    "unknown_token": Kind("warning", "A text unknown to the tokenizer", "Take another base, or another text."),
    "too_long": Kind("warning", "Left out: longer than --max_seq_length", "Raise --max_seq_length: see the lengths."),
    # The whole
    "few_rows_without_calls": Kind(
        "warning",
        "Hardly any training row without a call",
        "The model forgets when not to call: add rows for which no tool fits.",
    ),
    "one_tool_each": Kind("warning", "Nearly all rows offer a single tool", "The model never chooses: offer more."),
    "first_tool_right": Kind("warning", "The right tool is nearly always the first", "Shuffle the tools."),
    "evaluation_near_repeat": Kind(
        "warning",
        "An evaluation query nearly equal to a training query",
        "evaluate.py shows exact match without them too; --eval_split tools holds out whole tools.",
    ),
    "near_repeat": Kind("note", "A query nearly equal to another training query", "Nothing, if the variety is enough."),
}  # fmt: skip

# The beginning of a bad row's reason: the name of its kind. Other reasons are wrong_form.
REASONS = {
    "broken JSON": "broken_json", "missing field": "missing_field", "an empty query": "empty_query",
    "a call to a tool": "unknown_tool", "the id of another row": "repeated_id", "half a surrogate": "broken_text",
    "broken text": "broken_text", "a row of no known layout": "missing_field",
}  # fmt: skip


class Findings:
    """Findings by kind: how many, and the first MOST_ITEMS."""

    def __init__(self):
        self.counts, self.items = Counter(), defaultdict(list)

    def add(self, name, row_id, detail):
        self.counts[name] += 1
        if len(self.items[name]) < MOST_ITEMS:
            text = detail if len(detail) <= MOST_CHARACTERS else detail[:MOST_CHARACTERS] + " ..."
            self.items[name].append({"id": row_id, "detail": text})

    def count(self, name, count):
        """Set the number of findings of a kind without items."""
        self.counts[name] = count
        self.items[name] = []

    def as_list(self):
        """The findings as JSON values: by severity, then by count."""
        order = sorted(self.items, key=lambda name: (SEVERITIES.index(KINDS[name].severity), -self.counts[name]))
        return [
            {"name": name, **KINDS[name]._asdict(), "count": self.counts[name], "items": self.items[name]}
            for name in order
        ]


def kind_of_reason(reason):
    """The kind of a bad row, by the text of its reason."""
    if "two tools have the same name" in reason:
        return "repeated_tool_name"
    return next((kind for start, kind in REASONS.items() if reason.startswith(start)), "wrong_form")
