"""Made rows beside a data set's own: the sets are scored apart."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_results import CALL, TAGS, TOOLS, UNKNOWN, answers, make_rows

from data_utils.rows import Row
from data_utils.systems import SystemKey
from eval_utils.comparison import Finished, shared_sets
from eval_utils.report import render_report
from eval_utils.report_rows import row_data
from eval_utils.results import Evaluation, compare_systems, report_of, write_results
from eval_utils.table import print_table

TEXTS = (CALL, "[]", "no")
FEWER = json.dumps([{"name": "g", "parameters": {}}])


def made_of(rows, name, gold):
    return [
        row._replace(id=f"{row.id}+{name}", tools=FEWER if name == "no_call" else TOOLS, answers=gold) for row in rows
    ]


def evaluate(rows, made, texts):
    """texts: `{system: [text]}`, of the own rows and then of each set's in order."""
    every = [*rows, *(row for of_set in made.values() for row in of_set)]
    predictions = {SystemKey("", system): answers(every, of_system) for system, of_system in texts.items()}
    results = compare_systems(rows, predictions, dict.fromkeys(predictions, TAGS), UNKNOWN, made=made)
    return Evaluation(predictions, *results, "title", "", {}, {}, {})


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.sampled_from(TEXTS), min_size=12, max_size=12),
    st.lists(st.sampled_from(TEXTS), min_size=10, max_size=10),
)
def test_made_rows_change_no_figure_of_the_own_rows(own, others):
    rows = make_rows(5, 1)
    made = {"no_call": made_of(rows[:2], "no_call", "[]"), "rename": made_of(rows[:3], "rename", CALL)}
    texts = {"prompted": own[:6], "adapter": own[6:]}
    alone = evaluate(rows, {}, texts)
    with_made = evaluate(rows, made, {"prompted": own[:6] + others[:5], "adapter": own[6:] + others[5:]})
    drop = ("made", "warnings")
    first, second = (
        {name: part for name, part in evaluation.figures.items() if name not in drop}
        for evaluation in (alone, with_made)
    )
    assert first == second and alone.figures["made"] == {}
    no_call = with_made.figures["made"]["no_call"]["systems"]
    for system, texts in (("prompted", others[:2]), ("adapter", others[5:7])):
        assert no_call[system]["over_call"]["k"] == texts.count(CALL) and no_call[system]["over_call"]["n"] == 2
        assert no_call[system]["call_table"]["gold_none"]["broken"] == texts.count("no")
        assert sum(no_call[system]["outcomes"].values()) == 2


@pytest.mark.parametrize(("text", "rate", "missed"), [("[]", 0, 1), (CALL, 1, 0), ("no", 0, 0)])
def test_a_system_that_never_or_always_calls(text, rate, missed, capsys):
    rows = make_rows(4)
    evaluation = evaluate(rows, {"no_call": made_of(rows, "no_call", "[]")}, {"adapter": [text] * 8})
    made = evaluation.figures["made"]["no_call"]
    assert made["systems"]["adapter"]["over_call"]["rate"] == rate and made["num_rows"] == 4
    (line,) = report_of(evaluation)["when_not_to_call"]
    assert line["own"] is None and line["missed"]["rate"] == missed and line["made"]["rate"] == rate
    assert line["broken"]["made"] == 4 * (text == "no")
    print_table(evaluation)
    out = capsys.readouterr().out
    assert "When not to call" in out and f"{100 * rate:.2f}" in out and ("4 broken" in out) == (text == "no")
    assert "abstention is measured on made rows alone" in out
    page = render_report(report_of(evaluation))
    assert "When not to call" in page and "right tool off the list" in page


def test_a_call_of_the_tool_that_was_taken_away_is_an_over_call():
    rows = make_rows(1)
    evaluation = evaluate(rows, {"no_call": made_of(rows, "no_call", "[]")}, {"adapter": [CALL, CALL]})
    assert evaluation.figures["made"]["no_call"]["systems"]["adapter"]["outcomes"]["over-call"] == 1


