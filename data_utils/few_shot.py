"""The examples of the system `fewshot`: training rows with answers, before the row's prompt."""

import hashlib
import json
import statistics

from data_utils.prompt import format_hash
from data_utils.split import query_keys
from run_utils.errors import UserError


def choose_shots(rows, held_out, count, seed):
    """`count` of the training rows `rows` as examples, or fewer if fewer are suitable. They depend
    on the seed and on the rows, not on the rows' order.

    No example is longer than the median row (in characters), none is a near-repeat of a held-out
    row or of another example (see query_keys), and none is of a held-out row's conversation: a
    later turn's query has the answer. The first example has calls: an empty list
    alone would not show the format."""
    lengths = {row.id: len(row.query) + len(row.tools) + len(row.answers) for row in rows}
    longest = statistics.median(lengths.values()) if lengths else 0
    seen = set().union(*map(query_keys, held_out))
    openings = {row.opening for row in held_out} - {""}
    shots = []
    for row in sorted(rows, key=lambda row: hashlib.sha256(f"{seed}:{row.id}".encode()).digest()):
        if len(shots) == count:
            break
        if lengths[row.id] > longest or row.opening in openings or not (shots or json.loads(row.answers)):
            continue
        if seen.isdisjoint(keys := query_keys(row)):
            shots.append(row)
            seen |= keys
    return shots


def with_shots(prompt_format, shots):
    """The prompt format with examples before each prompt: the prompt, the completion and
    `example_end` of each. Raises UserError if a chat template cannot write an example."""
    try:
        examples = "".join("".join(prompt_format.texts(row)) + prompt_format.example_end for row in shots)
    except ValueError as error:
        raise UserError(f"an example of fewshot cannot be written: {error}") from None
    if prompt_format.end_token:
        return prompt_format._replace(examples=examples)
    return prompt_format._replace(render=lambda query, tools: examples + prompt_format.render(query, tools))


def shots_identity(prompt_format, shots):
    """The examples in an evaluation's identity: `{"shots": {...}}` with a hash of their text, or
    nothing without examples, as in older evaluations."""
    if not shots:
        return {}
    prompt_sha256 = format_hash(with_shots(prompt_format, shots))
    return {"shots": {"count": len(shots), "ids": [row.id for row in shots], "prompt_sha256": prompt_sha256}}
