"""Lines of predictions.jsonl from a system's answers."""

import hashlib
import json

from data_utils.systems import SYSTEMS


def predict(name, system, rows, processes, made=""):
    """Yields predictions (dicts, lines of predictions.jsonl) in the order in which the rows finish.

    made: the rows' set, empty for the data set's own.
    A row's seconds are divided by the number of processes: the sum over rows is the elapsed time.
    """
    for index, answer in system.answer(rows):
        row = rows[index]
        prompt = system.prompt_format.prompt(row)
        answer = answer if SYSTEMS[name].server else answer._asdict()
        if SYSTEMS[name].grammar and answer["finish"] != "too_long":
            answer["gold_in_grammar"] = system.can_generate(row)
        yield {
            "id": row.id,
            "system": name,
            **({"set": made} if made else {}),
            "prompt_sha256": hashlib.sha256(prompt.encode()).hexdigest()[:16],
            **answer,
            "seconds": answer["seconds"] / processes,
            "gold": json.loads(row.answers),  # for people who read the file
        }