def test_calling_more_often_than_the_base_is_a_warning_of_each_set_alone():
    rows = make_rows(20, 20)
    made = {"no_call": made_of(rows[:20], "no_call", "[]")}
    texts = {"prompted": ["[]"] * 60, "adapter": [CALL] * 20 + ["[]"] * 20 + [CALL] * 12 + ["[]"] * 8}
    (line,) = evaluate(rows, made, texts).figures["warnings"]
    assert line == (
        "adapter calls too often: of 20 rows whose right tool is off the list (both outputs parse), it calls in 12 in "
        "which prompted abstains; the reverse in 0."
    )
    texts["adapter"] = [CALL] * 20 + [CALL] * 12 + ["[]"] * 8 + ["[]"] * 20
    (line,) = evaluate(rows, made, texts).figures["warnings"]
    assert "of 20 rows that want no call (both" in line


def test_perturbed_rows_are_paired_with_their_originals(capsys):
    """Of four rows, three can be perturbed: the fourth is on neither side."""
    rows = make_rows(4)
    made = {"shuffle": made_of([rows[2], rows[0], rows[1]], "shuffle", CALL)}  # in another order
    #                     r0   r1    r2    r3    r2    r0    r1
    texts = {"adapter": [CALL, CALL, "[]", "[]", CALL, "[]", CALL]}
    evaluation = evaluate(rows, made, texts)
    (line,) = report_of(evaluation)["perturbed"]
    assert (line["made"], line["num_rows"], line["left_out"]) == ("shuffle", 3, 1)
    figures = line["systems"]["adapter"]
    assert (figures["exact_match_before"]["k"], figures["exact_match"]["k"], figures["exact_match"]["n"]) == (2, 2, 3)
    flips = figures["flips"]
    assert (flips["a_only"], flips["b_only"], flips["both"], flips["neither"]) == (["r0+shuffle"], ["r2+shuffle"], 1, 0)
    print_table(evaluation)
    out = capsys.readouterr().out
    assert "Exact match on perturbed rows" in out and "When not to call" not in out
    report = report_of(evaluation)
    report["outcomes"] = [outcome | {"texture": ""} for outcome in report["outcomes"]]
    data = row_data(report, report["outcomes"], "adapter")
    assert [[data["rows"][place]["id"] for place in places] for places in data["flips"]] == [
        ["r2+shuffle"],
        ["r0+shuffle"],
    ]
    assert [row["set"] for row in data["rows"]] == [""] * 4 + ["shuffle"] * 3


def test_a_score_names_its_set(tmp_path):
    rows = make_rows(2)
    evaluation = evaluate(
        rows, {"no_call": made_of(rows[:1], "no_call", "[]")}, {"raw": ["[]"] * 3, "adapter": [CALL] * 3}
    )
    write_results(tmp_path, evaluation)
    scores = list(map(json.loads, (tmp_path / "scores.jsonl").read_text().splitlines()))
    assert [(score["system"], score["id"]) for score in scores[:4]] == [
        (system, row.id) for system in ("raw", "adapter") for row in rows
    ]
    assert all("set" not in score for score in scores[:4])
    assert [(score["system"], score["id"], score["set"]) for score in scores[4:]] == [
        ("raw", "r0+no_call", "no_call"), ("adapter", "r0+no_call", "no_call")
    ]  # fmt: skip
    assert json.loads((tmp_path / "metrics.json").read_text())["made"]["no_call"]["num_rows"] == 1


def test_evaluations_are_compared_on_the_made_rows_that_all_have():
    rows = make_rows(3)
    no_call, renamed = made_of(rows, "no_call", "[]"), made_of(rows, "rename", CALL)
    changed = [no_call[0]._replace(query="another"), *no_call[1:]]
    evaluations = [
        Finished(rows, {}, made, {}, {}, {})
        for made in ({"no_call": no_call, "rename": renamed}, {"no_call": changed[:2], "shuffle": renamed})
    ]
    assert shared_sets(evaluations) == {"no_call": [no_call[1]]}
    assert shared_sets([evaluations[0]]) == evaluations[0].made
    assert shared_sets([*evaluations, Finished(rows, {}, {}, {}, {}, {})]) == {}
    assert isinstance(no_call[0], Row)
