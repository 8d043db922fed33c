"""The inspection of a data set as one object of JSON values, for the terminal and the page.

The rows, their split and their tokens come from the functions that training uses."""

import functools
import json
import math
from typing import NamedTuple

import numpy as np

from data_utils.batching import tokenize_rows
from data_utils.chat_format import find_format
from data_utils.dataset import Chosen, choose_rows, training_format
from data_utils.sources import most_bad_rows, read_rows
from inspect_utils.across_rows import Counts, distributions, find_conflicts, find_near_repeats, overlap
from inspect_utils.findings import Findings, kind_of_reason
from inspect_utils.lengths import describe_lengths, describe_training, prove_supervision, show_tokens
from inspect_utils.row_checks import prompt_marks, row_faults
from run_utils.errors import say
from run_utils.redaction import published_names
from run_utils.terminal import progress

MOST_ROWS = 2000  # in the result
NUM_EXAMPLES = 3
MOST_FAULTY = 0.05  # share of the training rows with an error; above it, the advice is not to go on
MOST_CHANGED = 0.01  # share of answers changed by the tokenizer, see dataset.MAX_LOST_ANSWERS
SETTINGS = (
    "model_name_or_path", "dataset_name", "eval_dataset_name", "prompt_format", "eval_fraction", "eval_split", "seed",
    "max_bad_rows", "max_train_examples", "max_eval_examples", "max_seq_length", "num_train_epochs", "max_train_steps",
    "per_device_train_batch_size", "gradient_accumulation_steps", "lora_r",
)  # fmt: skip


class Inspected(NamedTuple):
    """The rows of a training, as it would see them, and their tokens."""

    chosen: Chosen
    read: dict  # {data set: (number of valid rows, bad rows, summary) of valid_rows}
    prompt_format: object  # a PromptFormat or a ChatFormat
    limit: int  # tokens: longer rows are left out
    tokens: list  # Tokenized of the training and the evaluation rows, of any length; [] without a tokenizer

    @property
    def fitting(self):
        """The training and the evaluation examples within the limit."""
        return [[example for example in part.examples if len(example.input_ids) <= self.limit] for part in self.tokens]


def read_data(args, tokenizer, positions, generators):
    """args: train.py's. tokenizer: may be None, except with --prompt_format chat. positions: the
    model's number of positions. Raises UserError if the rows cannot be read."""
    read = {}

    def load(dataset_name, revision=None, *, config_name=None):
        rows, bad, summary = read_rows(dataset_name, revision, config_name=config_name, generators=generators)
        read[dataset_name] = len(rows), bad, summary
        return rows, bad

    prompt_format = training_format(args, tokenizer) if tokenizer else find_format(args.prompt_format, None)
    chosen = choose_rows(args, prompt_format, load)
    tokens = []
    if tokenizer:
        count = sum(map(len, chosen.parts))
        say(f"Tokenising {count:,} rows ...")
        tokenize = functools.partial(tokenize_rows, tokenizer, prompt_format, max_length=math.inf)
        tokens = [tokenize(part) for part in chosen.parts]
    return Inspected(chosen, read, prompt_format, min(args.max_seq_length, positions), tokens)


def inspect_rows(args, data, tokenizer):
    """The inspection of an Inspected as JSON values: see docs/inspection.md."""
    findings = Findings()
    train_rows, eval_rows = data.chosen.parts
    used = train_rows + eval_rows
    part_of = {row.id: "train" for row in train_rows} | {row.id: "eval" for row in eval_rows}
    everything = in_order(data.chosen.rows, used)
    add_left_out(data, findings)
    marks = prompt_marks(data.prompt_format, tokenizer)
    of_all, of_used, of_training = Counts(), Counts(), Counts()
    for row in progress(everything, "Checking the rows"):
        tools, calls = json.loads(row.tools), json.loads(row.answers)
        add_faults(row, row_faults(row, tools, calls, marks), findings)
        for counts in [of_all, *[of_used] * (row.id in part_of), *[of_training] * (part_of.get(row.id) == "train")]:
            counts.add(row, tools, calls)
    find_conflicts(everything, findings)
    of_all.find_tool_faults(findings)
    of_training.find_one_sided(findings)
    near = find_near_repeats(train_rows, eval_rows, findings)
    result = {
        "version": 1,
        "title": published_names(args.dataset_name) if isinstance(args.dataset_name, list) else args.dataset_name,
        "settings": {name: getattr(args, name) for name in SETTINGS},
        "layouts": merged(summary["layouts"] for *_, summary in data.read.values()),
        "notes": merged(summary["notes"] for *_, summary in data.read.values()),
        "counts": counts_of(data),
        "verdict": None,
        "findings": None,
        "distributions": distributions(of_used),
        "overlap": overlap(train_rows, eval_rows, near, of_training.rows_by_tool.keys()),
        "tools": tool_counts(of_used, of_training),
        "lengths": None,
        "proof": None,
        "training": None,
        "examples": [],
    }
    if data.tokens:
        result |= of_tokens(args, data, tokenizer, findings)
    lengths = {example.row_id: len(example.input_ids) for part in data.tokens for example in part.examples}
    result["findings"] = findings.as_list()
    result["verdict"] = verdict(args, data, result)
    rows = chosen_rows(everything, result["findings"], args.seed)
    names = names_by_row(result["findings"])
    result["rows"] = [
        {
            "id": row.id,
            "part": part_of.get(row.id, "neither"),
            "query": row.query,
            "tools": row.tools,
            "answers": row.answers,
            "words": row.words,
            "tokens": lengths.get(row.id),
            "findings": names.get(row.id, []),
        }
        for row in rows
    ]
    result["rows_left_out"] = len(everything) - len(rows)
    return result


