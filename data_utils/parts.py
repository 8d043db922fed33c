"""The parts of an example, and their weights in the loss. No torch, no transformers.

    [{"name": "weather", "arguments": {"city": "Rome"}}]
             names                    arguments values

All else of a completion is syntax, or the words of a turn in words (chat). Quotes belong to their
string. Inside a value all is value, inner keys too."""

import json
import math
import re

from run_utils.errors import require

# A token with characters of several parts is of the last one here: `"}}]` closes a value.
PARTS = ("prompt", "syntax", "words", "arguments", "names", "values", "end")
CODES = {part: code for code, part in enumerate(PARTS)}
COMPLETION = PARTS[1:]
# The weight of a part's tokens in the loss, 0 for the others. A model learns to stop from "end".
LOSS_MASKS = {
    "completion_only": dict.fromkeys(COMPLETION, 1.0),
    "whole_sequence": dict.fromkeys(PARTS, 1.0),
    "values_only": {"values": 1.0, "end": 1.0},
    "names_only": {"names": 1.0, "end": 1.0},
}

_decode = json.JSONDecoder().raw_decode
_GAP = re.compile(r"[\s,:]*")  # between the parts of an object


def part_weights(loss_mask="completion_only", changes=None):
    """`{part: weight}` of train.py's --loss_mask and --loss_weights, texts such as `names=2`.
    Raises UsageError."""
    weights = dict.fromkeys(PARTS, 0.0) | LOSS_MASKS[loss_mask]
    for change in changes or ():
        part, _, number = change.partition("=")
        require(part in PARTS, f"--loss_weights has parts such as names=2, of {', '.join(PARTS)}, not {change!r}")
        try:
            weights[part] = float(number)
        except ValueError:
            weights[part] = math.nan
        require(0 <= weights[part] < math.inf, f"--loss_weights {part} must be a number of at least 0, not {number!r}")
    require(any(weights.values()), "--loss_weights leaves no token to train on: all weights are 0")
    return weights


def part_codes(completion, calls, words=""):
    """The code of each character's part, a bytearray. calls: `{"name", "arguments"}` in the order
    of the text, in which each is a JSON object. words: a piece of the text. Raises ValueError if a
    call is not found."""
    codes = bytearray([CODES["syntax"]]) * len(completion)

    def fill(part, start, end):
        codes[start:end] = bytes([CODES[part]]) * (end - start)

    if words:
        start = completion.index(words)
        fill("words", start, start + len(words))
    for start in call_starts(completion, calls):
        for key, _, *span in members(completion, start):
            if key == "name":
                fill("names", *span)
            elif key in ("arguments", "parameters"):
                for _, key_span, *value_span in members(completion, span[0]):
                    fill("arguments", *key_span)
                    fill("values", *value_span)
    return codes


def call_starts(text, calls):
    """The first character of each call's object. Raises ValueError."""
    place = 0
    for call in calls:
        value = None
        while value not in [{"name": call["name"], key: call["arguments"]} for key in ("arguments", "parameters")]:
            place = text.index("{", place)
            try:
                value, end = _decode(text, place)
            except ValueError:  # a brace in words
                value = None
            start, place = place, place + 1
        yield start
        place = end


def members(text, start):
    """The members of the JSON object that begins at `start`, as (key, (the key's first character,
    one past its last), the value's first character, one past its last)."""
    place = _GAP.match(text, start + 1).end()
    while text[place] != "}":
        key, key_end = _decode(text, place)
        key_span = place, key_end
        place = _GAP.match(text, key_end).end()
        end = _decode(text, place)[1]
        yield key, key_span, place, end
        place = _GAP.match(text, end).end()
