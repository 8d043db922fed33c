import pytest

from eval_utils import statistics
from eval_utils.statistics import bootstrap_mean, bootstrap_ratio, flips, mcnemar, wilson_interval


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),  # R: binom::binom.wilson; n = 101 as published
    [(81, 101, 0.7138, 0.8680), (0, 10, 0, 0.2775), (10, 10, 0.7225, 1), (800, 1000, 0.7741, 0.8236), (0, 0, 0, 1)],
)
def test_wilson_interval(k, n, low, high):
    assert wilson_interval(k, n) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


@pytest.mark.parametrize(
    # Fagerland et al. (2013), table 1 and by hand: 2 * (P(X < least) + P(X = least) / 2).
    ("a", "b", "p"),
    [(0, 0, 1.0), (1, 7, 0.0391), (0, 5, 0.03125), (5, 5, 1.0), (3, 9, 0.0923), (9, 3, 0.0923)],
)
def test_mcnemar_with_mid_p(a, b, p):
    assert mcnemar(a, b) == pytest.approx(p, abs=1e-4)


def test_a_bootstrap_interval_holds_the_ratio_and_shrinks_with_rows():
    few = bootstrap_ratio([1, 0, 1, 1] * 5, [1, 1, 2, 1] * 5)
    many = bootstrap_ratio([1, 0, 1, 1] * 200, [1, 1, 2, 1] * 200)
    assert few[0] < many[0] < 0.6 < many[1] < few[1]
    assert bootstrap_ratio([1], [2]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("numerators", "denominators", "k", "n"),  # the interval is Wilson's for k of n rows
    [
        ([1] * 4, [1] * 4, 4, 4),
        ([0] * 30, [2] * 30, 0, 30),
        ([2, 3], [2, 3], 2, 2),
        ([0] * 100, [5, 5, 5] + [0] * 97, 0, 3),  # only three rows have a denominator
        ([1, 2, 3] * 4, [2, 4, 6] * 4, 6, 12),  # agreement on one half is no certainty either
    ],
)
def test_a_ratio_on_which_all_rows_agree_has_an_interval(numerators, denominators, k, n):
    assert bootstrap_ratio(numerators, denominators) == wilson_interval(k, n)


def test_one_row_with_a_denominator_has_the_widest_interval():
    assert bootstrap_ratio([0, 1, 0], [0, 1, 0]) == (0.0, 1.0)


def test_a_draw_of_rows_with_nothing_to_count_does_not_widen_the_interval():
    """All rows with something to count have at least a half right, and so has every draw of
    them."""
    low, high = bootstrap_ratio([1, 2] + [0] * 40, [2, 2] + [0] * 40)
    assert 0.5 <= low < 0.75 < high <= 1


def test_flips_are_named_by_row():
    a, b = {"x": True, "y": False, "z": True, "w": False}, {"x": True, "y": True, "z": False, "w": False}
    assert flips(a, b) == {"both": 1, "neither": 1, "a_only": ["z"], "b_only": ["y"], "p": pytest.approx(1)}


def test_a_bootstrap_of_a_few_draws_at_once_is_the_same(monkeypatch):
    found = bootstrap_ratio([0, 1, 2, 1], [2, 2, 3, 1]), bootstrap_mean([0, 1, 2, 1])
    monkeypatch.setattr(statistics, "DRAWN_AT_ONCE", 12)
    assert (bootstrap_ratio([0, 1, 2, 1], [2, 2, 3, 1]), bootstrap_mean([0, 1, 2, 1])) == found
