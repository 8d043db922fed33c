"""The inspection of a data set as one object of JSON values, for the terminal and the page."""

import json
from collections import Counter

import numpy as np

from data_utils.augment import MADE_BY
from data_utils.dataset import MAX_LOST_ANSWERS
from data_utils.parts import part_weights
from data_utils.rows import counted
from data_utils.sources import most_bad_rows
from inspect_utils.across_rows import Counts, distributions, find_conflicts, find_near_repeats, overlap
from inspect_utils.findings import LEFT_OUT, Findings, kind_of_reason
from inspect_utils.lengths import describe_lengths, describe_training, prove_supervision, show_tokens
from inspect_utils.row_checks import faults_of, prompt_marks
from run_utils.redaction import published_names

PARTS = ("train", "eval")
MOST_ROWS = 2000  # in the result
NUM_EXAMPLES = 3
MOST_FAULTY = 0.05  # share of the training rows with an error; above it, the advice is not to go on
SETTINGS = (
    "model_name_or_path", "dataset_name", "dataset_shares", "eval_dataset_name", "prompt_format", "eval_fraction",
    "eval_split", "seed", "split_seed", "no_call_fraction", "augment", "augment_fraction", "loss_mask", "loss_weights",
    "max_bad_rows", "max_train_examples", "max_eval_examples", "max_seq_length", "num_train_epochs", "max_train_steps",
    "per_device_train_batch_size", "gradient_accumulation_steps", "lora_r",
)  # fmt: skip


def inspect_rows(args, data, tokenizer):
    """The inspection of an Inspected as JSON values: see docs/inspection.md."""
    findings = Findings()
    _, eval_rows = data.chosen.parts
    placed = rows_and_parts(data, args.eval_dataset_name is not None)
    everything, parts = [row for row, _ in placed], [part for _, part in placed]
    add_left_out(data, findings)
    of_file, of_used, of_training = Counts(), Counts(), Counts()
    counts_by_part = {"train": [of_used, of_training], "eval": [of_used], "neither": []}
    checked = faults_of(everything, prompt_marks(data.prompt_format, tokenizer))
    for part, (row, tools, calls, faults) in zip(parts, checked, strict=True):
        add_faults(row, faults, findings)
        for counts in counts_by_part[part] + [of_file] * (row.id not in data.made):
            counts.add(row, tools, calls)
    find_conflicts([row for row in everything if row.id not in data.made], findings)
    kept = {row.id for row in everything}
    for row in data.untouched:
        if row.id not in kept:  # transformed in place: its tools are as in the file
            of_file.add(row, json.loads(row.tools), json.loads(row.answers))
    of_file.find_tool_faults(findings)
    of_training.find_one_sided(findings)
    near = find_near_repeats(data.untouched, eval_rows, findings)
    result = {
        "version": 1,
        "title": published_names(args.dataset_name) if isinstance(args.dataset_name, list) else args.dataset_name,
        "settings": {name: getattr(args, name) for name in SETTINGS},
        "layouts": merged(summary["layouts"] for *_, summary in data.read.values()),
        "notes": merged(summary["notes"] for *_, summary in data.read.values()),
        "counts": counts_of(data),
        "verdict": None,  # and the findings: below, after the tokens
        "findings": None,
        "distributions": distributions(of_used) + by_data_set(data),
        "overlap": overlap(data.untouched, eval_rows, near, of_training.rows_by_tool.keys()),
        "tools": tool_counts(of_used, of_training),
        "lengths": None,
        "proof": None,
        "training": None,
        "made": data.lines,
        "examples": [],
    }
    if data.tokens:
        result |= of_tokens(args, data, tokenizer, findings)
    result["findings"] = findings.as_list()
    result["verdict"] = verdict(args, data, result)
    lengths = {
        (part, example.row_id): len(example.input_ids)
        for part, tokenized in zip(PARTS, data.tokens, strict=False)
        for example in tokenized.examples
    }
    names = names_by_row(result["findings"])
    result["rows"] = [
        {
            "id": row.id,
            "part": "made" if row.id in data.made else part,
            "query": row.query,
            "tools": row.tools,
            "answers": row.answers,
            "words": row.words,
            "tokens": lengths.get((part, row.id)),
            "findings": names.get(row.id, []),
        }
        for row, part in shown_rows(placed, names, args.seed)
    ]
    result["rows_left_out"] = len(placed) - len(result["rows"])
    return result


