"""The data sets of a script's arguments: one, or several."""

import math

from run_utils.errors import require
from run_utils.redaction import published_name


def check_data_sets(args):
    """Make a list of one --dataset_name the name itself. Raises UsageError for a repeated name, an
    option of a single data set with several, or shares that do not fit.

    args: train.py's, or evaluate.py's without shares."""
    names, shares = args.dataset_name, getattr(args, "dataset_shares", None)
    if isinstance(names, list) and len(names) == 1:
        args.dataset_name = names = names[0]
    if isinstance(names, list):
        require(len(set(names)) == len(names), "--dataset_name names a data set twice")
        for option in ("dataset_revision", "dataset_config_name"):
            require(
                not getattr(args, option), f"--{option} is for one --dataset_name: download the files, and name these"
            )
    if shares is not None:
        several = len(names) if isinstance(names, list) else 1
        require(several > 1, "--dataset_shares needs several --dataset_name")
        require(len(shares) == several, f"--dataset_shares needs one share a data set, {several}, not {len(shares)}")
        require(
            all(0 < share < 1 for share in shares) and math.isclose(sum(shares), 1, abs_tol=1e-6),
            f"--dataset_shares must be above 0 and add up to 1, not {' + '.join(map(str, shares))}",
        )


def labels_of(names):
    """Short names of data sets: hub ids, and the last parts of paths if these differ."""
    short = list(map(published_name, names))
    return short if len(set(short)) == len(names) else names
