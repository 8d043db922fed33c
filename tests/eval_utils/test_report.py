"""The page of results: no text of a model or data set is executed, empty reports have a page, and a
browser shows it."""

import json
import re
from html.parser import HTMLParser
from urllib.parse import parse_qs

import pytest
from browser import CHROMIUM, Browser
from conftest import TAGS

from data_utils.rows import Row
from demo.rows import generate_rows
from eval_utils.call_diff import compare_calls
from eval_utils.metrics import score
from eval_utils.outputs import Output, Task
from eval_utils.report import (
    embed_json,
    outcome_bar,
    render_report,
    style_outcomes,
    verdict,
    write_report,
    zero_systems,
)
from eval_utils.statistics import wilson_interval

SYSTEMS = ["raw", "prompted", "adapter"]
NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;<!--\ud800\u2028\0{{ 7*7 }}"
EMPTY = {
    "title": "t",
    "subtitle": "",
    **{
        key: []
        for key in ("systems", "metrics", "outcomes", "pairs", "slices", "rows", "warnings", "notes", "perturbed")
    },
    **{key: {} for key in ("figures", "gold", "outcome_counts", "call_table", "turn_table", "worst_tools", "sets")},
    **{key: {} for key in ("published", "commands", "record")},
    "system_help": {},
    "when_not_to_call": [],
    "rows_left_out": 0,
}


def rate(k, n):
    low, high = wilson_interval(k, n)
    return {"k": k, "n": n, "rate": k / n if n else 0.0, "low": low, "high": high}


def make_report(count):
    """Rows of the demo. The raw base gets every third row wrong, in all ways. The adapter gets
    every fifth row wrong by a value."""
    rows = []
    for index, row in enumerate(generate_rows(count, seed=3)):
        gold = json.loads(row["answers"])
        wrong = [{"name": call["name"], "arguments": {**call["arguments"], "seed": index}} for call in gold]
        values = {
            "raw": None if index % 3 else gold,
            "prompted": gold if index % 2 else [],
            "adapter": wrong if index % 5 == 4 else gold,
        }
        outputs = {}
        for system, value in values.items():
            outcome = (
                "unparseable"
                if value is None
                else "right"
                if value == gold
                else "wrong_value"
                if value
                else "missed_call"
            )
            outputs[system] = {
                "text": "I cannot" if value is None else json.dumps(value),
                "value": value,
                "fault": {"place": 0, "reason": "Expecting value"} if value is None else None,
                "outcome": outcome,
                "finish": "stop",
                "num_tokens": 20,
                "num_prompt_tokens": 300 + index if system == "adapter" else None,
                "scores": {
                    "json_valid": value is not None,
                    "exact_match": outcome == "right",
                    "f1": 0.5,
                    "call_f1": [1, 2],
                    "none": None,
                },
            }
        rows.append(
            {
                "id": row["id"],
                "query": row["query"],
                "tools": json.loads(row["tools"]),
                "gold": gold,
                "category": None,
                "set": "",
                "outputs": outputs,
            }
        )
    counts = {system: {} for system in SYSTEMS}
    for row in rows:
        for system, output in row["outputs"].items():
            counts[system][output["outcome"]] = counts[system].get(output["outcome"], 0) + 1
    right = {s: {row["id"] for row in rows if row["outputs"][s]["outcome"] == "right"} for s in SYSTEMS}
    figures = {
        system: {
            "json_valid": rate(count - counts[system].get("unparseable", 0), count),
            "exact_match": rate(len(right[system]), count),
            "lenient_exact_match": rate(count, count),
            "f1": {"n": count, "mean": 0.5, "low": 0.4, "high": 0.6},
            "calls": {"n": count, "count": 12},
            "call_f1": {"k": 3, "n": 4, "ratio": 0.75, "low": 0.5, "high": 1.0},
            "num_examples": count,
            "finish": {"stop": count},
            "rows_per_second": None if system == "raw" else 3.0,
        }
        for system in SYSTEMS
    }
    one_slice = {"title": "number of calls", "values": [{"value": "1", "n": count, "figures": {"raw": rate(1, count)}}]}
    table = {
        "gold_calls": {"calls": 7, "abstains": 1, "broken": 2},
        "gold_none": {"calls": 0, "abstains": 0, "broken": 0},
    }
    return {
        "title": "demo on demo",
        "subtitle": "adapter of step 150",
        "systems": SYSTEMS,
        "system_help": {"adapter": "with the LoRA adapter"},
        "metrics": [
            {"name": "json_valid", "title": "JSON valid", "kind": "rate", "help": "Strict JSON.", "headline": True},
            {
                "name": "exact_match",
                "title": "exact match",
                "kind": "rate",
                "help": "Equals the reference.",
                "headline": True,
            },
            {"name": "f1", "title": "F1", "kind": "mean", "help": "Of arguments."},
            {"name": "calls", "title": "calls", "kind": "count", "help": "Their number."},
            {"name": "call_f1", "title": "F1 of calls", "kind": "ratio", "help": "Of calls.", "headline": False},
        ],
        "figures": figures,
        "gold": {"json_valid": rate(count, count)},
        "outcomes": [
            {"name": "right", "title": "right", "tone": "good", "help": "equals gold"},
            {"name": "unparseable", "title": "unparseable", "tone": "bad"},
            {"name": "missed_call", "title": "missed call", "tone": "bad"},
            {"name": "wrong_value", "title": "wrong value", "tone": "bad"},
        ],
        "outcome_counts": counts,
        "call_table": dict.fromkeys(SYSTEMS, table),
        "turn_table": {"adapter": {"asked": {"called": 1, "answered": 0, "asked": 7, "neither": 2}}, "raw": {}},
        "pairs": [
            {
                "a": "prompted",
                "b": "adapter",
                "metric": "exact_match",
                "title": "exact match",
                "both": len(right["prompted"] & right["adapter"]),
                "neither": count - len(right["prompted"] | right["adapter"]),
                "a_only": sorted(right["prompted"] - right["adapter"]),
                "b_only": sorted(right["adapter"] - right["prompted"]),
                "p": 1e-9,
            }
        ],
        "slices": [one_slice],
        "worst_tools": one_slice | {"title": "worst tools"},
        "published": {"published: base": {"exact_match": 63.37}},
        "rows": rows,
        "commands": {"": "python evaluate.py --adapter 'my run'"},
        "record": {"git commit": "abc", "decoding": {"greedy": True}},
        "when_not_to_call": [],
        "perturbed": [],
        "sets": {"": "own"},
        "rows_left_out": 0,
        "warnings": ["the adapter over-calls"],
        "notes": ["2 queries nearly repeat one of training"],
    }


