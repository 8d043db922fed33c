"""Rows made by an evaluation from its held-out rows: with the right tool off the list (`no_call`),
and perturbed. Each kind is a set, beside the data set's own rows."""

import hashlib

from data_utils.augment import MADE_BY, TRANSFORMATIONS, tool_pool, transform_rows, without_answer
from data_utils.rows import counted, describe_bad_rows
from data_utils.split import split_seed

NO_CALL = "no_call"
# The sets in words.
SETS = {
    "": "the data set's own",
    NO_CALL: "the right tool off the list",
    "rename": "tools and arguments renamed",
    "shuffle": "tools in another order",
    "distract": "tools of other rows added",
    "drop_descriptions": "descriptions dropped",
}
HASH_OF_SET = "rows_sha256+"  # and a set's name: the key of its rows in an evaluation's identity
MOST_NO_CALL = 200  # without --no_call_examples


def make_sets(args, rows, held_out):
    """The sets of evaluate.py's arguments, as `{set: [Row]}` without empty sets, and lines about
    rows not made.

    rows: the evaluation's; no_call takes the first possible ones. held_out: all held-out rows. The
    added tools are theirs, so --num_examples changes no row."""
    most = min(len(rows) // 5, MOST_NO_CALL) if args.no_call_examples is None else args.no_call_examples
    wanted = {NO_CALL: without_answer} if most else {}
    wanted |= {name: TRANSFORMATIONS[name] for name in args.perturb or ()}
    pool, ids = tool_pool(held_out) if wanted else [], {row.id for row in rows}
    sets, lines = {}, []
    for name, transformation in wanted.items():
        made, left_out = transform_rows(rows, transformation, split_seed(args), pool)
        sets[name] = [row for row in made if row.id not in ids][: most if name == NO_CALL else None]
        if left_out and (name != NO_CALL or len(sets[name]) < (args.no_call_examples or 0)):
            lines.append(f"{name}: {counted(len(sets[name]), 'row')}; not made: {describe_bad_rows(left_out)}")
    return {name: made for name, made in sets.items() if made}, lines


def original_id(row_id, name):
    """The id of the data set's own row behind a row of the set `name`."""
    return row_id.removesuffix(MADE_BY + name)


def sets_identity(sets):
    """The sets in an evaluation's identity, one key each, or nothing without sets, as in older
    evaluations."""
    texts = {name: repr([(r.id, r.query, r.tools, r.answers, r.messages) for r in rows]) for name, rows in sets.items()}
    return {HASH_OF_SET + name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
