"""Intervals of figures, and what two systems on the same rows differ in. By scipy."""

import numpy as np
from scipy import stats


def wilson_interval(k, n):
    """The 95% interval of a proportion k/n, as (low, high): Wilson (1927), which holds near 0 and 1 and for small n."""
    if n == 0:
        return 0.0, 1.0
    interval = stats.binomtest(k, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_ratio(numerators, denominators, resamples=1000):
    """The 95% interval of sum(numerators) / sum(denominators), as (low, high), for figures such as F1, of whose parts each row has
    several: by drawing rows again (bootstrap). The same rows give the same interval.

    If all rows agree, every draw gives the same ratio, which is no certainty: Wilson's interval for as many rows as have
    something to count. (0, 1) of a single such row.
    """
    k_all, n_all = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    counted = n_all > 0
    num_rows, overall = int(counted.sum()), k_all.sum() / n_all.sum()
    if num_rows < 2:
        return 0.0, 1.0
    if np.ptp(k_all[counted] / n_all[counted]) == 0:
        return wilson_interval(round(overall * num_rows), num_rows)

    def ratio(k, n, axis=-1):
        total = n.sum(axis=axis)
        # A draw of rows with nothing to count has no ratio of its own: it takes the overall one.
        return np.divide(k.sum(axis=axis), total, out=np.full_like(total, overall), where=total > 0)

    result = stats.bootstrap(
        (k_all, n_all), ratio, paired=True, n_resamples=resamples, method="percentile", rng=np.random.default_rng(0)
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def mcnemar(a_only, b_only):
    """The p-value of a_only against b_only rows that one of two systems alone got right: McNemar's test with the mid-p correction
    (Fagerland, Lydersen and Laake, 2013). 1 where no row differs."""
    flips = a_only + b_only
    if flips == 0:
        return 1.0
    least = min(a_only, b_only)
    return float(min(1.0, 2 * stats.binom.cdf(least, flips, 0.5) - stats.binom.pmf(least, flips, 0.5)))


def flips(a, b):
    """Two systems beside each other on the same rows, given as `{row id: right or not}` each: how many rows both and neither got
    right, the ids that one alone did, and the p-value of the difference."""
    a_only = [row_id for row_id in a if a[row_id] and not b[row_id]]
    b_only = [row_id for row_id in a if b[row_id] and not a[row_id]]
    return {
        "both": sum(bool(a[row_id] and b[row_id]) for row_id in a),
        "neither": sum(not a[row_id] and not b[row_id] for row_id in a),
        "a_only": a_only,
        "b_only": b_only,
        "p": mcnemar(len(a_only), len(b_only)),
    }