def with_made_rows(report):
    """The report with five rows of the set no_call, and three of rename."""
    report["rows"] += [
        row | {"id": f"{row['id']}+{name}", "set": name}
        for name, rows in (("no_call", report["rows"][:5]), ("rename", report["rows"][1:4]))
        for row in rows
    ]
    ids = [f"demo-{number:07}+rename" for number in (1, 2, 3)]
    flips = {"a_only": ids[:1], "b_only": ids[1:], "both": 0, "neither": 0, "p": 0.6}
    figures = {"exact_match_before": rate(1, 3), "exact_match": rate(2, 3), "flips": flips}
    report["perturbed"] = [
        {"made": "rename", "title": "renamed", "num_rows": 3, "left_out": 27, "systems": {"adapter": figures}}
    ]
    report["when_not_to_call"] = [
        {"system": "adapter", "own": None, "made": rate(1, 5), "missed": rate(2, 25),
         "notes": {"own": [], "made": ["3 broken", "1 to tools not offered"], "missed": []}}
    ]  # fmt: skip
    return report | {"sets": {"": "own", "no_call": "right tool off the list", "rename": "renamed"}}


def test_made_rows_have_their_tables_and_a_filter():
    page = render_report(with_made_rows(make_report(30)))
    text = " ".join(re.sub(r"<[^>]+>", " ", page.split("<script")[0]).split())
    assert "calls, right tool off the list no call, own rows with calls" in text
    assert "own rows without calls" not in text  # there are none
    assert (
        "20.0%" in text
        and "; 3 broken" in text
        and "; 1 to tools not offered" in text
        and "27 more cannot be perturbed" in text
    )
    assert '<option value="no_call">' in page and "#flip=3" in page
    assert '<select id="set">' not in render_report(make_report(30))


