"""The rows of an evaluation: the rows that training held out, found by content."""

import contextlib
import functools
from pathlib import Path
from typing import NamedTuple

from data_utils.few_shot import choose_shots
from data_utils.made_rows import make_sets
from data_utils.mixture import load_data_sets
from data_utils.rows import shorten
from data_utils.sources import load_rows
from data_utils.split import find_held_out, set_apart, split_rows, split_seed
from data_utils.systems import SYSTEMS
from run_utils.errors import UserError, say
from run_utils.files import read_json


def read_split(folder):
    """The trained and held-out rows of an adapter (see find_held_out). None if an older adapter did
    not save them."""
    path = Path(folder) / "split.json"
    if not path.exists():
        return None
    split = read_json(path, check_split)
    repeats = split.get("near_repeats")  # None: an adapter from before
    return {
        "trained": split["trained"],
        "held_out": split["held_out"],
        "near_repeats": repeats and [row_id for row_id in repeats if row_id in split["held_out"]],
        "trained_before": split.get("trained_before", []),  # of --init_adapter
    }


def trained_contents(split):
    """The fingerprints of an adapter's training rows, in its run and before it."""
    return {*split["trained"].values(), *split["trained_before"]} if split else set()


def check_split(split):
    """For read_json: fails unless a split.json has fingerprints by id."""
    for rows in (split["trained"], split["held_out"]):
        if not all(isinstance(fingerprint, str) for fingerprint in rows.values()):
            raise ValueError("a fingerprint that is not a text")
    _ = dict.fromkeys([*(split.get("near_repeats") or ()), *split.get("trained_before", ())])


class HeldOut(NamedTuple):
    """The rows of an evaluation, two facts about each, the rows made from them, and the examples of
    `fewshot`."""

    rows: list
    # {fact: {row id: bool}}, or None for an unknown fact. "tools_seen": training offered all tools
    # of the row. "near_repeat": the row's query nearly repeats a training query. "data_set", with
    # several: the name of the row's.
    in_training: dict
    shots: list  # training rows; empty unless --systems has fewshot
    made: dict  # {set: [Row]}, see made_rows.py

    @property
    def sets(self):
        return {"": self.rows, **self.made}


def held_out_rows(args, adapter=None, generators=None):
    """The HeldOut of evaluate.py's arguments. generators: as for load_rows. Raises UserError if
    there are no rows, or no examples for `fewshot`."""
    split = read_split(adapter.folder) if adapter else None
    is_own = adapter and args.dataset_name == adapter.args.get("dataset_name")
    load = functools.partial(load_rows, max_bad_rows=args.max_bad_rows, generators=generators)
    with adapter.named_in("--dataset_name") if is_own else contextlib.nullcontext():
        rows, _, sources = load_data_sets(args, load)
        trained_tools, eval_rows = tools_seen(rows, split), rows
        if args.eval_dataset_name:
            (eval_rows, _), sources = load(args.eval_dataset_name), None
    held_out = choose_rows(eval_rows, args, adapter, split)
    chosen = held_out[: args.num_examples]
    if not chosen:
        source = args.eval_dataset_name or args.dataset_name
        raise UserError(f"no rows are held out of {source} at --eval_fraction {args.eval_fraction}")
    if before := {row.fingerprint for row in chosen} & {*(split or {}).get("trained_before", ())}:
        say(f"Warning: --init_adapter of {adapter.folder} was trained on {len(before)} of the {len(chosen)} rows")
    in_training = {
        "tools_seen": trained_tools and {row.id: row.tool_names() <= trained_tools for row in chosen},
        "near_repeat": find_near_repeats(chosen, split),
    }
    if sources:
        in_training["data_set"] = {row.id: sources[row.id] for row in chosen}
    with_shots = any(SYSTEMS[name].shots for name in args.systems)
    made, lines = make_sets(args, chosen, held_out)
    for line in lines:
        say(line)
    return HeldOut(chosen, in_training, find_shots(args, rows, held_out, split) if with_shots else [], made)


def find_shots(args, rows, held_out, split):
    """The examples of `fewshot`, from the rows that training used or, without an adapter, from the
    rows that are not held out. They depend on all held-out rows, so --num_examples changes none.
    Raises UserError if there are too few."""
    if split:
        trained = trained_contents(split)
        training = [row for row in rows if row.fingerprint in trained]
    elif args.eval_dataset_name:
        training, _, _ = set_apart(rows, held_out, split_seed(args))
    else:
        training, _, _ = split_rows(rows, args.eval_fraction, split_seed(args), args.eval_split)
    shots = choose_shots(training, held_out, args.shots, split_seed(args))
    if len(shots) < args.shots:
        raise UserError(
            f"the system 'fewshot' needs {args.shots} short training rows that repeat no held-out row, and "
            f"{args.dataset_name} has {len(shots)}: leave fewshot out, lower --shots, or name the training's rows with "
            "--dataset_name and the rows to evaluate with --eval_dataset_name"
        )
    return shots


def choose_rows(rows, args, adapter, split):
    """The rows that training held out, or the rows of another split or data set that the arguments
    name. Raises UserError for training rows, and if held-out rows are missing from the data set."""
    trained_with = adapter.args if adapter else {}
    own_split = all(getattr(args, name) == trained_with.get(name) for name in ("eval_fraction", "eval_split"))
    own_split = own_split and split_seed(args) == trained_with.get("split_seed", trained_with.get("seed"))
    if split and own_split:
        held_out, gone = find_held_out(rows, split)
        if gone and (held_out or args.dataset_name == trained_with["dataset_name"]):
            raise UserError(
                f"{len(gone)} of the {len(split['held_out'])} rows that {adapter.folder} held out are not in "
                f"{args.dataset_name} any more: {shorten(gone)}; name the data set as it was with --dataset_name, or "
                "one of other rows to evaluate with --eval_fraction 1"
            )
        if not gone:
            return held_out
    _, held_out, _ = split_rows(rows, args.eval_fraction, split_seed(args), args.eval_split)
    trained = trained_contents(split)
    if known := [row.id for row in held_out if row.fingerprint in trained]:
        raise UserError(
            f"{len(known)} of the {len(held_out)} requested rows are rows that {adapter.folder} was trained on: "
            f"{shorten(known)}; leave out --eval_fraction, --eval_split, --seed and --split_seed to evaluate the "
            "held-out rows"
        )
    return held_out


def tools_seen(rows, split):
    """The names of the tools in an adapter's training rows; None if unknown."""
    trained = trained_contents(split)
    return set().union(*(row.tool_names() for row in rows if row.fingerprint in trained)) or None


def find_near_repeats(rows, split):
    """`{row id: whether its query nearly repeats a training query}`, by content; None unless all of
    these rows were held out."""
    if not split or split["near_repeats"] is None:
        return None
    if {row.fingerprint for row in rows} - set(split["held_out"].values()):
        return None
    repeats = {split["held_out"][row_id] for row_id in split["near_repeats"]}
    return {row.id: row.fingerprint in repeats for row in rows}
