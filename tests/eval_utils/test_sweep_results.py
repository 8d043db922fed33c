"""A sweep's figures and page, from made folders of runs."""

import itertools
import json
import math
import re

import numpy as np
import pytest
from scipy import stats
from sweep_folders import write_evaluation, write_run

from eval_utils.statistics import bootstrap_mean, mcnemar, sign_flips, welch, wilson_interval
from eval_utils.sweep_pictures import differences, pictures
from eval_utils.sweep_report import verdict, write_sweep_report
from eval_utils.sweep_results import compare_runs, measure_title
from eval_utils.sweep_table import print_comparison


@pytest.mark.parametrize("differences", [[1, 1, -1, 3, 0, 2], [2, -2], [0, 0], [5], [1, 1, 1, -3, -2, 2, 1, -1, 1, 4]])
def test_sign_flips_are_all_signs_counted(differences):
    observed = abs(sum(differences))
    sums = [abs(sum(flipped)) for flipped in itertools.product(*([value, -value] for value in differences))]
    beyond, equal = (sum(test(total) for total in sums) for test in (observed.__lt__, observed.__eq__))
    expected = min(1.0, (beyond + equal / 2) / len(sums)) if observed else 1.0
    assert sign_flips(differences) == pytest.approx(expected)


def test_sign_flips_agree_with_scipys_permutation_test():
    rng = np.random.default_rng(1)
    differences = rng.integers(-3, 4, size=12)
    result = stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    sums = result.null_distribution
    mid = np.mean(np.abs(sums) == abs(differences.sum())) / 2
    assert sign_flips(differences.tolist()) == pytest.approx(result.pvalue - mid)


@pytest.mark.parametrize(("a_only", "b_only"), [(0, 0), (0, 5), (3, 8), (4, 4), (200, 260)])
def test_with_one_seed_sign_flips_are_mcnemars_test(a_only, b_only):
    assert sign_flips([-1] * a_only + [1] * b_only + [0] * 50) == pytest.approx(mcnemar(a_only, b_only))


def test_thousands_of_rows_have_an_exact_p_value_too():
    differences = np.array([3] * 1200 + [-3] * 1000 + [1, -2] * 50)
    z = differences.sum() / np.sqrt((differences**2).sum())
    assert sign_flips(differences.tolist()) == pytest.approx(2 * stats.norm.sf(z), rel=0.1)


def test_intervals_of_means_and_tests_of_seeds():
    values = np.random.default_rng(0).choice([-1, 0, 0, 1, 1], size=400)
    low, high = bootstrap_mean(values)
    error = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - error, abs=0.02) and high == pytest.approx(
        values.mean() + error, abs=0.02
    )
    assert bootstrap_mean([1, 1, 1]) == (None, None)
    assert welch([0.5, 0.6, 0.7], [0.9, 0.8, 0.85]) == pytest.approx(
        stats.ttest_ind([0.5, 0.6, 0.7], [0.9, 0.8, 0.85], equal_var=False).pvalue
    )
    assert welch([0.5], [0.6, 0.7]) is None and welch([0.5, 0.5], [0.5, 0.5]) is None


def answers(*right, rows=8):
    return {"exact_match": {f"row {i}": i in right for i in range(rows)}}


def plans(*names, axis="lora_r"):
    """One plan a run: "8/42" is rank 8 with seed 42."""
    return {
        f"r={value},seed={seed}": {"settings": {axis: value}, "seed": int(seed), "arguments": {axis: value}}
        for value, seed in (name.split("/") for name in names)
    }


def whole(comparison):
    return comparison | {"halving": [], "parts": {}, "failed": {}}


def test_the_seeds_of_a_row_are_one_row(tmp_path):
    """Two seeds with the same answers are no more evidence than one."""
    for name, right in {"8/42": [0], "8/43": [0], "16/42": [0, 1, 2, 3], "16/43": [0, 1, 2, 3]}.items():
        rank, seed = name.split("/")
        write_run(tmp_path / "runs" / f"r={rank},seed={seed}", answers(*right))
    found = compare_runs(tmp_path, plans("8/42", "8/43", "16/42", "16/43"), {})
    first, other = found["configurations"]
    assert "against_first" not in first and other["against_first"]["p"] == pytest.approx(mcnemar(0, 3))
    assert other["against_first"]["difference"] == pytest.approx(3 / 8) and other["against_first"]["p_seeds"] is None
    assert (other["against_first"]["rows_better"], other["against_first"]["rows_worse"]) == (3, 0)
    rate = other["rates"]["exact_match"]
    assert rate["mean"] == 0.5 and rate["sd"] == 0 and rate["values"] == [0.5, 0.5] and rate["num_rows"] == 8
    assert rate["low"] < 0.25 and rate["high"] > 0.75  # of 8 rows, not of 16
    assert found["first"] == "r=8" and found["axes"] == ["lora_r"] and found["num_rows"] == 8


