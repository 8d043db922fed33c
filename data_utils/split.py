"""The split into training and evaluation rows, held-out rows found by content, and near-repeats
across the split."""

import functools
import hashlib
import json
import re
import unicodedata
from collections import defaultdict

import numpy as np

from data_utils import cache

_SIGNS = "-+\u2212"
# A number, a word, or another character.
_TOKEN = re.compile(rf"(?:(?<!\w)[{_SIGNS}])?\d+(?:[.,:/-]\d+)*|[^\W\d]\w*(?:-\w+)*|[^\w\s]")
_DIGITS = re.compile(r"\d+")
_NUMBER_WORDS = frozenset(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million".split()
)
_NUMBER, _NAME = "0", "\0"


def split_seed(args):
    """The seed of a split: --split_seed of the arguments, or --seed if it is not set."""
    return args.seed if args.split_seed is None else args.split_seed


def split_rows(rows, eval_fraction, seed, by="random"):
    """Training rows, evaluation rows, and rows in neither. Depends only on the seed and the rows,
    not on their order.

    `random` holds out the `round(eval_fraction * n)` rows with the smallest hash of (seed, id).
    `tools` holds out tools in the order of their hash until enough rows use only held-out tools; no
    training row has a tool of an evaluation row. Rows with both kinds of tools are in neither, and
    so are repeats of a held-out row's query, tools and answers under another id."""

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
    # Number of a row's tools that are not held out.
    open_tools = {row.id: len(tools[row.id]) for row in ordered}
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
    """Like split_rows, for evaluation rows from another source: training rows and evaluation rows,
    both in the order of their hash, and rows in neither (repeats of an evaluation row, and turns of
    its conversation)."""

    def ordered(rows):
        return sorted(rows, key=lambda row: hashlib.sha256(f"{seed}:{row.id}".encode()).digest())

    def is_held_out(row):
        return row.fingerprint in contents or row.opening in openings

    contents = {row.fingerprint for row in eval_rows}
    openings = {row.opening for row in eval_rows} - {""}
    train_rows = [row for row in ordered(rows) if not is_held_out(row)]
    return train_rows, ordered(eval_rows), [row for row in rows if is_held_out(row)]


def without_repeats(ordered, train_rows, eval_rows):
    held_out = {row.fingerprint for row in eval_rows}
    train_rows = [row for row in train_rows if row.fingerprint not in held_out]
    kept = {row.id for row in eval_rows} | {row.id for row in train_rows}
    return train_rows, eval_rows, [row for row in ordered if row.id not in kept]


def find_held_out(rows, split):
    """The rows that a training held out, by content and in the training's order, and the ids of
    missing rows.

    split: the content of train.py's split.json, `{"trained": {id: fingerprint}, "held_out": {id:
    fingerprint}}`."""
    by_content = defaultdict(list)
    for row in rows:
        by_content[row.fingerprint].append(row)
    contents = set(by_content)
    found, gone = [], []
    for row_id, fingerprint in split["held_out"].items():
        same = by_content[fingerprint]
        if same:  # prefer the copy with the same id
            found.append(same.pop(next((i for i, row in enumerate(same) if row.id == row_id), 0)))
        elif fingerprint not in contents:  # otherwise only fewer copies are left
            gone.append(row_id)
    return found, gone


def near_repeats(train_rows, eval_rows):
    """The ids of evaluation rows whose query equals a training query except for case, whitespace,
    numbers or names (see query_keys). Takes time linear in the rows, and is kept in the cache."""
    texts = (text for row in (*train_rows, *eval_rows) for text in (row.query, row.answers))
    file = cache.file_of("near_repeats", (text.encode() for text in (str(len(train_rows)), *texts)))
    stored = cache.load(file)
    if stored is None:
        seen = set().union(*map(query_keys, train_rows))
        stored = {"is_repeat": np.array([not seen.isdisjoint(query_keys(row)) for row in eval_rows], dtype=bool)}
        if len(train_rows) + len(eval_rows) >= cache.FROM_ROWS:
            cache.save(file, stored)
    return [row.id for row, is_repeat in zip(eval_rows, stored["is_repeat"], strict=True) if is_repeat]


def query_keys(row):
    """The keys of a row's query. Two queries with a common key are near-repeats.

    1. The query in NFKC, without case and whitespace, each number (digits or English words) as 0.
    2. Key 1 with placeholders for the argument strings of the row's calls, if they have at most
       five words and are in the query as whole words. Needs one more word.
    3. Key 2 with placeholders for capitalised words within a sentence. Needs three more words, and
       no fewer than were replaced: Titles With All Words Capitalised have no such key."""
    arguments = [call["arguments"] for call in json.loads(row.answers)]
    values = [_folded(_tokens(text)) for text in _strings(arguments) if len(text.split()) <= 5]
    values = [value for value in values if any(token[0].isalpha() for token in value)]
    by_first = defaultdict(list)  # token: the values that begin with it, the longest first
    for value in sorted(values, key=len, reverse=True):
        by_first[value[0]].append(value)
    tokens = _tokens(row.query)
    folded = _folded(tokens)
    with_values, with_names = [], []
    num_words = num_names = place = 0
    at_start = True  # of a sentence
    while place < len(tokens):
        token, plain, value = tokens[place], folded[place], None
        if plain in by_first:
            value = next((value for value in by_first[plain] if folded[place : place + len(value)] == value), None)
        is_word = value is None and token[0].isalpha()
        is_name = is_word and not at_start and token[0].isupper()
        with_values.append(_NAME if value else plain)
        if not value and not is_name:
            with_names.append(plain)
        elif with_names[-1:] != [_NAME]:  # New York is one name
            with_names.append(_NAME)
        num_words, num_names = num_words + is_word, num_names + is_name
        at_start = token in ".!?:" or (at_start and not token[0].isalnum())
        place += len(value) if value else 1
    keys = [folded]
    if num_words >= 1:
        keys.append(with_values)
    if num_words - num_names >= max(3, num_names):
        keys.append(with_names)
    return {hashlib.sha256(key.encode()).digest()[:16] for key in set(map("".join, keys))}


def _tokens(text):
    """Words, numbers and other characters, without whitespace. Adjacent numbers become one 0."""
    tokens = []
    for token in map(_token, _TOKEN.findall(unicodedata.normalize("NFKC", text))):
        if token != _NUMBER or tokens[-1:] != [_NUMBER]:
            tokens.append(token)
    return tokens


@functools.lru_cache(2**16)
def _token(found):
    """One match of _TOKEN, with its numbers as 0."""
    is_digits = found[0].isdecimal() or (found[0] in _SIGNS and len(found) > 1)
    is_number = is_digits or _NUMBER_WORDS.issuperset(found.casefold().split("-"))
    return _NUMBER if is_number else _DIGITS.sub(_NUMBER, found)


def _folded(tokens):
    return [token.casefold() for token in tokens]


def _strings(value):
    """All strings in a JSON value except keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)
