"""From the name of a data set to a run's optimizer steps: rows, split, tokens, order. No model
code."""

import functools
import math
from collections import defaultdict
from typing import NamedTuple

from data_utils import cache
from data_utils.batching import TrainingData, mark_supervised, tokenize_rows
from data_utils.chat_format import find_format
from data_utils.data_set_names import labels_of
from data_utils.held_out import read_split, trained_contents
from data_utils.mixture import describe_shares, load_data_sets, take_shares
from data_utils.parts import part_weights
from data_utils.prompt import check_format
from data_utils.rows import describe_bad_rows, shorten
from data_utils.sources import load_rows
from data_utils.split import near_repeats, set_apart, split_rows, split_seed
from data_utils.tokens import decode_answer, encode
from data_utils.training_rows import make_training_rows
from run_utils.errors import UserError, say

MOST_SHOWN = 700  # characters of the example row's prompt: its first and last lines
MAX_LOST_ANSWERS = 0.01  # share of all answers; a larger one stops the run


class Data(NamedTuple):
    train: TrainingData
    eval_examples: list
    eval_rows: list  # with rows too long for training: calls can be generated for them
    dropped: dict  # {reason: [ids]}
    # {"trained", "held_out": {id: fingerprint}, "near_repeats": result of near_repeats}. With
    # training_rows.py, "made" too; "trained" then has the rows behind them. With --init_adapter,
    # "trained_before": the fingerprints of its training rows
    split: dict
    summary: list  # lines to print
    example: str  # the first training row's text, in a few lines
    prompt_format: object  # a PromptFormat or a ChatFormat

    @property
    def examples(self):
        return self.train.examples + self.eval_examples

    @property
    def prompt_ids(self):
        return [example.input_ids[: example.prompt_length] for example in self.eval_examples or self.train.examples]


