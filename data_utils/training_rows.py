"""Rows made from training rows: added by --no_call_fraction, transformed in place by --augment.
Both happen once, before the first epoch, and depend on --seed and the training rows. All tools are
from training rows. No made row has the content of a held-out row."""

import hashlib
import itertools
import math
import random
from collections import Counter, defaultdict
from typing import NamedTuple

from data_utils.augment import MADE_BY, TRANSFORMATIONS, tool_pool, without_answer
from data_utils.batching import Tokenized
from data_utils.rows import counted, describe_bad_rows
from run_utils.errors import UserError


class TrainingRows(NamedTuple):
    tokenized: Tokenized  # with the examples of the made rows
    made: dict  # {id: row}: the made rows among them
    summary: list  # lines to print


def make_training_rows(args, rows, tokenized, tokenize, *, check=None, held_out=()):
    """The TrainingRows of train.py's arguments. Raises UserError if --no_call_fraction asks for
    too many rows.

    rows: the rows of `tokenized`, a Tokenized. tokenize: rows -> Tokenized. check: a function of a
    made row; it raises ValueError to refuse it. held_out: rows; none is made again."""
    contents = {row.fingerprint for row in held_out}
    maker = RowMaker(args.seed, rows, tokenized, tokenize, check=check, contents=contents)
    sources, summary = dict(maker.rows), []
    if share := args.no_call_fraction:
        count = round(len(sources) * share / (1 - share))
        made, others = maker.make("no_call", count, lambda row: [without_answer])
        if len(made) < count:
            possible = len(made) / (len(sources) + len(made))
            raise UserError(
                f"--no_call_fraction {share} needs {count} rows made from the {len(sources)} training rows, and "
                f"{len(made)} can be made ({others}): lower it to {math.floor(1000 * possible) / 1000}"
            )
        maker.rows |= made
        total = len(maker.rows)
        summary.append(
            f"Added {counted(count, 'row')} without the right tool, answer []: {count / total:.1%} of the {total} rows "
            f"to train on; tried and not made: {others}"
        )
    if args.augment:
        total = len(maker.rows)
        made, others = maker.make("augment", round(total * args.augment_fraction), drawn_transformations(args))
        in_place = {row_id.rpartition(MADE_BY)[0]: row for row_id, row in made.items()}
        maker.rows = {row.id: row for row in (in_place.get(row_id, row) for row_id, row in maker.rows.items())}
        kinds = Counter(row_id.rpartition(MADE_BY)[2] for row_id in made)
        counts = ", ".join(f"{name} {kinds[name]}" for name in args.augment)
        summary.append(f"Transformed {len(made)} of the {total} rows: {counts}; tried and not transformed: {others}")
    made = {row_id: row for row_id, row in maker.rows.items() if row_id not in sources}
    return TrainingRows(maker.tokenized(tokenized), made, summary)


def drawn_transformations(args):
    """A function of a row: the transformations of --augment in the order to try them, drawn by row.
    Each row gets one."""
    functions = [TRANSFORMATIONS[name] for name in args.augment]
    return lambda row: random.Random(f"{args.seed}:augment:{row.id}").sample(functions, len(functions))


class RowMaker:
    """Makes rows from the training rows and tokenises them."""

    def __init__(self, seed, rows, tokenized, tokenize, *, check, contents):
        self.examples = {example.row_id: example for example in tokenized.examples}
        self.rows = {row.id: row for row in rows if row.id in self.examples}
        self.pool = tool_pool(self.rows.values())
        self.lost, self.unknown = set(tokenized.lost_answers), set(tokenized.unknown_prompts)
        self.seed, self.tokenize, self.check, self.contents = seed, tokenize, check, contents

    def make(self, kind, count, transformations):
        """`{id: row}` of at most `count` made rows, none too long, and a text of the rows without a
        made one. Rows are tried in the order of their hash: a larger count has the rows of a
        smaller one. transformations: row -> functions of augment.py, tried in their order."""
        made, not_made = {}, defaultdict(list)
        candidates = self.candidates(kind, transformations, not_made)
        while new := list(itertools.islice(candidates, count - len(made))):
            part = self.tokenize(new)
            made |= {row.id: row for row in new if row.id not in part.too_long}
            for row_id in part.too_long:
                not_made["longer than --max_seq_length"].append(row_id)
            self.examples |= {example.row_id: example for example in part.examples}
            self.lost.update(part.lost_answers)
            self.unknown.update(part.unknown_prompts)
        return made, describe_bad_rows(not_made) or "none"

    def candidates(self, kind, transformations, not_made):
        for row in sorted(self.rows.values(), key=lambda row: self.hash_of(kind, row)):
            reasons = []
            for transformation in transformations(row):
                try:
                    made = transformation(row, self.seed, self.pool)
                    self.refuse(made)
                    yield made
                    break
                except ValueError as error:
                    reasons.append(str(error)[:300])
            else:
                not_made[reasons[0]].append(row.id)

    def refuse(self, made):
        """Raise ValueError for a row not to be trained on."""
        if made.id in self.rows:
            raise ValueError("another row has the id")
        if made.fingerprint in self.contents:
            raise ValueError("a held-out row has the content")
        if self.check:
            self.check(made)

    def hash_of(self, kind, row):
        return hashlib.sha256(f"{self.seed}:{kind}:{row.id}".encode()).digest()

    def tokenized(self, before):
        """The Tokenized of all rows. before: the one before any were made."""
        kept = self.rows.keys() | before.too_long.keys()
        return before._replace(
            examples=[self.examples[row_id] for row_id in self.rows],
            lost_answers=sorted(self.lost & kept),
            unknown_prompts=sorted(self.unknown & kept),
        )