def in_order(rows, used):
    """All rows in the order of their file, in the form that training uses; then rows that are not
    in the file."""
    by_id = {row.id: row for row in used}
    return [by_id.pop(row.id, row) for row in rows] + list(by_id.values())


def add_left_out(data, findings):
    """The rows that are left out before the split, and rows that the chat template refuses."""
    for _, bad, summary in data.read.values():
        for reason, names in bad.items():
            for name in names:
                findings.add(kind_of_reason(reason), name, reason)
        count, first = summary["repeats"]
        for row_id, original in first:
            findings.add("repeated_row", row_id, f"repeats {original}")
        findings.counts["repeated_row"] += count - len(first)
    for reason, ids in data.chosen.refused.items():
        for row_id in ids:
            findings.add("refused_by_template", row_id, reason)


def add_faults(row, faults, findings):
    """One finding of each kind for a row."""
    details = {}
    for kind, detail in faults:
        details.setdefault(kind, []).append(detail)
    for kind, found in details.items():
        findings.add(kind, row.id, "; ".join(dict.fromkeys(found)))


def counts_of(data):
    train_rows, eval_rows = data.chosen.parts
    valid = sum(count for count, *_ in data.read.values())
    bad = sum(len(ids) for _, bad, _ in data.read.values() for ids in bad.values())
    long = sum(len(example.input_ids) > data.limit for part in data.tokens for example in part.examples)
    return {
        "records": sum(sum(summary["layouts"].values()) for *_, summary in data.read.values()),
        "valid": valid,
        "bad": bad,
        "repeats": sum(summary["repeats"][0] for *_, summary in data.read.values()),
        "train": len(train_rows),
        "eval": len(eval_rows),
        "in_neither": len(data.chosen.in_neither),
        "refused": sum(map(len, data.chosen.refused.values())),
        "too_long": long,
        "without_calls": sum(row.answers == "[]" for row in train_rows + eval_rows),
    }


def of_tokens(args, data, tokenizer, findings):
    """The parts of the result that need tokens."""
    (train, evaluation), (train_rows, eval_rows) = data.tokens, data.chosen.parts
    examples = train.examples + evaluation.examples
    for example in examples:
        if len(example.input_ids) > data.limit:
            findings.add("too_long", example.row_id, f"{len(example.input_ids):,} tokens of at most {data.limit:,}")
    for row_id in train.unknown_prompts + evaluation.unknown_prompts:
        findings.add("unknown_token", row_id, "in the prompt")
    fitting, _ = data.fitting
    proof = prove_supervision(tokenizer, data.prompt_format, train_rows + eval_rows, examples, findings)
    return {
        "lengths": describe_lengths(train.examples, evaluation.examples, data.limit, args.max_seq_length),
        "proof": proof,
        "training": describe_training(fitting, args),
        "examples": [
            {"id": example.row_id, "part": "train", "tokens": show_tokens(tokenizer, example)}
            for example in fitting[:NUM_EXAMPLES]
        ],
    }


def tool_counts(used, trained):
    return {
        "offered": len(used.rows_by_tool),
        "called": len(used.called),
        "in_one_row": sum(count == 1 for count in used.rows_by_tool.values()),
        "unseen_in_training": len(used.rows_by_tool.keys() - trained.rows_by_tool.keys()),
    }


def merged(counts):
    """The sum of `{name: count}` objects."""
    total = {}
    for part in counts:
        for name, count in part.items():
            total[name] = total.get(name, 0) + count
    return total


def names_by_row(findings):
    names = {}
    for finding in findings:
        for item in finding["items"]:
            names.setdefault(item["id"], []).append(finding["name"])
    return names


def chosen_rows(rows, findings, seed):
    """At most MOST_ROWS rows, in order: the rows named by findings, and others drawn by seed."""
    named = names_by_row(findings)
    first = [place for place, row in enumerate(rows) if row.id in named][:MOST_ROWS]
    others = [place for place, row in enumerate(rows) if row.id not in named]
    drawn = np.random.default_rng(seed).permutation(len(others))[: MOST_ROWS - len(first)]
    return [rows[place] for place in sorted([*first, *(others[i] for i in drawn)])]


def verdict(args, data, result):
    """Whether to go on, and why, as JSON values."""
    stops, reasons = [], []
    for name, (valid, bad, _) in data.read.items():
        count = sum(map(len, bad.values()))
        allowed = most_bad_rows(args.max_bad_rows, valid + count)
        if count > allowed:
            stops.append(f"{count} of the {valid + count} rows of {name} are bad, and --max_bad_rows allows {allowed}")
    if data.tokens and not result["training"]:
        stops.append("no training row is left")
    if (proof := result["proof"]) and proof["changed"] > MOST_CHANGED * proof["rows"]:
        stops.append(f"the tokenizer changes {proof['changed']} of {proof['rows']} answers")
    lost = {"broken_json", "missing_field", "empty_query"}
    wrong = [
        finding for finding in result["findings"] if finding["severity"] == "error" and finding["name"] not in lost
    ]
    for finding in wrong:
        share = finding["count"] / max(1, result["counts"]["valid"])
        text = f"{finding['count']} rows: {finding['title']}"
        (stops if share > MOST_FAULTY and not finding["title"].startswith("Left out") else reasons).append(text)
    reasons += [
        f"{finding['count']} {finding['unit']}s: {finding['title']}"
        for finding in result["findings"]
        if finding["severity"] == "warning"
    ]
    if not data.tokens:
        reasons.insert(0, "lengths are unknown without the tokenizer")
    if stops:
        line = f"Do not go on yet: {'; '.join(stops)}."
    else:
        first = f" Look first at: {'; '.join(reasons[:3])}." if reasons else ""
        line = f"Go on.{first}"
    return {"go_on": not stops, "line": line, "reasons": stops or reasons}