def prepare_data(args, tokenizer, positions, process, *, report=None, generators=None):
    """Load the rows, split them, tokenise them and put them in order.

    args: train.py's. positions: the model's number of positions. process: an Accelerator, or any
    object with `num_processes`, `process_index` and `main_process_first`. report: a file for the
    names of all bad rows if there are too many. generators: see load_rows. Raises UserError."""
    prompt_format = training_format(args, tokenizer)
    is_chat = prompt_format.end_token is not None
    load = functools.partial(load_rows, max_bad_rows=args.max_bad_rows, report=report, generators=generators)
    chosen = choose_rows(args, prompt_format, load)
    rows, train_rows, eval_rows, in_neither, parts, dropped, refused, sources = chosen
    summary = []
    if dropped:
        count = sum(map(len, dropped.values()))
        summary.append(f"Dropped {count} of {len(rows) + count} rows: {describe_bad_rows(dropped)}")
    if refused:
        count = sum(map(len, refused.values()))
        summary.append(f"Left out {count} rows, which the chat template cannot write: {describe_bad_rows(refused)}")

    # Tokens
    max_length = min(args.max_seq_length, positions)
    weights = part_weights(args.loss_mask, args.loss_weights)
    tokenize = functools.partial(tokenize_rows, tokenizer, prompt_format, max_length=max_length, weights=weights)
    if len(rows) >= cache.FROM_ROWS:
        say(f"Tokenising {len(rows):,} rows ...")
    with process.main_process_first():  # the others read main's token cache
        train, held_out = tokenize(parts[0]), tokenize(parts[1], with_parts=True)
    dropped |= refused
    dropped[f"longer than {max_length} tokens"] = [*train.too_long, *held_out.too_long]
    reason = "the row offers both held-out and other tools, or repeats a held-out row, or is of its conversation"
    dropped[f"in neither split: {reason}"] = [row.id for row in in_neither]
    if not train.examples:
        raise UserError(
            f"no training rows left of {len(rows)}: --eval_fraction {args.eval_fraction} holds out {len(eval_rows)}, "
            f"{len(in_neither)} are in neither split, {len(train.too_long)} are longer than {max_length} tokens, the "
            f"least of --max_seq_length {args.max_seq_length} and the model's {positions} positions"
        )
    needed_by = {"--final_adapter best": args.final_adapter == "best"}
    needed_by |= {"--early_stopping_patience": args.early_stopping_patience is not None}
    for flag, is_set in needed_by.items():
        if is_set and not held_out.examples:
            raise UserError(f"{flag} needs rows to evaluate: raise --eval_fraction")
    counts = [
        f"{len(part.examples)} of {len(side)}" if len(taken) < len(side) else len(part.examples)
        for part, taken, side in zip((train, held_out), parts, (train_rows, eval_rows), strict=True)
    ]
    summary.append(
        f"{len(rows)} valid rows: {counts[0]} to train on, {counts[1]} to evaluate, "
        f"{len(train.too_long)} + {len(held_out.too_long)} longer than {max_length} tokens, "
        f"{len(in_neither)} in neither split"
    )
    examples, too_long = train.examples + held_out.examples, train.too_long | held_out.too_long
    summary += describe_too_long(examples, too_long, max_length, positions)
    if unknown := held_out.unknown_parts:
        row_id, reason = next(iter(unknown.items()))
        summary.append(
            f"The evaluation's loss by part leaves out {len(unknown)} of {len(held_out.examples)} rows: {reason} "
            f"(row {row_id})"
        )
    rows_by_id = {row.id: row for row in train_rows}
    trained = [rows_by_id[example.row_id] for example in train.examples]
    split = {
        "trained": {row.id: row.fingerprint for row in trained},
        "held_out": {row.id: row.fingerprint for row in eval_rows},
        "near_repeats": near_repeats(trained, eval_rows),
    }
    if sources and not args.eval_dataset_name:
        summary.append(describe_shares(sources, split["trained"], split["held_out"]))
    if args.no_call_fraction or args.augment:
        check = prompt_format.check if is_chat else None
        with process.main_process_first():
            train, made, lines = make_training_rows(args, trained, train, tokenize, check=check, held_out=eval_rows)
        summary += lines
        split["made"] = {row_id: row.fingerprint for row_id, row in made.items()}
        rows_by_id |= made
    summary += describe_tokenizer(tokenizer, prompt_format, [*rows_by_id.values(), *eval_rows], train, held_out)
    if args.init_adapter and (before := read_split(args.init_adapter)):
        split["trained_before"] = sorted(trained_contents(before))
        if known := len(set(split["held_out"].values()) & set(split["trained_before"])):
            summary.append(
                f"Warning: --init_adapter was trained on {known} of the {len(eval_rows)} held-out rows: no evaluation "
                "of them is fair; its own --seed and --eval_fraction hold out the rows that it never saw"
            )
    if split["near_repeats"]:
        summary.append(
            f"{len(split['near_repeats'])} of the {len(eval_rows)} held-out queries equal a training query except for "
            "case, blanks, numbers or names: evaluate.py shows exact match without them too"
        )
    if in_words := sum(bool(row.words) and row.answers == "[]" for row in trained):
        how = "as they are" if is_chat and args.train_words else "as turns without calls"
        hint = "" if is_chat else ": --prompt_format chat trains the words"
        summary.append(f"{in_words} of the {len(trained)} turns to train on are words, trained {how}{hint}")
    marked = mark_supervised(tokenizer, train.examples[0], most=MOST_SHOWN)
    example = f"One example; the loss is on the text between ⟦ and ⟧:\n{marked}"

    # Order
    steps = TrainingData(
        train.examples,
        args.seed,
        args.per_device_train_batch_size,
        args.gradient_accumulation_steps,
        num_processes=process.num_processes,
        process_index=process.process_index,
    )
    return Data(steps, held_out.examples, eval_rows, dropped, split, summary, example, prompt_format)


def training_format(args, tokenizer):
    """The PromptFormat or ChatFormat of train.py's arguments. Raises UserError."""
    prompt_format = find_format(args.prompt_format, tokenizer)
    is_chat = prompt_format.end_token is not None
    return prompt_format._replace(train_words=args.train_words) if is_chat else prompt_format


class Chosen(NamedTuple):
    rows: list  # all valid rows, without rows refused by a chat template
    train: list
    evaluation: list
    in_neither: list
    parts: list  # the rows of train and of evaluation to tokenise
    dropped: dict  # {reason: [ids]} of bad rows
    refused: dict  # {reason: [ids]} of rows refused by a chat template
    sources: dict | None  # {row id: data set}, with several


