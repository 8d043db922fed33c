"""Token counts of rows: lengths, the proof of the supervised tokens, examples, and steps."""

import math

import numpy as np

from data_utils.batching import TrainingData
from data_utils.parts import part_weights
from data_utils.tokens import MARKS, decode_tokens, end_token_id
from inspect_utils.findings import MOST_ITEMS
from run_utils.terminal import progress

NUM_BINS = 40
QUANTILES = (50, 90, 95, 99, 100)


def describe_lengths(train, evaluation, limit, max_seq_length):
    """The lengths as JSON values. train, evaluation: Examples of all rows, of any length. limit:
    the most tokens that training keeps."""
    parts = {
        "train": np.array([len(example.input_ids) for example in train]),
        "eval": np.array([len(example.input_ids) for example in evaluation]),
    }
    lengths = np.concatenate(list(parts.values())).astype(int)
    completions = np.array([len(example.input_ids) - example.prompt_length for example in [*train, *evaluation]])
    width = max(1, math.ceil(lengths.max() / NUM_BINS / 8)) * 8
    edges = np.arange(0, lengths.max() + width + 1, width)
    candidates = {size for power in range(7, 18) for size in (2**power, 3 * 2 ** (power - 1))}
    shown = {size for size in candidates if 0.2 * np.median(lengths) < size <= 2 * lengths.max()} | {max_seq_length}
    limits = []
    for size in sorted(shown):
        lost = int((lengths > size).sum())
        limits.append(
            {"max_seq_length": size, "lost": lost, "share": lost / len(lengths), "is_set": size == max_seq_length}
        )
    return {
        "limit": limit,
        "max": int(lengths.max()),
        "mean": float(lengths.mean()),
        "quantiles": [[f"{q} %", int(np.percentile(lengths, q, method="higher"))] for q in QUANTILES],
        "histogram": {
            "edges": edges.tolist(),
            **{part: np.histogram(of_part, edges)[0].tolist() for part, of_part in parts.items()},
        },
        "limits": limits,
        "completion": {"mean": float(completions.mean()), "max": int(completions.max())},
    }


def prove_supervision(tokenizer, prompt_format, rows, examples, *, weights, findings):
    """Decode the tokens after each prompt, and compare them with the completion and the end token.
    weights: `{part: weight}` in the loss; if these are completion_only's, the tokens with a loss
    are decoded. Returns the proof as JSON values."""
    end_id = end_token_id(tokenizer, prompt_format)
    end = decode_tokens(tokenizer, [end_id])
    changed = []
    pairs = zip(rows, examples, strict=True)
    for row, example in progress(pairs, "Decoding the supervised tokens", len(rows)):
        completion = prompt_format.texts(row)[1]
        completion = MARKS.sub("", completion) if prompt_format.end_token else completion
        has_loss = example.loss_weights != 0 if weights == part_weights() else slice(example.prompt_length, None)
        ids = example.input_ids[has_loss]
        text = decode_tokens(tokenizer, ids.tolist())
        if text != completion + end or ids[-1] != end_id:
            changed.append(row.id)
            findings.add("answer_changed", row.id, describe_change(completion + end, text))
    return {
        "rows": len(rows),
        "exact": len(rows) - len(changed),
        "changed": len(changed),
        "ids": changed[:MOST_ITEMS],
        "end_token": end,
    }


def describe_change(wanted, found):
    same = next((i for i, pair in enumerate(zip(wanted, found, strict=False)) if pair[0] != pair[1]), 0)
    start = max(0, same - 20)
    return f"{wanted[start : start + 60]!r} becomes {found[start : start + 60]!r}"


def describe_training(examples, args):
    """Steps and tokens of the fitting Examples, on one GPU, as JSON values; None without any."""
    if not examples:
        return None
    steps = TrainingData(examples, args.seed, args.per_device_train_batch_size, args.gradient_accumulation_steps)
    total = args.max_train_steps or math.ceil(args.num_train_epochs * steps.steps_per_epoch)
    in_step = [
        sum(len(example.input_ids) for example in steps.examples_of(step)) for step in range(steps.steps_per_epoch)
    ]
    return {
        "rows": len(examples),
        "global_batch": steps.global_batch,
        "steps_per_epoch": steps.steps_per_epoch,
        "steps": total,
        "epochs": total / steps.steps_per_epoch,
        "tokens_per_epoch": sum(in_step),
        "supervised_per_epoch": sum(example.num_supervised for example in examples),
        "tokens_per_step": sum(in_step) / len(in_step),
        "longest_step": max(in_step),
    }


def show_tokens(tokenizer, example):
    """`[[text, weight]]` of each token of an Example."""
    texts = [decode_tokens(tokenizer, [token]) for token in example.input_ids.tolist()]
    return [[text, float(weight)] for text, weight in zip(texts, example.loss_weights, strict=True)]
