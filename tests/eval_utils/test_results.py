"""Systems of one or several evaluations: comparisons, warnings, and the table on the terminal."""

import gc
import hashlib
import json

import pytest
from conftest import TAGS

from data_utils.rows import Row
from data_utils.systems import SystemKey, verdict_pair
from eval_utils.comparison import Finished, commands_of
from eval_utils.folder import hash_rows
from eval_utils.grounding import Sources
from eval_utils.report import render_report
from eval_utils.results import Evaluation, compare_systems, report_of
from eval_utils.table import print_table

TOOLS = json.dumps([{"name": "f", "parameters": {"x": {"type": "int"}}}])
CALL = '[{"name": "f", "arguments": {"x": 1}}]'
UNKNOWN = {"tools_seen": None, "near_repeat": None}


def keys(*names):
    return [SystemKey(*name) for name in names]


def make_rows(num_calls, num_without=0):
    golds = [CALL] * num_calls + ["[]"] * num_without
    return [Row(f"r{i}", "query", TOOLS, gold) for i, gold in enumerate(golds)]


def answers(rows, texts, **fields):
    return {
        row.id: {"text": text, "finish": "end", "seconds": 1.0, "num_tokens": 5} | fields
        for row, text in zip(rows, texts, strict=True)
    }


def evaluate(rows, texts, in_training=UNKNOWN, baseline=()):
    """texts: `{(label, system): [text]}`."""
    predictions = {SystemKey(*key): answers(rows, of_system) for key, of_system in texts.items()}
    results = compare_systems(rows, predictions, dict.fromkeys(predictions, TAGS), in_training, baseline)
    labels = ", ".join(dict.fromkeys(key.label for key in predictions))
    return Evaluation(predictions, *results, "[bold]title", labels, {}, {}, {})


@pytest.mark.parametrize(
    ("systems", "expected"),
    [
        ([("", "raw"), ("", "prompted"), ("", "adapter")], (("", "prompted"), ("", "adapter"))),
        ([("", "prompted"), ("", "adapter"), ("", "constrained_adapter")], (("", "prompted"), ("", "adapter"))),
        ([("", "prompted"), ("", "constrained_adapter")], (("", "prompted"), ("", "constrained_adapter"))),
        ([("", "raw"), ("", "adapter")], (("", "raw"), ("", "adapter"))),
        ([("", "raw"), ("", "prompted"), ("", "constrained")], (("", "prompted"), ("", "constrained"))),
        ([("", "raw"), ("", "prompted"), ("", "endpoint")], (("", "prompted"), ("", "endpoint"))),
        ([("a", "raw"), ("a", "prompted"), ("a", "adapter"), ("b", "adapter"), ("c", "adapter")],
         (("a", "adapter"), ("c", "adapter"))),
        ([("a: b", "prompted"), ("a: b", "adapter"), ("a", "adapter")], (("a: b", "adapter"), ("a", "adapter"))),
        ([("a", "prompted"), ("a", "adapter"), ("b", "endpoint")], (("a", "adapter"), ("b", "endpoint"))),
        ([("a", "raw"), ("a", "prompted"), ("b", "raw"), ("b", "prompted")], (("a", "prompted"), ("b", "prompted"))),
        ([("a", "adapter"), ("a", "constrained_adapter"), ("b", "constrained_adapter")],
         (("a", "constrained_adapter"), ("b", "constrained_adapter"))),
        ([("base", "prompted"), ("run", "adapter")], (("base", "prompted"), ("run", "adapter"))),
    ],
)  # fmt: skip
def test_the_verdict_is_of_the_last_adapter_against_the_first_or_the_prompted_base(systems, expected):
    assert verdict_pair(keys(*systems)) == tuple(keys(*expected))