def choose_rows(args, prompt_format, load):
    """Load the rows and split them. args: train.py's. load: a function like load_rows. Raises
    UserError."""
    is_chat = prompt_format.end_token is not None
    rows, dropped, sources = load_data_sets(args, load)
    refused = defaultdict(list)
    if is_chat:  # its template may refuse conversations
        rows = leave_out(rows, prompt_format.ask, refused)
    else:
        try:
            for row in rows[:100]:
                check_format(args.prompt_format, prompt_format, row)
        except ValueError as error:
            raise UserError(str(error)) from None
    if args.eval_dataset_name:
        other_rows, _ = load(args.eval_dataset_name)
        other_rows = leave_out(other_rows, prompt_format.ask, refused) if is_chat else other_rows
        sides = set_apart(rows, other_rows, split_seed(args))
    else:
        sides = split_rows(rows, args.eval_fraction, split_seed(args), args.eval_split)
    parts = [sides[0][: args.max_train_examples], sides[1][: args.max_eval_examples]]
    if args.dataset_shares:
        shares = dict(zip(labels_of(args.dataset_name), args.dataset_shares, strict=True))
        parts[0] = take_shares(sides[0], sources, shares, args.max_train_examples)
    if is_chat:  # answers that the template cannot write, such as several calls, stay in the split
        parts = [leave_out(part, prompt_format.check, refused) for part in parts]
    return Chosen(rows, *sides, parts, dropped, refused, sources)


def leave_out(rows, check, left_out):
    """The rows that pass a check. The others go into `left_out`, `{reason: [ids]}`. check: a
    function of a row that raises ValueError."""
    kept = []
    for row in rows:
        try:
            check(row)
            kept.append(row)
        except ValueError as error:
            left_out[str(error)[:300]].append(row.id)
    return kept


def describe_too_long(examples, too_long, max_length, positions):
    """A warning if more than 2 % of the rows are too long, with the length that keeps 99 % of the
    rows."""
    lengths = sorted([*(len(example.input_ids) for example in examples), *too_long.values()])
    if len(too_long) <= 0.02 * len(lengths):
        return []
    enough = lengths[math.ceil(0.99 * len(lengths)) - 1]
    fits = enough <= positions
    advice = f"--max_seq_length {enough} would keep 99 %" if fits else f"the model has {positions} positions"
    share = len(too_long) / len(lengths)
    return [f"Warning: {share:.0%} of the rows are longer than {max_length} tokens and left out; {advice}"]


def describe_tokenizer(tokenizer, prompt_format, rows, *parts):
    """A line for each type of text in `parts` (Tokenized) changed by the tokenizer. Raises
    UserError if it changes too many answers."""
    lines = []
    total = sum(len(part.examples) + len(part.too_long) for part in parts)
    lost = [row_id for part in parts for row_id in part.lost_answers]
    unknown = [row_id for part in parts for row_id in part.unknown_prompts]
    if lost:
        _, completion = prompt_format.texts(next(row for row in rows if row.id == lost[0]))
        text = decode_answer(tokenizer, encode(tokenizer, [completion], prompt_format.end_token)[0].tolist())
        same = next((place for place, pair in enumerate(zip(text, completion, strict=False)) if len(set(pair)) > 1), 0)
        start = max(0, same - 20)
        lines.append(
            f"{len(lost)} of {total} answers change in this tokenizer ({shorten(lost)}): "
            f"{completion[start : start + 60]!r} becomes {text[start : start + 60]!r}"
        )
        if len(lost) > MAX_LOST_ANSWERS * total:
            raise UserError(
                f"{lines[0]}. More than {MAX_LOST_ANSWERS:.0%}: take a base whose tokenizer has these texts"
            )
    if unknown:
        lines.append(f"{len(unknown)} of {total} prompts have texts unknown to this tokenizer ({shorten(unknown)})")
    blanks = "a\n\nb   c"
    if (text := tokenizer.decode(encode(tokenizer, [blanks])[0].tolist()).strip()) != blanks:
        lines.append(f"This tokenizer changes line ends or runs of blanks: {blanks!r} becomes {text!r}")
    return [f"Warning: {line}" for line in lines]
