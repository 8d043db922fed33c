"""Several data sets as one (`--dataset_name a b --dataset_shares 0.7 0.3`)."""

from collections import Counter

from data_utils.data_set_names import labels_of
from data_utils.rows import counted, join_conversations
from run_utils.errors import UserError, say


def load_data_sets(args, load):
    """The rows of --dataset_name, one name or a list, in order, the bad ones as `{reason: [ids]}`,
    and `{row id: data set}`, None of a single one. load: a function like load_rows.

    Ids of several data sets get the data set's name. A row with the content of an earlier data
    set's row is left out, with a line. Turns of one conversation stay one across data sets."""
    names = args.dataset_name if isinstance(args.dataset_name, list) else [args.dataset_name]
    found = [load(name, args.dataset_revision, config_name=args.dataset_config_name) for name in names]
    if len(names) == 1:
        return *found[0], None
    labels, contents, new = labels_of(names), set(), []
    for label, (rows, _) in zip(labels, found, strict=True):
        new.append([row for row in rows if row.fingerprint not in contents])
        contents.update(row.fingerprint for row in rows)
        if gone := len(rows) - len(new[-1]):
            say(f"{label}: left out, since an earlier data set has the same: {counted(gone, 'row')}")
    ids = Counter(row.id for rows in new for row in rows)
    merged, bad, sources = [], {}, {}
    for label, rows, (_, refused) in zip(labels, new, found, strict=True):
        rows = [row._replace(id=f"{label}:{row.id}") if ids[row.id] > 1 else row for row in rows]
        sources |= dict.fromkeys((row.id for row in rows), label)
        merged += rows
        for reason, places in refused.items():
            bad.setdefault(reason, []).extend(f"{label}: {place}" for place in places)
    return join_conversations(merged), bad, sources


def take_shares(rows, sources, shares, most=None):
    """The most rows, up to `most`, with these shares of the data sets, each row once: of each data
    set its first rows. Rows come in the order of their hash, so these are drawn by the seed.

    sources: `{row id: data set}`. shares: `{data set: share}`. Raises UserError if a data set would
    have no row."""
    there = Counter(sources[row.id] for row in rows)
    total = min(there[label] / share for label, share in shares.items())
    total = total if most is None else min(total, most)
    # 0.29 * 100 is 28.999999999999996
    wanted = {label: int(total * share + 1e-6) for label, share in shares.items()}
    if empty := [label for label, count in wanted.items() if count == 0]:
        raise UserError(f"--dataset_shares leaves no training row of {empty[0]}, which has {there[empty[0]]}")
    kept = []
    for row in rows:
        wanted[sources[row.id]] -= 1
        if wanted[sources[row.id]] >= 0:
            kept.append(row)
    return kept


def describe_shares(sources, trained, held_out):
    """One line: the rows of each data set, from the ids of the rows trained on and held out."""
    counts, others = (Counter(sources[row_id] for row_id in ids) for ids in (trained, held_out))
    parts = [
        f"{label} {counts[label]} ({counts[label] / len(trained):.0%}) and {others[label]} held out"
        for label in dict.fromkeys(sources.values())
    ]
    return f"Rows to train on by data set: {'; '.join(parts)}"
