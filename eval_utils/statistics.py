"""Intervals of figures, and the difference of two systems on the same rows. Uses scipy."""

import warnings
from collections import Counter

import numpy as np
from scipy import stats

# Rows of a bootstrap's draws, 32 MB a column. All draws of 200,000 rows would take gigabytes.
DRAWN_AT_ONCE = 2**22


def wilson_interval(k, n):
    """The 95% interval of a proportion k/n, as (low, high), by Wilson (1927): valid near 0 and 1,
    and for small n."""
    if n == 0:
        return 0.0, 1.0
    interval = stats.binomtest(k, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def rate_figure(k, n):
    """The figure of a proportion, with wilson_interval."""
    low, high = wilson_interval(k, n)
    return {"k": k, "n": n, "rate": k / n, "low": low, "high": high}


def bootstrap_ratio(numerators, denominators, resamples=1000):
    """The 95% interval of sum(numerators) / sum(denominators), as (low, high), by bootstrap over
    the rows. It suits figures such as F1, whose parts a row has several of. The same rows give the
    same interval.

    If all rows agree, every resample gives the same ratio, which is no certainty: use Wilson's
    interval, with n = the rows with a nonzero denominator. (0, 1) for a single such row.
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
        # If a resample has a zero denominator, use the overall ratio.
        return np.divide(k.sum(axis=axis), total, out=np.full_like(total, overall), where=total > 0)

    return bootstrap((k_all, n_all), ratio, resamples)


def mcnemar(a_only, b_only):
    """The p-value of McNemar's test with the mid-p correction (Fagerland, Lydersen and Laake,
    2013). a_only, b_only: the number of rows that only one of two systems gets right. 1 if no row
    differs."""
    flips = a_only + b_only
    if flips == 0:
        return 1.0
    least = min(a_only, b_only)
    return float(min(1.0, 2 * stats.binom.cdf(least, flips, 0.5) - stats.binom.pmf(least, flips, 0.5)))


def flips(a, b):
    """Two systems compared on the same rows, each as `{row id: is right}`: the number of rows that
    both and neither get right, the row ids that only one gets right, and the p-value of the
    difference."""
    a_only = [row_id for row_id in a if a[row_id] and not b[row_id]]
    b_only = [row_id for row_id in a if b[row_id] and not a[row_id]]
    return {
        "both": sum(bool(a[row_id] and b[row_id]) for row_id in a),
        "neither": sum(not a[row_id] and not b[row_id] for row_id in a),
        "a_only": a_only,
        "b_only": b_only,
        "p": mcnemar(len(a_only), len(b_only)),
    }


def sign_flips(differences):
    """The p-value of the paired permutation test of two systems, each with runs of several seeds on
    the same rows: two-sided, with the mid-p correction.

    differences: an integer for each row, the right answers of one system's runs minus the other's.
    Seeds answer the same row, so the row is the unit: under the null hypothesis its difference has
    either sign with probability 1/2. The distribution of the sum is exact, a convolution over the
    rows. With one run each, this is `mcnemar`. 1 if no row differs."""
    sizes = Counter(abs(difference) for difference in differences if difference)
    distribution = np.ones(1)  # of the sum of the rows with one sign
    for size, count in sizes.items():
        of_size = np.zeros(size * count + 1)
        of_size[::size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        distribution = np.convolve(distribution, of_size)
    gained = sum(difference for difference in differences if difference > 0)
    least = min(gained, len(distribution) - 1 - gained)
    return float(min(1.0, 2 * distribution[: least + 1].sum() - distribution[least]))


def bootstrap_mean(values, resamples=2000):
    """The 95% interval of a mean by bootstrap over the rows, as (low, high). The same rows give the
    same interval. (None, None) if all rows agree, or there are fewer than two."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2 or np.ptp(values) == 0:
        return None, None
    return bootstrap((values,), np.mean, resamples)


def bootstrap(columns, statistic, resamples):
    """The 95% interval of a statistic of rows, as (low, high), by scipy's percentile bootstrap."""
    found = stats.bootstrap(
        columns, statistic, paired=True, n_resamples=resamples, method="percentile", rng=np.random.default_rng(0),
        batch=max(1, DRAWN_AT_ONCE // len(columns[0])),
    )  # fmt: skip
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def welch(a, b):
    """The p-value of Welch's t-test of two lists of means, or None for fewer than two each, or
    without any spread."""
    if min(len(a), len(b)) < 2 or np.ptp(a) + np.ptp(b) == 0:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # one side without spread
        return float(stats.ttest_ind(a, b, equal_var=False).pvalue)