def rows_and_parts(data, has_eval_set):
    """`(row, part)` of all rows, in the order of their file and in the form that training uses;
    then of rows that are not in the file. part: "train", "eval", or "neither" of an unused row."""
    train, evaluation = ([(row, part) for row in rows] for rows, part in zip(data.chosen.parts, PARTS, strict=True))
    kept = {row.id for row, _ in train}
    placed = {}  # a row transformed in place has the place of its source
    for row, part in train if has_eval_set else train + evaluation:
        source = row.id.rpartition(MADE_BY)[0] if row.id in data.made else row.id
        placed[row.id if source in kept or source in placed else source] = row, part
    in_file = [placed.pop(row.id, (row, "neither")) for row in data.chosen.rows]
    return in_file + list(placed.values()) + evaluation * has_eval_set


def add_left_out(data, findings):
    """Rows left out before the split, and rows refused by the chat template."""
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
    valid = sum(count - summary.get("of_earlier", 0) for count, _, summary in data.read.values())
    bad = sum(len(ids) for _, bad, _ in data.read.values() for ids in bad.values())
    long = sum(len(example.input_ids) > data.limit for part in data.tokens for example in part.examples)
    return {
        "records": sum(sum(summary["layouts"].values()) + summary["unreadable"] for *_, summary in data.read.values()),
        "valid": valid,
        "bad": bad,
        "repeats": sum(summary["repeats"][0] for *_, summary in data.read.values()),
        "train": len(train_rows),
        "eval": len(eval_rows),
        "in_neither": len(data.chosen.in_neither),
        "made": len(data.made),
        "refused": sum(map(len, data.chosen.refused.values())),
        "too_long": long,
        "without_calls": sum(row.answers == "[]" for row in train_rows + eval_rows),
    }


def of_tokens(args, data, tokenizer, findings):
    """The parts of the result about tokens."""
    (train, evaluation), (train_rows, eval_rows) = data.tokens, data.chosen.parts
    examples = train.examples + evaluation.examples
    for example in examples:
        if len(example.input_ids) > data.limit:
            findings.add("too_long", example.row_id, f"{len(example.input_ids):,} tokens of at most {data.limit:,}")
    for row_id in train.unknown_prompts + evaluation.unknown_prompts:
        findings.add("unknown_token", row_id, "in the prompt")
    fitting, _ = data.fitting
    weights = part_weights(args.loss_mask, args.loss_weights)
    rows = train_rows + eval_rows
    proof = prove_supervision(tokenizer, data.prompt_format, rows, examples, weights=weights, findings=findings)
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


def by_data_set(data):
    """A table of the training rows that fit by their data set, before rows are made; none of a
    single data set."""
    sources = data.chosen.sources
    if not sources:
        return []
    long = {
        example.row_id for part in data.tokens[:1] for example in part.examples if len(example.input_ids) > data.limit
    }
    counts = Counter(sources[row.id] for row in data.untouched if row.id not in long)
    values = [[label, counts[label]] for label in dict.fromkeys(sources.values())]
    return [{"name": "data_sets", "title": "Rows to train on by data set", "values": values}]


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


def shown_rows(placed, named, seed):
    """At most MOST_ROWS of `(row, part)`, in order: the rows named by findings, and others drawn by
    seed."""
    first = [place for place, (row, _) in enumerate(placed) if row.id in named][:MOST_ROWS]
    others = [place for place, (row, _) in enumerate(placed) if row.id not in named]
    drawn = np.random.default_rng(seed).permutation(len(others))[: MOST_ROWS - len(first)]
    return [placed[place] for place in sorted([*first, *(others[i] for i in drawn)])]


def verdict(args, data, result):
    """Whether to go on, and why, as JSON values."""
    stops, reasons = list(data.problems), []
    for name, (valid, bad, _) in data.read.items():
        count = sum(map(len, bad.values()))
        allowed = most_bad_rows(args.max_bad_rows, valid + count)
        if count > allowed:
            stops.append(f"{count} of the {valid + count} rows of {name} are bad, and --max_bad_rows allows {allowed}")
    if not data.chosen.parts[0] or (data.tokens and not result["training"]):
        stops.append("no training row is left")
    elif not data.tokens:
        reasons.append("lengths are unknown without the tokenizer")
    if (proof := result["proof"]) and proof["changed"] > MAX_LOST_ANSWERS * proof["rows"]:
        stops.append(f"the tokenizer changes {proof['changed']} of {proof['rows']} answers")
    for finding in result["findings"]:
        is_error = finding["severity"] == "error" and not finding["title"].startswith(LEFT_OUT)
        if is_error and finding["count"] > MOST_FAULTY * result["counts"]["valid"]:
            stops.append(in_words(finding))
        elif finding["severity"] != "note":
            reasons.append(in_words(finding))
    if stops:
        line = f"Do not go on yet: {'; '.join(stops)}."
    else:
        line = "Go on." + f" Look first at: {'; '.join(reasons[:3])}." * bool(reasons)
    return {"go_on": not stops, "line": line, "reasons": stops or reasons}


def in_words(finding):
    return f"{counted(finding['count'], finding['unit'])}: {finding['title']}"