def test_the_verdict_is_against_the_baseline_that_was_asked_for():
    systems = keys(("a", "raw"), ("a", "prompted"), ("a", "adapter"), ("b", "adapter"))
    assert verdict_pair(systems, systems[:1]) == (systems[0], systems[3])
    # Then the other adapter is judged.
    assert verdict_pair(systems, systems[3:]) == (systems[3], systems[2])
    assert verdict_pair(systems, systems[:3]) == (
        systems[2],
        systems[3],
    )  # all of a folder: its system of the same kind
    assert verdict_pair(systems[:1]) is None and verdict_pair([]) is None


def test_a_worse_adapter_is_named_on_the_page_whatever_the_folders_are_called():
    rows = make_rows(40)
    evaluation = evaluate(
        rows,
        {
            ("x: y", "raw"): ["no"] * 40,
            ("x: y", "prompted"): ["no"] * 40,
            ("x: y", "adapter"): [CALL] * 38 + ["[]"] * 2,
            ("y", "raw"): ["no"] * 40,
            ("y", "prompted"): ["no"] * 40,
            ("y", "adapter"): ["[]"] * 25 + [CALL] * 15,
        },
    )
    assert evaluation.systems == keys(("x: y", "raw"), ("x: y", "prompted"), ("x: y", "adapter"), ("y", "adapter"))
    page = render_report(report_of(evaluation))
    assert (
        "<strong>No, it did harm.</strong> Exact match: <strong>y: adapter 37.5%</strong> against x: y: adapter 95.0%"
        in page
    )
    assert page.count("base model with the fine-tuned LoRA adapter") == 2
    assert evaluation.figures["worst_tools"]["title"] == "the tools that y: adapter gets right least often"


def test_a_base_with_different_answers_is_shown_twice_and_so_are_equal_adapters():
    rows = make_rows(2)
    texts = {("a", "prompted"): ["no", "no"], ("a", "adapter"): [CALL] * 2, ("b", "prompted"): ["no", ""], ("b", "adapter"): [CALL] * 2}  # fmt: skip
    assert evaluate(rows, texts).systems == keys(*texts)


def test_the_worst_tools_are_those_with_the_fewest_exact_matches():
    tools = json.dumps([{"name": name} for name in "fgh"])
    golds = [json.dumps([{"name": name, "arguments": {}}]) for name in "fffgghh"]
    rows = [Row(f"r{i}", "query", tools, gold) for i, gold in enumerate(golds)]
    evaluation = evaluate(rows, {("", "adapter"): [*golds[:2], "[]", golds[3], "[]", "[]", "[]"]})
    assert [value["value"] for value in evaluation.figures["worst_tools"]["values"]] == ["h", "g", "f"]


def test_a_tool_without_a_miss_is_no_worst_tool():
    tools = json.dumps([{"name": name} for name in "fg"])
    golds = [json.dumps([{"name": name, "arguments": {}}]) for name in "ffgg"]
    rows = [Row(f"r{i}", "query", tools, gold) for i, gold in enumerate(golds)]
    evaluation = evaluate(rows, {("", "adapter"): golds})
    assert evaluation.figures["worst_tools"]["values"] == []
    assert "least often" not in render_report(report_of(evaluation))
    evaluation = evaluate(rows, {("", "adapter"): [*golds[:3], "[]"]})
    assert [value["value"] for value in evaluation.figures["worst_tools"]["values"]] == ["g"]


def test_of_tools_that_are_equally_bad_the_one_of_most_rows_is_first():
    tools = json.dumps([{"name": name} for name in "fgh"])
    golds = [json.dumps([{"name": name, "arguments": {}}]) for name in "ffggghh"]
    rows = [Row(f"r{i}", "query", tools, gold) for i, gold in enumerate(golds)]
    worst = evaluate(rows, {("", "adapter"): ["[]"] * 7}).figures["worst_tools"]["values"]
    assert [value["value"] for value in worst] == ["g", "f", "h"]