def test_seeds_are_averaged_row_by_row_and_may_be_missing(tmp_path):
    """The second configuration has one seed more; its third run has not been evaluated."""
    write_run(tmp_path / "runs" / "r=8,seed=42", answers(0, 1), loss=0.5)
    write_run(tmp_path / "runs" / "r=16,seed=42", answers(0, 1, 2, 3), loss=0.25)
    write_run(tmp_path / "runs" / "r=16,seed=43", answers(0, 4), loss=0.35)
    found = compare_runs(tmp_path, plans("8/42", "16/42", "16/43", "16/44"), {"r=16,seed=42": 2.0, "r=16,seed=43": 4.0})
    first, other = found["configurations"]
    assert first["rates"]["exact_match"]["low"] == wilson_interval(2, 8)[0] and first["eval_loss"]["sd"] is None
    assert other["num_evaluated"] == 2 and other["seeds"] == [42, 43, 44]
    # Rows 0 to 4: 2, 1, 1, 1, 1 right of 2 against 1, 1, 0, 0, 0 of 1.
    assert other["against_first"]["p"] == pytest.approx(sign_flips([0, -1, 1, 1, 1]))
    assert other["against_first"]["difference"] == pytest.approx((3 / 8) - (2 / 8))
    assert other["eval_loss"]["mean"] == pytest.approx(0.3) and other["minutes"]["mean"] == 3.0
    assert other["rates"]["exact_match"]["sd"] == pytest.approx(math.sqrt(2) / 8)
    assert found["runs"]["r=16,seed=44"]["rates"] == {} and found["runs"]["r=16,seed=43"]["num_tokens"] == 75000


