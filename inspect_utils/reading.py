"""The rows of a training, read, split, made and tokenised by training's own functions."""

import functools
import math
from typing import NamedTuple

from data_utils.batching import tokenize_rows
from data_utils.chat_format import find_format
from data_utils.data_set_names import labels_of
from data_utils.dataset import Chosen, choose_rows, training_format
from data_utils.parts import part_weights
from data_utils.rows import MOST_REPEATS
from data_utils.sources import read_rows
from data_utils.training_rows import make_training_rows
from run_utils.errors import UserError, say


class Inspected(NamedTuple):
    """The rows of a training, as it would see them, and their tokens."""

    chosen: Chosen  # its parts: with the rows of training_rows.py
    untouched: list  # the training rows before training_rows.py
    made: dict  # {id: row}: the rows of training_rows.py
    lines: list  # texts: how many rows were made, and from which rows none could be
    # {data set: (number of valid rows, bad rows, summary) of valid_rows}. Among the repeats of
    # several data sets are those of an earlier one, "of_earlier".
    read: dict
    prompt_format: object  # a PromptFormat or a ChatFormat
    limit: int  # tokens: longer rows are left out
    tokens: list  # Tokenized of the training and the evaluation rows, of any length; [] without a tokenizer
    problems: list  # texts: train.py's reasons to refuse the rows

    @property
    def fitting(self):
        """The training and the evaluation examples within the limit."""
        return [[example for example in part.examples if len(example.input_ids) <= self.limit] for part in self.tokens]


def read_data(args, tokenizer, positions, generators):
    """args: train.py's. tokenizer: may be None, except with --prompt_format chat. positions: the
    model's number of positions. Raises UserError if the rows cannot be read."""
    read, contents = {}, {}
    names = args.dataset_name if isinstance(args.dataset_name, list) else []
    labels = dict(zip(names, labels_of(names), strict=True))

    def load(dataset_name, revision=None, *, config_name=None):
        rows, bad, summary = read_rows(dataset_name, revision, config_name=config_name, generators=generators)
        if label := labels.get(dataset_name):  # of several: load_data_sets leaves these rows out
            again = [[f"{label}: {row.id}", contents[row.fingerprint]] for row in rows if row.fingerprint in contents]
            count, first = summary["repeats"]
            summary |= {"repeats": [count + len(again), first + again[:MOST_REPEATS]], "of_earlier": len(again)}
            contents.update((row.fingerprint, f"{label}: {row.id}") for row in rows if row.fingerprint not in contents)
        read[dataset_name] = len(rows), bad, summary
        return rows, bad

    prompt_format = training_format(args, tokenizer) if tokenizer else find_format(args.prompt_format, None)
    chosen, limit = choose_rows(args, prompt_format, load), min(args.max_seq_length, positions)
    data = Inspected(chosen, chosen.parts[0], {}, [], read, prompt_format, limit, [], [])
    if tokenizer and (count := sum(map(len, chosen.parts))):
        say(f"Tokenising {count:,} rows ...")
        weights = part_weights(args.loss_mask, args.loss_weights)
        tokenize = functools.partial(tokenize_rows, tokenizer, prompt_format, weights=weights)
        data = data._replace(tokens=[tokenize(part, max_length=math.inf) for part in chosen.parts])
        if args.no_call_fraction or args.augment:
            data = with_made_rows(args, data, functools.partial(tokenize, max_length=limit))
    return data


def with_made_rows(args, data, tokenize):
    """The Inspected with the rows of --no_call_fraction and --augment. tokenize: see
    make_training_rows."""
    train, held_out = data.tokens
    long = {example.row_id: example for example in train.examples if len(example.input_ids) > data.limit}
    fitting = train._replace(
        examples=data.fitting[0], too_long={row_id: len(long[row_id].input_ids) for row_id in long}
    )
    rows = {row.id: row for row in data.untouched}
    trained = [row for row_id, row in rows.items() if row_id not in long]
    check = data.prompt_format.check if data.prompt_format.end_token else None
    try:
        tokens, made, lines = make_training_rows(
            args, trained, fitting, tokenize, check=check, held_out=data.chosen.evaluation
        )
    except UserError as error:
        return data._replace(problems=[str(error)])
    tokens = tokens._replace(examples=[*tokens.examples, *long.values()], too_long={})
    train_rows = [made.get(example.row_id) or rows[example.row_id] for example in tokens.examples]
    chosen = data.chosen._replace(parts=[train_rows, data.chosen.parts[1]])
    return data._replace(chosen=chosen, made=made, lines=lines, tokens=[tokens, held_out])