def slice_of_lengths(lengths, texts):
    """The slice of an adapter's prompt lengths, or None. An older file has no length (None)."""
    rows = make_rows(len(lengths))
    predictions = answers(rows, texts)
    for row, length in zip(rows, lengths, strict=True):
        predictions[row.id] |= {} if length is None else {"num_prompt_tokens": length}
    key = SystemKey("", "adapter")
    _, _, figures = compare_systems(rows, {key: predictions}, {key: TAGS}, UNKNOWN)
    found = [
        part["values"]
        for part in figures["slices"]
        if part["title"] == "length of adapter's prompt, in tokens, by quarters"
    ]
    return [(part["value"], part["figures"]["adapter"]["k"], part["n"]) for part in found[0]] if found else None


def test_rows_are_compared_by_quarters_of_their_prompts_tokens():
    lengths = [110, 1500, 130, 170, 120, 160, 140, 180]
    right = {110, 120, 130, 170}
    found = slice_of_lengths(lengths, [CALL if length in right else "[]" for length in lengths])
    assert found == [
        ("Q1: 110 – 120", 2, 2),
        ("Q2: 130 – 140", 1, 2),
        ("Q3: 160 – 170", 1, 2),
        ("Q4: 180 – 1,500", 0, 2),
    ]


def test_unknown_prompt_lengths_are_left_out():
    assert slice_of_lengths([None] * 8, [CALL] * 8) is None
    assert slice_of_lengths([1, 2, 3, *[None] * 5], [CALL] * 8) is None  # three rows have no quarters
    found = slice_of_lengths([10, None, 20, 30, None, 40], [CALL] * 6)
    assert [n for _, _, n in found] == [1, 1, 1, 1]


def test_kinds_of_rows_are_in_the_order_of_their_numbers():
    counts = [10, 2, 1]
    golds = [json.dumps([{"name": "f", "arguments": {"x": x}} for x in range(count)]) for count in counts]
    rows = [Row(f"r{count}", "query", TOOLS, gold) for count, gold in zip(counts, golds, strict=True)]
    (found,) = evaluate(rows, {("", "adapter"): golds}).figures["slices"]
    assert found["title"] == "number of calls wanted"
    assert [part["value"] for part in found["values"]] == ["1", "2", "10"]


def test_published_figures_stand_below_the_systems_with_a_word_on_them(capsys):
    evaluation = evaluate(make_rows(2), {("", "adapter"): [CALL] * 2})
    print_table(evaluation)
    assert "Published" not in capsys.readouterr().out
    evaluation.published["paper: base"] = {"exact_match": 63.37}
    print_table(evaluation)
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if "paper: base" in line]
    assert [cell.strip() for cell in line.split("│")[1:-1]] == ["paper: base", "", "63.37", "", ""]
    assert "Published: parser not stated" in " ".join(out.split())


def test_the_page_has_the_mark_the_lenient_reading_and_the_lengths():
    rows = make_rows(2)
    predictions = {SystemKey("", "adapter"): answers(rows, [f"Sure: {CALL}", CALL], num_prompt_tokens=77)}
    results = compare_systems(rows, predictions, dict.fromkeys(predictions, TAGS), UNKNOWN)
    evaluation = Evaluation(predictions, *results, "t", "", {}, {}, {"": ["evaluate.py", "--adapter", "my run"]})
    report = report_of(evaluation)
    assert report["commands"] == {"": "python evaluate.py --adapter 'my run'"}
    broken, right = (row["outputs"]["adapter"] for row in report["rows"])
    assert broken["fault"] == {"place": 0, "reason": "Expecting value"} and broken["value"] == json.loads(CALL)
    assert right["fault"] is None and right["num_prompt_tokens"] == 77


def test_commands_have_no_credentials_and_a_damaged_one_is_left_out():
    commands = {
        "a": ["evaluate.py", "--endpoint", "http://me:hunter22@host/v1", "--api_key", "abc"],
        "b": "evaluate.py",
        "c": ["evaluate.py", 3],
        "d": None,
    }
    evaluations = {label: Finished([], {}, {}, {}, {}, {"command": words}, {}) for label, words in commands.items()}
    assert commands_of(evaluations) == {"a": ["evaluate.py", "--endpoint", "http://***@host/v1", "--api_key", "***"]}


