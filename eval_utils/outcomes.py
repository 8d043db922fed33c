"""The outcome of a row: the first that applies to the answer, its gold and the tools on offer."""

from collections import Counter

from data_utils.chat_turns import KINDS, kind_of_turn
from data_utils.tool_calls import END_TAG, json_equal
from data_utils.tool_schema import conforms

# In order of precedence: name -> meaning.
OUTCOMES = {
    "right": "equals gold",
    "prompt too long": "the model's context has no room for the prompt",
    "cut off": "the token budget ended inside the answer's JSON, or inside a chat's turn",
    "unparseable": "no strict JSON: prose, a fence, a broken value, or text after the value",
    "wrong shape": "JSON, but not a list of calls",
    "over-call": "calls tools, gold calls none",
    "missed call": "an empty list, gold calls tools",
    "unknown tool": "calls a tool that is not on offer",
    "missing call": "fewer calls than gold",
    "extra call": "more calls than gold",
    "wrong tool": "as many calls, to other tools",
    "unknown argument": "an argument that the tool does not declare",
    "missing argument": "an argument of gold's is missing",
    "extra argument": "a declared argument that gold does not give",
    "wrong type": "a value that differs from gold's, of a type that the tool does not accept",
    "wrong value": "a value that differs from gold's",
    "order only": "gold's calls in another order",
}


def outcome(output):
    """The name of an Output's outcome."""
    gold, calls = output.gold, output.calls
    if json_equal(output.value, gold):
        return "right"
    if output.finish == "too_long":
        return "prompt too long"
    if not output.parsed:
        is_open = output.prompt_format.end_token or still_open(output.text)  # a turn needs its end token
        return "cut off" if output.finish == "length" and is_open else "unparseable"
    if calls is None:
        return "wrong shape"
    if calls and not gold:
        return "over-call"
    if gold and not calls:
        return "missed call"
    if any(call["name"] not in output.schemas for call in calls):
        return "unknown tool"
    if len(calls) != len(gold):
        return "missing call" if len(calls) < len(gold) else "extra call"
    if names(calls) != names(gold):
        return "wrong tool"
    return argument_outcome(output)


def still_open(text):
    """Whether the list or object at the start of a text is still open at its end."""
    stack, in_string, escaped = [], False, False
    for character in text.lstrip():
        if in_string:
            in_string = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character in "[{":
            stack.append("]" if character == "[" else "}")
        elif character in "]}" and (not stack or stack.pop() != character):
            return False
        elif character == '"':
            in_string = True
        if not stack:
            return False
    return bool(stack)


def argument_outcome(output):
    faults = set()
    for call, wanted in output.pairs:
        given, gold = call["arguments"], wanted["arguments"]
        declared = output.schemas[call["name"]]["properties"]
        faults |= {"unknown argument" for name in given if name not in declared and name not in gold}
        faults |= {"missing argument" for name in gold if name not in given}
        faults |= {"extra argument" for name in given if name in declared and name not in gold}
        for name in given.keys() & gold.keys():
            if not json_equal(given[name], gold[name]):
                faults.add("wrong value" if conforms(given[name], declared.get(name, {})) else "wrong type")
    return next((name for name in OUTCOMES if name in faults), "order only")


def names(calls):
    return Counter(call["name"] for call in calls)


def kind_of_answer(output):
    """Whether the output "calls" tools, "abstains" (a valid empty list) or is "broken". A broken
    output is never an abstention."""
    if output.calls is None:
        return "broken"
    return "calls" if output.calls else "abstains"


def call_table(outputs):
    """`{"gold_calls": {"calls": n, "abstains": n, "broken": n}, "gold_none": {...}}`."""
    table = {side: {"calls": 0, "abstains": 0, "broken": 0} for side in ("gold_calls", "gold_none")}
    for output in outputs:
        table["gold_calls" if output.gold else "gold_none"][kind_of_answer(output)] += 1
    return table


def kinds_of_turn(output):
    """The kinds (chat_turns.KINDS) of gold's turn and of the output's. None: neither calls nor
    words, such as a broken or an empty turn, or an answer in another format than chat."""
    gold = kind_of_turn(output.gold, output.task.row.words)
    return gold, kind_of_turn(output.calls, output.words)


def turn_match(output):
    """In a chat: the turn calls, answers or asks as gold's does. Words are not compared."""
    gold, kind = kinds_of_turn(output)
    return kind == gold if gold and output.prompt_format.end_token else None


def turn_table(outputs):
    """`{gold's kind: {"called", "answered", "asked", "neither": n}}` of the rows whose gold has
    calls or words. Empty unless the format is chat and a row's gold is words."""
    kinds = [kinds_of_turn(output) for output in outputs if output.prompt_format.end_token]
    if not {"answered", "asked"} & {gold for gold, _ in kinds}:
        return {}
    counts = Counter((gold, kind or "neither") for gold, kind in kinds)
    return {gold: {kind: counts[gold, kind] for kind in (*KINDS, "neither")} for gold in KINDS}


def what_followed(output):
    """The kind of text after the value at the start: "end" (none), "closing tag", "fence", "another
    value" or "prose". "no value" if the text does not start with a value."""
    if output.opening is None:
        return "no value"
    rest = output.text[output.opening[1] :].strip()
    starts = {END_TAG: "closing tag", "```": "fence", "[": "another value", "{": "another value"}
    return next((name for start, name in starts.items() if rest.startswith(start)), "prose") if rest else "end"
