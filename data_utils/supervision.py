"""The part of each token, and its weight in the loss. A token's weight is for its own prediction.

To train on other tokens, set --loss_mask or --loss_weights, or add a line to parts.LOSS_MASKS.
`eval/loss` follows. The evaluation's figures by part do not."""

import numpy as np

from data_utils.parts import CODES, COMPLETION, part_codes
from data_utils.tokens import MARKS, token_offsets
from run_utils.errors import UserError


def token_parts(tokenizer, prompt_format, prompt_length, completion, completion_ids):
    """The code in parts.PARTS of each token of a prompt, its completion and the end token, uint8
    [tokens].

    completion: the text of completion_ids. Raises ValueError with the reason if the parts are
    unknown: a slow tokenizer without offsets, a completion without its calls as JSON objects, or a
    text with other tokens alone than after its prompt."""
    text = MARKS.sub("", completion) if prompt_format.end_token else completion
    ids, offsets = token_offsets(tokenizer, text, prompt_format.end_token)
    if not np.array_equal(ids, completion_ids):
        raise ValueError(f"the tokens of {text[:60]!r} alone are others than after its prompt")
    try:
        codes = part_codes(text, prompt_format.parse(text), prompt_format.words(text))
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{text[:60]!r} does not show its calls as JSON objects") from None
    syntax = bytes([CODES["syntax"]])
    # Some tokenizers' offsets leave out a token's blanks, and all of a blank token.
    of_tokens = [max(codes[min(start, end - 1) : end] or syntax) for start, end in offsets]
    parts = np.array([CODES["prompt"]] * prompt_length + of_tokens + [CODES["end"]], dtype=np.uint8)
    parts[0] = CODES["prompt"]  # nothing predicts the first token
    return parts


def loss_weights(part_weights, prompt_length, num_tokens, find_parts):
    """The weights of a prompt, its completion and the end token, float32 [num_tokens].

    part_weights: `{part: weight}`. find_parts: `() -> token_parts(...)`, called only if the
    weights differ inside the completion. Raises UserError if the parts are unknown, or if no token
    has a weight."""
    weights = np.float32([*part_weights.values()])
    if len({part_weights[part] for part in COMPLETION[:-1]}) == 1:
        counts = [prompt_length, num_tokens - prompt_length - 1, 1]
        of_tokens = np.repeat(weights[[CODES["prompt"], CODES["syntax"], CODES["end"]]], counts)
    else:
        try:
            of_tokens = weights[find_parts()]
        except ValueError as error:
            raise UserError(
                f"--loss_mask and --loss_weights cannot tell the parts of a completion: {error}; --loss_mask "
                "completion_only and whole_sequence need no parts"
            ) from None
    of_tokens[0] = 0  # nothing predicts the first token
    if not of_tokens.any():
        raise UserError("--loss_mask and --loss_weights leave a row no token to train on: give end a weight")
    return of_tokens