def test_pairs_with_the_raw_base_or_of_two_kinds_are_left_to_the_report(capsys):
    systems = ["raw", "prompted", "fewshot", "adapter", "constrained_adapter"]
    evaluation = evaluate(
        make_rows(4), {("", system): ["[]"] * n + [CALL] * (4 - n) for n, system in enumerate(systems)}
    )
    print_table(evaluation)
    out = capsys.readouterr().out
    assert out.count("├") >= 3  # a rule between two systems: each has three lines
    lines = [line.partition(":")[0] for line in out.splitlines() if " against " in line]
    assert lines[0] == "adapter against prompted" and len(lines) == 5
    assert "adapter against fewshot" in lines and "fewshot against prompted" in lines
    assert len(evaluation.figures["pairs"]) == 10


def test_the_table_on_the_terminal_has_the_four_figures_of_the_headline(capsys):
    print_table(evaluate(make_rows(2), {("", "adapter"): [CALL] * 2}))
    header = capsys.readouterr().out.partition("┡")[0]
    columns = zip(*(line.strip("┃ ").split("┃") for line in header.splitlines() if "┃" in line), strict=True)
    names = [" ".join(" ".join(cells).split()) for cells in columns]
    assert names == ["system", "JSON valid %", "exact match %", "tools exist %", "no hallucination %"]


def over_calls(label, more=12, fewer=0):
    """A base that abstains in `more` rows in which its adapter calls, and the reverse in `fewer`. 4
    outputs are broken."""
    return {
        (label, "prompted"): ["[]"] * more + [CALL] * fewer + ["no"] * 4,
        (label, "adapter"): [CALL] * more + ["[]"] * fewer + [CALL] * 4,
    }


def test_a_folders_warning_of_over_calls_is_kept_in_its_comparison():
    rows = make_rows(0, 16)
    line = "{}adapter calls too often: of 12 rows that want no call (both outputs parse), it calls in 12 in which "
    line += "{}prompted abstains; the reverse in 0."
    assert evaluate(rows, over_calls("")).figures["warnings"] == [line.format("", "")]
    other = {("first", "prompted"): over_calls("b")["b", "prompted"], ("first", "adapter"): ["[]"] * 16}
    warnings = evaluate(rows, other | over_calls("b")).figures["warnings"]
    # Its base is shown once, under `first`.
    assert warnings == [line.format("b: ", "first: ")]


def test_an_adapter_that_calls_less_or_by_chance_more_gets_no_warning():
    rows = make_rows(0, 16)
    assert evaluate(rows, over_calls("", more=0, fewer=12)).figures["warnings"] == []
    assert evaluate(rows, over_calls("", more=7, fewer=5)).figures["warnings"] == []
    broken = {("", "prompted"): ["no"] * 16, ("", "adapter"): [CALL] * 16}
    assert evaluate(rows, broken).figures["warnings"] == []  # a broken output is no abstention
    (line,) = evaluate(make_rows(1), {("", "adapter"): [CALL]}).figures["warnings"]
    assert line.startswith("Every row wants a call")


def test_names_with_brackets_and_colons_stay_whole_on_the_terminal(capsys):
    rows = make_rows(20)
    labels = ["exp[lora]", "exp[/dim]", ":smile: [red]x\\"]
    texts = {(label, "adapter"): [CALL] * (20 - 9 * place) + ["[]"] * 9 * place for place, label in enumerate(labels)}
    print_table(evaluate(rows, texts))
    out = capsys.readouterr().out
    assert "[bold]title" in out and "20 rows; exp[lora], exp[/dim], :smile: [red]x\\." in " ".join(out.split())
    assert "exp[/dim]: adapter against exp[lora]: adapter: 0 rows gained, 9 lost" in out
    for label in labels:
        assert f"\n{label}: adapter: 1.00 rows/s; stopped by 20 end" in out