def test_the_baseline_is_named_since_it_may_not_be_the_first_line(tmp_path, capsys):
    """The first configuration was not evaluated: --halving ended it."""
    for rank in (16, 32):
        write_run(tmp_path / "runs" / f"r={rank},seed=42", answers(0, rank // 16))
    found = compare_runs(tmp_path, plans("8/42", "16/42", "32/42"), {})
    print_comparison(found)
    assert found["first"] == "r=16" and "permutation test against r=16, by row" in " ".join(
        capsys.readouterr().out.split()
    )


def test_configurations_on_other_rows_are_not_tested(tmp_path):
    write_run(tmp_path / "runs" / "r=8,seed=42", answers(0, 1))
    write_run(tmp_path / "runs" / "r=16,seed=42", answers(0, 1, 2), fingerprints={"row 3": "edited"})
    found = compare_runs(tmp_path, plans("8/42", "16/42"), {})
    assert found["configurations"][1]["against_first"] is None
    write_sweep_report(tmp_path / "report.html", whole(found))
    assert verdict(found)["answer"] == "No clear difference."


def test_sets_of_made_rows_are_measures_of_their_own(tmp_path):
    made = {
        "over_call": {"row 1": True},
        "no_call: over_call": {"m1": True, "m2": False},
        "rename: exact_match": {"p": True},
    }
    figures = {"perplexity": {"n": 5, "mean": 9.5}, "exact_match": {"rate": 0.5}, "num_examples": 8}
    write_run(tmp_path / "runs" / "r=8,seed=42", answers(0) | made, figures=figures)
    found = compare_runs(tmp_path, plans("8/42"), {})
    assert found["configurations"][0]["means"] == {"perplexity": {"mean": 9.5, "sd": None, "values": [9.5]}}
    write_evaluation(tmp_path / "base", {"raw": answers(0)})
    before = {"systems": {"raw": {"perplexity": {"n": 5, "mean": 2.25}}}}
    (tmp_path / "base" / "metrics.json").write_text(json.dumps(before))
    found = compare_runs(tmp_path, plans("8/42"), {}, {"base": tmp_path / "base"})
    assert found["base_means"] == {"base": {"raw": {"perplexity": 2.25}}}
    write_sweep_report(tmp_path / "report.html", whole(found))
    page = (tmp_path / "report.html").read_text()
    assert "perplexity" in page and "9.50" in page and "2.25" in page
    rates = found["configurations"][0]["rates"]
    titles = [measure_title(name) for name in ("over_call", "no_call: over_call", "missed_call", "rename: exact_match")]
    assert titles[1:] == ["calls, right tool off the list", "no call, own rows with calls", "exact match (rename)"]
    assert rates["over_call"]["mean"] == 1 and rates["no_call: over_call"]["mean"] == 0.5
    assert rates["no_call: over_call"]["num_rows"] == 2 and rates["rename: exact_match"]["mean"] == 1


@pytest.fixture
def curve(tmp_path):
    """A learning curve of three points and two seeds, under an earlier rank."""
    runs = {}
    for rows, seed in itertools.product((100, 300, 1000), (42, 43)):
        name = f"rows={rows},seed={seed}"
        runs[name] = {"settings": {"max_train_examples": str(rows)}, "seed": seed, "arguments": {"lora_r": 8}}
        write_run(tmp_path / "runs" / name, answers(*range(rows // 150 + seed % 2), rows=12), loss=1 / rows)
    name = "r=16,rows=100,<b>,seed=42"
    runs[name] = {"settings": {"lora_r": "16", "max_train_examples": "100"}, "seed": 42, "arguments": {}}
    write_run(tmp_path / "runs" / name, answers(0, rows=12))
    write_evaluation(tmp_path / "base", {"prompted": answers(0, rows=12), "raw": answers(rows=12)})
    return compare_runs(tmp_path, runs, dict.fromkeys(runs, 1.5), {"base": tmp_path / "base"})


def test_each_numeric_argument_has_a_picture_with_a_line_for_each_setting_of_the_others(curve):
    learning, ranks = pictures(curve)
    assert ranks["axis"] == "lora_r" and learning["axis"] == "max_train_examples" and learning["is_log"]
    assert [line["label"] for line in learning["series"]] == [""]  # rank 16 has one point: no line
    (first,) = learning["series"]
    xs, ys = ([point[key] for point in first["points"]] for key in "xy")
    # Equal steps of the logarithm are equal distances.
    assert (xs[1] - xs[0]) / (xs[2] - xs[0]) == pytest.approx(math.log(3) / math.log(10))
    assert ys == sorted(ys, reverse=True) and len(first["seeds"]) == 6
    assert [label for _, label in learning["x_ticks"]] == ["100", "300", "1000"]
    assert learning["base"] is not None


def test_the_page_is_one_file_with_all_configurations_and_no_markup_of_theirs(curve, tmp_path, capsys):
    write_sweep_report(tmp_path / "report.html", whole(curve) | {"failed": {"x": "train ended with 1: <i>"}})
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](https?:)?//|<b>|<i>""", page)
    assert page.count("<polyline") == 2 and "rows=1000" in page and "the prompted base" in page
    assert json.loads(json.dumps(curve, allow_nan=False)) == curve
    print_comparison(curve)
    assert "rows=1000" in capsys.readouterr().out


def test_all_differences_are_in_one_picture_with_the_clear_ones_filled(tmp_path):
    labels = [f"{rank}/{seed}" for rank in (8, 16, 32) for seed in (42, 43)]
    right = {8: 0, 16: 1, 32: 20}
    for label in labels:
        rank, seed = map(int, label.split("/"))
        write_run(tmp_path / "runs" / f"r={rank},seed={seed}", answers(*range(right[rank] + seed % 2), rows=24))
    picture = differences(compare_runs(tmp_path, plans(*labels), {}))
    small, large = picture["lines"]
    assert (small["name"], large["name"]) == ("r=16", "r=32") and small["y"] < large["y"]
    assert picture["zero"] < small["x"] < large["x"] and small["low"] <= small["x"] <= small["high"]
    assert large["is_clear"] and not small["is_clear"] and "+83.3 points" in large["title"]


def test_a_difference_is_clear_only_if_rows_and_seeds_agree(tmp_path):
    """Each of 12 rows is won by one of three seeds, which differ as much as the configurations."""
    for seed in (42, 43, 44):
        write_run(tmp_path / "runs" / f"r=8,seed={seed}", answers(rows=24))
        write_run(tmp_path / "runs" / f"r=16,seed={seed}", answers(*range(24 if seed == 42 else 0), rows=24))
    found = compare_runs(tmp_path, plans(*(f"{rank}/{seed}" for rank in (8, 16) for seed in (42, 43, 44))), {})
    test = found["configurations"][1]["against_first"]
    assert test["p"] < 1e-4 and test["p_seeds"] > 0.2
    assert verdict(found)["answer"] == "No clear difference."


def test_without_evaluations_losses_are_compared(tmp_path, capsys):
    write_run(tmp_path / "runs" / "r=8,seed=42", {}, loss=0.25)
    (tmp_path / "runs" / "r=16,seed=42").mkdir(parents=True)  # it has not begun
    found = compare_runs(tmp_path, plans("8/42", "16/42"), {})
    write_sweep_report(tmp_path / "report.html", whole(found))
    print_comparison(found)
    assert "0.2500" in (tmp_path / "report.html").read_text() and "0.2500" in capsys.readouterr().out
    assert found["configurations"][1]["eval_loss"]["mean"] is None and found["first"] is None and verdict(found) is None
