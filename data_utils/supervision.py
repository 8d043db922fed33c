"""Loss masks: the weight of each token in the loss. A token's weight is for its own prediction.

To train on other tokens, set LOSS_MASK to another name of LOSS_MASKS, or add a function to the
table. `eval/loss` follows. All masks here keep the end-of-sequence token: a model learns to stop,
and no row is without supervision."""

import json
import re

import numpy as np

from data_utils.tokens import token_offsets
from data_utils.tool_calls import check_calls, parse_json
from run_utils.errors import UserError

_decode = json.JSONDecoder().raw_decode
_GAP = re.compile(r"[\s,:]*")  # between the parts of an object or a list


def completion_only(tokenizer, prompt_ids, completion, completion_ids):
    """The completion and the end-of-sequence token."""
    return np.repeat(np.float32([0, 1]), [len(prompt_ids), len(completion_ids) + 1])


def whole_sequence(tokenizer, prompt_ids, completion, completion_ids):
    """The prompt, the completion and the end-of-sequence token."""
    return np.ones(len(prompt_ids) + len(completion_ids) + 1, dtype=np.float32)


def values_only(tokenizer, prompt_ids, completion, completion_ids):
    """The argument values, with quotes, brackets and inner keys, and the end-of-sequence token."""
    spans = [span for start, _ in call_spans(completion, "arguments") for _, *span in members(completion, start)]
    return weights_of_spans(tokenizer, prompt_ids, completion, spans)


def names_only(tokenizer, prompt_ids, completion, completion_ids):
    """The tool names, with their quotes, and the end-of-sequence token."""
    return weights_of_spans(tokenizer, prompt_ids, completion, call_spans(completion, "name"))


LOSS_MASKS = {
    "completion_only": completion_only,
    "whole_sequence": whole_sequence,
    "values_only": values_only,
    "names_only": names_only,
}
LOSS_MASK = "completion_only"


def loss_weights(tokenizer, prompt_ids, completion, completion_ids, loss_mask):
    """The weights of a prompt, its completion and the end-of-sequence token, float32 [tokens].

    completion: the text of completion_ids. loss_mask: a name of LOSS_MASKS. Raises UserError if
    values_only or names_only gets a slow tokenizer, or a completion that is not a JSON list of
    calls, or if a mask has no weight for each token, or none above 0."""
    weights = LOSS_MASKS[loss_mask](tokenizer, prompt_ids, completion, completion_ids)
    num_tokens = len(prompt_ids) + len(completion_ids) + 1
    if len(weights) != num_tokens:
        raise UserError(f"the loss mask {loss_mask} has {len(weights)} weights for {num_tokens} tokens")
    weights[0] = 0  # nothing predicts the first token
    if not (weights.min() >= 0 < weights.max()):  # false for NaN too
        raise UserError(
            f"the loss mask {loss_mask} has a negative weight, or no token to train on: {completion[:60]!r}"
        )
    return weights


def weights_of_spans(tokenizer, prompt_ids, completion, spans):
    """1 for the end-of-sequence token, and for each token of the completion with a character in a
    span.

    A token may also have characters outside its span: `"}}]` closes a string, its call and the
    list."""
    offsets = token_offsets(tokenizer, completion)
    inside = [any(start < last and first < end for first, last in spans) for start, end in offsets]
    return np.array([False] * len(prompt_ids) + inside + [True], dtype=np.float32)


def call_spans(completion, part):
    """The first character, and one past the last, of each call's "name" or "arguments" in a
    completion."""
    try:
        check_calls(parse_json(completion))
    except ValueError as error:
        raise UserError(
            f"LOSS_MASK in data_utils/supervision.py needs completions that are JSON lists of calls, not "
            f"{completion[:60]!r} ({error}): set it to completion_only"
        ) from None
    calls = members(completion, completion.index("["))
    return [span for _, start, _ in calls for key, *span in members(completion, start) if key == part]


def members(text, start):
    """The values of the JSON object or list that begins at `start`, as (key, first character, one
    past the last). The keys of a list are None."""
    place = _GAP.match(text, start + 1).end()
    while text[place] not in "]}":
        key = None
        if text[start] == "{":
            key, place = _decode(text, place)
            place = _GAP.match(text, place).end()
        end = _decode(text, place)[1]
        yield key, place, end
        place = _GAP.match(text, end).end()