def test_exact_match_is_shown_with_and_without_near_repeats(capsys):
    rows = make_rows(10)
    near = {row.id: place < 4 for place, row in enumerate(rows)}
    texts = {("", "prompted"): [""] * 10, ("", "adapter"): [CALL] * 7 + ["[]"] * 3}
    evaluation = evaluate(rows, texts, {"tools_seen": None, "near_repeat": near})
    print_table(evaluation)
    line = "4 of 10 queries equal a training query except for case, blanks, numbers or names. "
    line += "Exact match on the other 6: prompted 0.00 %, adapter 50.00 %."
    assert line in capsys.readouterr().out and line in render_report(report_of(evaluation))
    found = evaluation.figures["near_repeats"]
    shown = [(part["value"], part["figures"]["adapter"]["k"], part["n"]) for part in found["slice"]["values"]]
    assert found["count"] == 4
    assert shown == [("all rows", 7, 10), ("without near-repeats", 3, 6), ("near-repeats alone", 4, 4)]
    assert report_of(evaluation)["slices"][0] == found["slice"]


@pytest.mark.parametrize(("near", "words"), [(None, None), (False, "0 of 10 queries"), (True, "10 of 10 queries")])
def test_near_repeats_may_be_unknown_none_or_all(capsys, near, words):
    rows = make_rows(10)
    known = {"tools_seen": None, "near_repeat": None if near is None else dict.fromkeys((row.id for row in rows), near)}
    evaluation = evaluate(rows, {("", "adapter"): [CALL] * 10}, known)
    print_table(evaluation)
    page = render_report(report_of(evaluation))
    out = capsys.readouterr().out
    assert (words or "equal a training query") in out or words is None
    assert ("equal a training query" in out) == ("equal a training query" in page) == (words is not None)


def test_the_hash_of_rows_is_an_older_folders_unless_chats_read_more():
    row = Row("r", "query", "[]", "[]")
    talk = row._replace(messages='[{"role": "user", "content": "query"}]', words="Hello")
    older = (
        "[Row(id='r', query='query', tools='[]', answers='[]', fingerprint='', category='', acceptable='', required='', "
        "conversation='', opening='')]"
    )
    assert hash_rows([row], False) == hash_rows([talk], False) == hashlib.sha256(older.encode()).hexdigest()
    assert hash_rows([row], True) != hash_rows([talk], True)


def test_a_page_of_too_many_rows_has_each_outcome_and_says_so(monkeypatch):
    """Four of 20 rows fit: of the adapter's three outcomes the first rows, in the rows' order."""
    monkeypatch.setattr("eval_utils.results.MOST_ROWS", 4)
    rows = make_rows(20)
    wrong = CALL.replace("1", "2")
    texts = [*[CALL] * 10, *[wrong] * 9, "prose"]
    evaluation = evaluate(rows, {("", "prompted"): [CALL] * 20, ("", "adapter"): texts})
    report = report_of(evaluation)
    assert [row["id"] for row in report["rows"]] == ["r0", "r1", "r10", "r19"] and report["rows_left_out"] == 16
    assert report["figures"]["adapter"]["exact_match"]["n"] == 20
    assert "4 of 20 rows are on this page" in render_report(report)
    monkeypatch.setattr("eval_utils.results.MOST_ROWS", 20)
    assert "are on this page" not in render_report(report_of(evaluation))


def test_scores_of_many_rows_do_not_keep_what_was_read_from_their_texts():
    rows = [row._replace(query=f"call it with {place}") for place, row in enumerate(make_rows(30))]
    evaluation = evaluate(rows, {("", "prompted"): ["[]"] * 30, ("", "adapter"): [CALL] * 30})
    assert evaluation.figures["systems"]["adapter"]["hallucinated_values"]["k"] == 29  # of "call it with 1"
    gc.collect()
    assert sum(type(found) is Sources for found in gc.get_objects()) <= 1
    tools = [task.tools[0] for task in evaluation.own.tasks]
    assert all(tool is tools[0] for tool in tools)  # rows share a tool
