"""On which side of the split a row is, and the held-out rows found again by their content."""

import hashlib
from collections import defaultdict


def split_rows(rows, eval_fraction, seed, by="random"):
    """Training rows, evaluation rows, and rows in neither. A function of the seed and the rows alone, not their order.

    A row that repeats a held-out row's query, tools and answers under another id is in neither.
    `random`: the `round(eval_fraction * n)` rows whose hash of (seed, id) is smallest. `tools`: no tool of an
    evaluation row occurs in a training row. Tools are held out in the order of their hash until enough rows use held-out
    tools alone; rows that use both kinds are left out.
    """

    def order(name):
        return hashlib.sha256(f"{seed}:{name}".encode()).digest()

    ordered = sorted(rows, key=lambda row: order(row.conversation or row.id))
    wanted = round(eval_fraction * len(rows))
    while (
        0 < wanted < len(ordered)
        and ordered[wanted].conversation
        and same_conversation(*ordered[wanted - 1 : wanted + 1])
    ):
        wanted += 1  # all turns of one conversation on one side
    if by == "random":
        return without_repeats(ordered, ordered[wanted:], ordered[:wanted])

    tools = {row.id: row.tool_names() for row in ordered}
    open_tools = {row.id: len(tools[row.id]) for row in ordered}  # how many of a row's tools are not held out
    users = defaultdict(list)
    for row in ordered:
        for tool in tools[row.id]:
            users[tool].append(row.id)
    held_out, inside = set(), 0
    for tool in sorted(users, key=order):
        if inside >= wanted:
            break
        held_out.add(tool)
        for user in users[tool]:
            open_tools[user] -= 1
            inside += open_tools[user] == 0
    eval_rows = [row for row in ordered if tools[row.id] and open_tools[row.id] == 0][:wanted]
    train_rows = [row for row in ordered if not tools[row.id] & held_out]
    return without_repeats(ordered, train_rows, eval_rows)


def same_conversation(row, other):
    return row.conversation == other.conversation


def set_apart(rows, eval_rows, seed):
    """Like split_rows where the rows to evaluate come from another place: training rows, evaluation rows, both in the order of
    their hash, and rows in neither, which repeat one to evaluate."""

    def ordered(rows):
        return sorted(rows, key=lambda row: hashlib.sha256(f"{seed}:{row.id}".encode()).digest())

    held_out = {row.fingerprint for row in eval_rows}
    train_rows = [row for row in ordered(rows) if row.fingerprint not in held_out]
    return train_rows, ordered(eval_rows), [row for row in rows if row.fingerprint in held_out]


def without_repeats(ordered, train_rows, eval_rows):
    held_out = {row.fingerprint for row in eval_rows}
    train_rows = [row for row in train_rows if row.fingerprint not in held_out]
    kept = {row.id for row in eval_rows} | {row.id for row in train_rows}
    return train_rows, eval_rows, [row for row in ordered if row.id not in kept]


def find_held_out(rows, split):
    """The rows that a training held out, by content, in the order in which it did, and the ids of those that are gone.

    split: what train.py saves as split.json, `{"trained": {id: fingerprint}, "held_out": {id: fingerprint}}`.
    """
    by_content = defaultdict(list)
    for row in rows:
        by_content[row.fingerprint].append(row)
    contents = set(by_content)
    found, gone = [], []
    for row_id, fingerprint in split["held_out"].items():
        same = by_content[fingerprint]
        if same:  # of several, the one of the same id where there is one
            found.append(same.pop(next((i for i, row in enumerate(same) if row.id == row_id), 0)))
        elif fingerprint not in contents:  # else it was there several times, and is now fewer times
            gone.append(row_id)
    return found, gone
