"""Intervals of figures, and the difference of two systems on the same rows. Uses scipy."""

import math
import warnings
from collections import Counter

import numpy as np
from scipy import stats

Z = 1.959963984540054  # the normal distribution's 97.5 % quantile


def wilson_interval(k, n):
    """The 95% interval of a proportion k/n, as (low, high), by Wilson (1927): valid near 0 and 1,
    and for small n."""
    if n == 0:
        return 0.0, 1.0
    center, margin = k + Z**2 / 2, Z * math.sqrt(k * (n - k) / n + Z**2 / 4)
    low, high = (center - margin) / (n + Z**2), (center + margin) / (n + Z**2)
    return (0.0 if k == 0 else low), (1.0 if k == n else high)


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
    k, n = bootstrap_sums(np.stack([k_all, n_all], axis=1), resamples).T
    # If a resample has a zero denominator, use the overall ratio.
    return percentile_interval(np.divide(k, n, out=np.full_like(n, overall), where=n > 0))


def bootstrap_sums(rows, resamples):
    """The sums of the rows of [rows, columns] in each draw of as many rows, [resamples, columns].

    A draw is how often it has each different row, which is multinomial. So time and memory grow
    with the different rows, of which thousands of rows have a few dozen."""
    different, counts = np.unique(rows, axis=0, return_counts=True)
    return np.random.default_rng(0).multinomial(len(rows), counts / len(rows), size=resamples) @ different


def percentile_interval(values):
    """The 95% interval of a bootstrap's values, as (low, high)."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


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
    return percentile_interval(bootstrap_sums(values[:, None], resamples) / len(values))


def welch(a, b):
    """The p-value of Welch's t-test of two lists of means, or None for fewer than two each, or
    without any spread."""
    if min(len(a), len(b)) < 2 or np.ptp(a) + np.ptp(b) == 0:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # one side without spread
        return float(stats.ttest_ind(a, b, equal_var=False).pvalue)