class Page(HTMLParser):
    """A page's tags, its addresses, and the JSON for its script."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.addresses, self.data, self._in_data, self.handlers = [], [], "", False, []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.addresses += [
            attributes[key] for key in ("src", "href", "action", "data", "xlink:href", "srcset") if key in attributes
        ]
        self.handlers += [key for key in attributes if key.startswith("on")]
        self._in_data = attributes.get("id") == "data"

    def handle_data(self, data):
        if self._in_data:
            self.data += data

    def handle_endtag(self, tag):
        self._in_data = False


def poison(value):
    """The same report with hostile text in all texts. Names that link its parts change alike."""
    if isinstance(value, str):
        return value + NASTY
    if isinstance(value, list):
        return [poison(item) for item in value]
    return value


def test_hostile_text_stays_text(tmp_path):
    report = make_report(4)
    clean = Page(render_report(report))
    report["system_help"] = {"raw": NASTY}
    for key in ("title", "subtitle", "warnings", "notes"):
        report[key] = poison(report[key])
    report["commands"] = {NASTY: NASTY}
    report["record"] = {NASTY: NASTY, "x": {NASTY: [NASTY]}}
    report["published"] = {NASTY: {}}
    report["slices"][0]["title"] = report["slices"][0]["values"][0]["value"] = NASTY
    for thing in (*report["metrics"], *report["outcomes"], *report["pairs"]):
        thing["title"] = NASTY
    for row in report["rows"]:
        row |= {"query": NASTY, "category": NASTY, "tools": [{"name": NASTY, NASTY: NASTY}]}
        row["gold"] = [{"name": NASTY, "arguments": {NASTY: NASTY}}]
        row["outputs"]["raw"]["fault"] = {"place": len(NASTY), "reason": NASTY}
        row["outputs"]["raw"] |= {"text": NASTY, "value": [{"name": NASTY, "arguments": {}}, NASTY], "finish": NASTY}
    write_report(tmp_path / "report.html", report)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.tags.count("script") == clean.tags.count("script") == 2
    assert "img" not in page.tags and not page.handlers
    data = json.loads(page.data)
    # Not a character is lost.
    assert data["rows"][0]["query"] == data["rows"][0]["outputs"][0]["text"] == NASTY
    assert data["tools"][0] == {"name": NASTY, NASTY: NASTY}
    assert "{{ 7*7 }}" in page.data and ">49" not in page.data


def test_hostile_names_of_systems_and_outcomes():
    report = make_report(4)
    renamed = json.loads(
        json.dumps(report).replace('"adapter"', json.dumps(NASTY)).replace('"unparseable"', json.dumps("a" + NASTY))
    )
    page = Page(render_report(renamed))
    assert page.tags.count("script") == 2 and "img" not in page.tags and not page.handlers
    assert json.loads(page.data)["systems"] == ["raw", "prompted", NASTY]


@pytest.mark.parametrize("text", [NASTY, "\ud83d", "\udc00\ud800", "😀 é \x7f\r\n\t\u2029", "]]>--!>", "<" * 9])
def test_embedded_json_is_read_back(text):
    embedded = embed_json({text: [text]})
    assert json.loads(embedded) == {text: [text]}
    assert "<" not in embedded and "\u2028" not in embedded
    embedded.encode("utf-8")


def test_no_number_that_json_lacks():
    with pytest.raises(ValueError):
        embed_json([float("nan")])


def test_the_page_s_rows_have_their_tools_and_the_titles_of_their_scores():
    report = make_report(4)
    for row in report["rows"]:
        row["outputs"]["raw"]["scores"]["lenient_exact_match"] = True
    data = json.loads(Page(render_report(report)).data)
    for row, shown in zip(report["rows"], data["rows"], strict=True):
        assert [data["tools"][index] for index in shown["tools"]] == row["tools"]
        shared = data["values"][shown["outputs"][0]["scores"]]
        assert shared == [*row["outputs"]["raw"]["scores"].values()]
    titles = ["JSON valid", "exact match", "F1", "F1 of calls", "none", "exact match, leniently"]
    assert [score["title"] for score in data["scores"]] == titles
    assert [score["rate"] for score in data["scores"]] == [True, True, False, False, False, True]


def test_a_label_stands_in_its_segment_or_not_at_all():
    bar = outcome_bar(
        [{"name": name, "title": name} for name in ("right", "wrong value")], {"right": 97, "wrong value": 3}
    )
    assert [segment["label"] for segment in bar] == ["right 97%", ""]
    bar = outcome_bar(
        [{"name": name, "title": name} for name in ("right", "wrong value")], {"right": 9, "wrong value": 1}
    )
    assert [segment["label"] for segment in bar] == ["right 90%", "10%"]


def test_two_megabytes_of_text():
    report = make_report(2)
    report["rows"][0]["outputs"]["raw"]["text"] = "<b>" * 700_000
    page = render_report(report)
    assert json.loads(Page(page).data)["rows"][0]["outputs"][0]["text"] == "<b>" * 700_000


@pytest.mark.parametrize("systems", [[], SYSTEMS])
@pytest.mark.parametrize("with_rows", [False, True])
def test_empty_report(systems, with_rows):
    report = EMPTY | {"systems": systems}
    if with_rows:
        report["rows"] = [{"id": 1, "query": "", "tools": [], "gold": [], "category": None, "set": "", "outputs": {}}]
    page = Page(render_report(report))
    assert page.tags.count("script") == (2 if with_rows else 0)


@pytest.mark.parametrize("key", [key for key in EMPTY if isinstance(EMPTY[key], list | dict)])
def test_any_part_may_be_empty(key):
    render_report(make_report(3) | {key: EMPTY[key]})


def test_figures_may_lack_a_metric_and_counts_may_be_zero():
    report = make_report(3)
    report["figures"] = {"raw": {}, "adapter": {"exact_match": rate(0, 0)}}
    report["outcome_counts"] = {"raw": {"right": 0}}
    assert "0 of 0" in render_report(report)


def test_nothing_is_fetched():
    page = render_report(make_report(5))
    assert all(address.startswith(("#", "data:,")) for address in Page(page).addresses)
    assert not re.search(r"@import|url\((?!#)", page)
    assert "default-src 'none'" in page


def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    write_report(path, make_report(2))
    old = path.read_text(encoding="utf-8")
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_report(path, make_report(3))
    assert path.read_text(encoding="utf-8") == old


def call(name, **arguments):
    return {"name": name, "arguments": arguments}


@pytest.mark.parametrize(
    ("gold", "value", "states"),  # of calls, and of the arguments of each
    [
        ([call("f", x=1)], [call("f", x=1.0)], [("equal", ["equal"])]),
        ([call("f", x=1)], [call("f", x=True)], [("changed", ["changed"])]),
        # A browser reads both as one number.
        ([call("f", x=2**53)], [call("f", x=2**53 + 1)], [("changed", ["changed"])]),
        ([call("f", x=1, y=2)], [call("f", y=2, z=3)], [("changed", ["equal", "extra", "missing"])]),
        ([call("f"), call("g", x=1)], [call("h")], [("extra", []), ("missing", []), ("missing", ["missing"])]),
        ([call("f", x=1), call("f", x=2)], [call("f", x=2), call("f", x=1)], [("equal", ["equal"])] * 2),
        ([call("f", x=1)], [call("f", x=2), call("f", x=1)], [("extra", ["extra"]), ("equal", ["equal"])]),
        ([call("f", x=1)], [call("f", x=1)] * 2, [("equal", ["equal"]), ("extra", ["extra"])]),
        ([call("f")], call("f"), [("equal", [])]),
        ([call("f")], [call("f") | {"id": 7}], [("changed", ["stray"])]),
        ([], [], []),
        ([call("f")], [], [("missing", [])]),
        ([], [1, {"name": 3}], [("extra", None), ("extra", None)]),
    ],
)
def test_compare_calls(gold, value, states):
    compared = compare_calls(gold, value)
    shown = [
        (call["state"], "json" not in call and [argument[0] for argument in call["arguments"]]) for call in compared
    ]
    assert shown == [(state, arguments if arguments is not None else False) for state, arguments in states]


def test_the_page_pairs_calls_as_the_figures_do():
    """Six equal arguments, not five from the single best pair first."""
    gold = [call("f", a=1, b=2, c=3), call("f", a=1, b=2, d=4, e=5)]
    value = [call("f", a=1, b=2, c=3, d=4), call("f", a=1, b=2, c=3)]
    states = [argument[0] for shown in compare_calls(gold, value) for argument in shown["arguments"]]
    assert states.count("equal") == 6
    scores = score(Output(Task(Row("x", "q", '[{"name": "f"}]', json.dumps(gold))), json.dumps(value), TAGS))
    assert scores["argument_recall"] == (6, 7)


@pytest.mark.parametrize(
    ("gold", "value", "lines"),
    [
        (
            {"filter": {"tags": ["a", "b"], "max": 5}},
            {"filter": {"tags": ["a", "c"], "min": 1}},
            [
                ["equal", "filter.tags[0]", '"a"', None],
                ["changed", "filter.tags[1]", '"c"', '"b"'],
                ["extra", "filter.min", "1", None],
                ["missing", "filter.max", None, "5"],
            ],
        ),
        # A missing element does not shift the elements after it.
        (
            {"x": [1, 2, 3]},
            {"x": [2.0, 3, 4]},
            [
                ["missing", "x[0]", None, "1"],
                ["equal", "x[0]", "2.0", None],
                ["equal", "x[1]", "3", None],
                ["extra", "x[2]", "4", None],
            ],
        ),
        ({"x": [1]}, {"x": [True]}, [["changed", "x[0]", "true", "1"]]),
        ({"x": [{"y": [1]}]}, {"x": [{"y": [2]}]}, [["changed", "x[0].y[0]", "2", "1"]]),
        ({"x": {"y": 1}}, {"x": [1]}, [["changed", "x", "[1]", '{"y": 1}']]),
        ({"x": {"y": 1}}, {"x": {"y": 1}}, [["equal", "x", '{"y": 1}', None]]),
        ({"x": {}}, {"x": {"a b": 1}}, [["extra", 'x["a b"]', "1", None]]),
        ({"a.b": 1}, {}, [["missing", '"a.b"', None, "1"]]),
        ({"x": []}, {"x": [None]}, [["extra", "x[0]", "null", None]]),
    ],
)
def test_nested_values_are_compared_leaf_by_leaf(gold, value, lines):
    (shown,) = compare_calls([call("f", **gold)], [call("f", **value)])
    assert shown["arguments"] == lines


def test_calls_in_another_order_are_compared_with_their_partners():
    gold = [call("f", x={"y": 1, "z": 1}), call("f", x={"y": 2, "z": 2})]
    value = [call("f", x={"y": 2, "z": 2}), call("f", x={"y": 1, "z": 3})]
    changed = [shown["arguments"] for shown in compare_calls(gold, value) if shown["state"] == "changed"]
    assert changed == [[["equal", "x.y", "1", None], ["changed", "x.z", "3", "1"]]]


def test_long_lists_are_compared_by_place():
    (shown,) = compare_calls([call("f", x=[0] * 2000)], [call("f", x=[1, *[0] * 2000])])
    states = [line[0] for line in shown["arguments"]]
    assert states == ["changed", *["equal"] * 1999, "extra"]


def zero_lines(**rates):
    return [{system: {"rate": values[place]} for system, values in rates.items()} for place in range(2)]


def test_a_system_at_0_in_all_lines_is_folded_away_unless_all_are():
    lines = zero_lines(raw=[0, 0], prompted=[0, 0.1], adapter=[1, 1])
    assert zero_systems(lines, SYSTEMS) == ["raw"]
    assert zero_systems(zero_lines(raw=[0, 0], prompted=[0, 0], adapter=[0, 0]), SYSTEMS) == []
    assert zero_systems([{"adapter": {"rate": 0.5}}], SYSTEMS) == []  # without figures is not at 0


def test_a_folded_system_has_its_figures_in_the_fold():
    report = make_report(6)
    for value in report["slices"][0]["values"]:
        value["figures"] = {"raw": rate(0, 6), "prompted": rate(0, 6), "adapter": rate(5, 6)}
    page = render_report(report)
    fold = page.partition("raw, prompted: 0% in every line</summary>")[2].partition("</details>")[0]
    assert fold.count(">0.0%<") == 2 and "83.3%" not in fold


def test_links_to_rows_hold_the_filters_in_their_address():
    report = json.loads(json.dumps(make_report(4)).replace("adapter", "a&b=c #1"))
    links = [parse_qs(address[1:]) for address in Page(render_report(report)).addresses if "=" in address]
    assert {"system": ["a&b=c #1"], "outcome": ["right"]} in links


def test_the_command_is_one_line_on_the_page():
    page = render_report(make_report(2))
    assert "<code>python evaluate.py --adapter &#39;my run&#39;</code>" in page


@pytest.mark.parametrize("value", [None, "f", 3, True])
def test_no_calls_to_compare(value):
    assert compare_calls([call("f")], value) is None


def test_compared_values_are_exact_texts():
    compared = compare_calls([call("f", x=12345678901234567891)], [call("f", x=12345678901234567890)])
    assert compared[0]["arguments"] == [["changed", "x", "12345678901234567890", "12345678901234567891"]]


@pytest.mark.parametrize(
    ("lost", "gained", "p", "answer"),
    [
        (2, 40, 1e-6, "Yes, it helped."),
        (40, 2, 1e-6, "No, it did harm."),
        (2, 4, 0.4, "No clear difference."),
        (0, 0, 1, "No clear difference."),
    ],
)
def test_verdict(lost, gained, p, answer):
    first = {"a": "prompted", "b": "adapter", "metric": "exact_match", "both": 8, "neither": 0, "p": p}
    first |= {"a_only": list(range(lost)), "b_only": list(range(gained))}
    shown = verdict([first, first | {"b": "constrained", "a_only": [], "b_only": []}])
    assert (shown["a"], shown["b"], shown["answer"]) == ("prompted", "adapter", answer)
    assert shown["rates"] == [100 * (8 + lost) / (8 + lost + gained), 100 * (8 + gained) / (8 + lost + gained)]


def test_outcomes_look_different():
    """Seventeen outcomes, fifteen of them bad: no two share fill and texture, and absent outcomes
    change nothing."""
    report = EMPTY | {
        "outcomes": [{"name": str(i), "title": str(i), "tone": "bad" if i else "good"} for i in range(16)]
    }
    looks = [(outcome["fill"], outcome["texture"]) for outcome in style_outcomes(report)]
    assert len(set(looks)) == 16
    counted = style_outcomes(report | {"outcome_counts": {"raw": {"9": 4, "unheard of": 1}}})
    assert [(outcome["fill"], outcome["texture"]) for outcome in counted[:16]] == looks and counted[16][
        "name"
    ] == "unheard of"
    bar = outcome_bar(counted, {"9": 3, "unheard of": 1})
    assert [(segment["index"], segment["x"], segment["width"]) for segment in bar] == [(9, 0, 75), (16, 75, 25)]


# ---- in a browser --------------------------------------------------------------------------------

in_browser = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(browser, tmp_path):
    """The page of 130 rows, one of them hostile, in a window of 1280 px. Its errors and requests
    are checked at the end."""
    report = make_report(130)
    report["rows"][7] |= {"query": f"needle {NASTY}", "tools": [{"name": NASTY, "parameters": NASTY}]}
    report["rows"][8]["outputs"]["adapter"]["text"] = "HAYSTACK " + "<i>" * 700_000
    report["rows"][9]["outputs"]["raw"] |= {
        "value": [{"name": NASTY, "arguments": {"__proto__": NASTY}}, 3],
        "text": NASTY,
        "fault": {"place": 5, "reason": NASTY},
    }
    # Broken beyond the part of a long text that is drawn first.
    report["rows"][11]["outputs"]["adapter"] |= {
        "text": "😀" * 30_000 + "Z" + "." * 30_000,
        "value": None,
        "fault": {"place": 60_000, "reason": "Expecting value"},
    }
    write_report(tmp_path / "report.html", report)
    browser.errors.clear()
    browser.requests.clear()
    browser.resize(1280)
    browser.use_media(prefers_color_scheme="light")
    browser.open(tmp_path / "report.html")
    yield browser
    assert browser.errors == []
    page_alone = {(tmp_path / "report.html").as_uri()}
    assert {address for address in browser.requests if not address.startswith(("data:", "about:"))} == page_alone


def shown(page):
    return page.run("document.querySelectorAll('#list details.row').length")


def ids(page, part="#list"):
    return page.run(f"[...document.querySelectorAll('{part} .id')].map((node) => node.textContent)")


def count(page):
    return page.run("document.getElementById('count').textContent")


def choose(page, control, value):
    page.run(
        f"(() => {{ const node = document.getElementById('{control}'); node.value = {json.dumps(value)};"
        "for (const kind of ['input', 'change']) node.dispatchEvent(new Event(kind, {bubbles: true})); })()"
    )


class TestInBrowser:
    pytestmark = in_browser

    def test_rows_come_as_asked_for(self, page):
        assert shown(page) == 50 and count(page) == "130 rows; the first 50 are shown"
        page.click("#more")
        assert shown(page) == 100
        page.click("#more")
        assert shown(page) == 130 and count(page) == "130 rows" and page.run("document.getElementById('more').hidden")

    def test_filters(self, page):
        counts = make_report(130)["outcome_counts"]
        choose(page, "outcome", "unparseable")
        assert count(page) == f"{counts['raw']['unparseable']} of 130 rows match; the first 50 are shown"
        choose(page, "system", "adapter")
        assert shown(page) == 0 and count(page) == "0 of 130 rows match"
        choose(page, "outcome", "not-good")
        assert shown(page) == counts["adapter"]["wrong_value"] > 5
        page.click(".filters button")
        page.wait_for("document.getElementById('count').textContent.startsWith('130 rows')")
        for words in ("NEEDLE </script>", "demo-0000003", "haystack"):
            choose(page, "text", words)
            page.wait_for("document.querySelectorAll('#list details.row').length == 1")
        choose(page, "system", "raw")  # the haystack is in another system's output
        assert shown(page) == 0

    def test_numbers_open_their_rows(self, page):
        gained = len(make_report(130)["pairs"][0]["b_only"])
        page.click("a[href='#flip=0']")
        assert count(page).startswith(f"{gained} of 130 rows match") and gained > 10
        page.click("a[href='#system=adapter&outcome=wrong_value']")
        assert (
            shown(page) == make_report(130)["outcome_counts"]["adapter"]["wrong_value"]
            and page.run("document.getElementById('flip').value") == ""
        )
        assert page.run("document.getElementById('rows').getBoundingClientRect().top") < 900
        page.click("g[data-link='#system=prompted&outcome=right']")
        assert page.run("document.getElementById('outcome').value") == "right"
        assert page.run("location.hash") == "#system=prompted&outcome=right"

    def test_a_row_opens_by_mouse_and_shows_differences(self, page):
        page.click("#text")
        # The click on the row takes the focus from the text field.
        page.send("Input.insertText", text="demo-0000004")
        page.wait_for("document.querySelectorAll('#list details.row').length == 1")
        page.click("#list details.row > summary")
        page.wait_for("document.querySelector('#list details.row .outputs .call.changed')")
        assert page.run("document.querySelector('.argument.extra').textContent") == "+seed: 4extra, gold has none"
        assert "Strict JSON fails at character 1 of 8, marked" in page.run(
            "document.querySelector('#list details.row').textContent"
        )
        page.click(".tools summary")
        page.wait_for("document.querySelector('.tools pre')?.textContent.includes('description')")

    def test_rows_open_by_keyboard(self, page):
        page.press("/", 191)
        page.press("j", 74)  # a letter of the search
        assert page.run("document.activeElement.value") == "j"
        page.run("document.activeElement.value = ''")
        page.run("document.querySelector('#list .line').focus()")
        page.press("j", 74)
        assert page.run("document.activeElement.textContent").startswith("demo-0000009")
        assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.press("k", 75)
        assert page.run("document.activeElement.textContent").startswith("demo-0000004")
        for key, code, is_open in (("Enter", 13, True), ("Enter", 13, False), (" ", 32, True)):
            page.press(key, code)
            page.wait_for(f"document.activeElement.parentNode.open === {json.dumps(is_open)}")
        page.wait_for("document.activeElement.parentNode.querySelector('.body')")

    def test_the_key_j_draws_the_rows_after_the_fiftieth(self, page):
        page.run("document.querySelectorAll('#list .line')[49].focus()")
        page.press("j", 74)
        assert shown(page) == 100
        assert page.run("[...document.querySelectorAll('#list .line')].indexOf(document.activeElement)") == 50

    def test_wrong_rows_are_first_and_three_are_on_the_first_screen(self, page):
        page.resize(1400, 900)
        assert ids(page, "#wrong")[:3] == ids(page)[:3] == ["demo-0000004", "demo-0000009", "demo-0000014"]
        assert page.run("document.querySelector('#wrong').getBoundingClientRect().bottom") < 900
        assert page.run("document.querySelector('#wrong .difference').textContent") == "extra seed: 4"
        choose(page, "sort", "file")
        assert ids(page)[:3] == ["demo-0000000", "demo-0000001", "demo-0000002"]

    def test_headings_sort_the_rows(self, page):
        for order in ("ascending", "descending", "none"):
            page.click("[data-key='id'] button")
            assert page.run("document.querySelector('[data-key=id]').ariaSort") == order
            assert ids(page)[0] == {"ascending": "demo-0000000", "descending": "demo-0000129"}.get(
                order, "demo-0000004"
            )
        choose(page, "sort", "-prompt")
        assert ids(page)[0] == "demo-0000129"

    def test_headings_sort_a_table_by_mouse_and_keyboard(self, page):
        column = "[...document.querySelectorAll('.headline tbody:first-of-type td:nth-child(3) .number')].map(cell => cell.textContent)"
        page.run("document.querySelectorAll('.headline thead button')[2].id = 'sorted'")
        before = page.run(column)
        page.click("#sorted")
        assert page.run(column) == sorted(before, key=lambda text: -float(text[:-1])) != before
        assert page.run("document.getElementById('sorted').parentNode.ariaSort") == "descending"
        page.run("document.getElementById('sorted').focus()")
        page.press("Enter", 13)
        assert page.run(column) == sorted(before, key=lambda text: float(text[:-1]))
        page.press("Enter", 13)
        assert page.run(column) == before

    def test_the_address_holds_the_filters_and_the_back_button_undoes_them(self, page, tmp_path):
        everything = ids(page)
        choose(page, "system", "adapter")
        choose(page, "outcome", "wrong_value")
        choose(page, "sort", "-id")
        wrong, address = ids(page), page.run("location.hash")
        assert len(wrong) == make_report(130)["outcome_counts"]["adapter"]["wrong_value"] > 20
        assert address == "#outcome=wrong_value&system=adapter&sort=-id"
        page.run("history.go(-3)")
        page.wait_for("document.getElementById('count').textContent.startsWith('130 rows')")
        assert ids(page) == everything and page.run("document.getElementById('sort').value") == ""
        page.open(tmp_path / "report.html", address)
        assert ids(page) == wrong
        assert page.run("document.getElementById('list').getBoundingClientRect().top") < 900

    def test_selected_rows_are_sent_as_an_address(self, page, tmp_path):
        page.click("#list .item:nth-child(2) .select")
        page.run("document.querySelector('#list .item:nth-child(5) .line').focus()")
        page.press("x", 88)
        assert shown(page) == 50
        page.click("#only")
        assert ids(page) == ["demo-0000009", "demo-0000024"]
        page.open(tmp_path / "report.html", page.run("location.hash"))
        assert ids(page) == ["demo-0000009", "demo-0000024"] and count(page) == "2 of 130 rows match"
        page.click(".filters button")
        page.wait_for("document.getElementById('count').textContent.startsWith('130 rows')")
        assert page.run("location.hash") == ""

    def test_an_address_of_another_report_filters_nothing_it_does_not_have(self, page, tmp_path):
        page.open(tmp_path / "report.html", "#system=gone&outcome=&flip=99&sort=x&%E0%A4%A=1")
        assert count(page).startswith("130 rows")

    def test_the_refused_character_is_marked(self, page):
        choose(page, "text", "demo-0000011")
        page.wait_for("document.querySelectorAll('#list details.row').length == 1")
        page.click("#list summary")
        page.wait_for("document.querySelector('#list .body')")
        marked = "[...document.querySelectorAll('#list pre > mark')].map(mark => mark.textContent)"
        assert page.run(marked) == ["I", "Z"]  # of "I cannot", and of the long text
        assert "at character 60,001 of 90,001, marked: Expecting value" in page.run(
            "document.querySelector('#list .body').textContent"
        )
        page.run("document.querySelector('#list .body button').click()")
        assert page.run(marked) == ["I", "Z"]
        lengths = page.run("[...document.querySelectorAll('#list pre')].map((pre) => pre.textContent.length)")
        assert 90_001 in lengths

    def test_the_command_is_copied(self, page):
        page.click(".copy")
        page.wait_for("document.querySelector('.command [role=status]').textContent == 'copied'")

    def test_hostile_rows_open(self, page):
        choose(page, "sort", "file")
        page.run(
            "document.querySelectorAll('#list details.row').forEach((row, index) => { row.open = [7, 8, 9].includes(index) })"
        )
        page.wait_for("document.querySelectorAll('.body').length == 3")
        assert page.run("document.querySelector('.query').textContent").startswith("needle </script><script>")
        assert page.run("document.querySelectorAll('img, script').length") == 2
        assert "__proto__" in page.run("document.querySelectorAll('.body')[2].textContent")
        assert (
            page.run("Math.max(...[...document.querySelectorAll('pre')].map((pre) => pre.textContent.length))")
            == 20_000
        )
        page.run("[...document.querySelectorAll('.body button')].forEach((button) => button.click())")
        assert (
            page.run("Math.max(...[...document.querySelectorAll('pre')].map((pre) => pre.textContent.length))")
            > 2_000_000
        )

    @pytest.mark.parametrize("width", [380, 600, 900, 1600])
    def test_no_window_is_too_narrow(self, page, width):
        page.resize(width)
        page.run(
            "document.querySelectorAll('#list details.row').forEach((row, index) => { if (index < 12) row.open = true })"
        )
        page.wait_for("document.querySelectorAll('.body').length == 12")
        page.run("document.querySelectorAll('details').forEach((inner) => { inner.open = true })")
        assert page.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0

    def test_dark_and_print(self, page):
        background = "getComputedStyle(document.body).backgroundColor"
        light = page.run(background)
        page.use_media(prefers_color_scheme="dark")
        assert page.run(background) != light
        page.use_media("print", prefers_color_scheme="dark")
        assert (
            page.run(background) == light
            and page.run("getComputedStyle(document.querySelector('.filters')).display") == "none"
        )

    def test_made_rows_are_shown_only_if_asked_for(self, page, tmp_path):
        write_report(tmp_path / "report.html", with_made_rows(make_report(30)))
        page.open(tmp_path / "report.html")
        assert count(page) == "30 rows" and not any("+" in row_id for row_id in ids(page))
        choose(page, "set", "no_call")
        assert count(page) == "5 rows" and all(row_id.endswith("+no_call") for row_id in ids(page))
        page.open(tmp_path / "report.html", page.run("location.hash"))
        assert count(page) == "5 rows"
        page.open(tmp_path / "report.html")
        page.click("#when-not-to-call a")
        assert ids(page) == ["demo-0000004+no_call"]
        page.click("#perturbed a[href='#flip=3']")  # lost, of whichever set
        assert ids(page) == ["demo-0000001+rename"]
        choose(page, "flip", "2")
        assert ids(page) == ["demo-0000002+rename", "demo-0000003+rename"]
        page.click(".filters button")
        page.wait_for("document.getElementById('count').textContent == '30 rows'")
        for width in (380, 1280):
            page.resize(width)
            assert page.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
