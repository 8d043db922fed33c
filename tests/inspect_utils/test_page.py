"""inspection.html: all counts, rows within a size, hostile texts as texts, and the page in a
browser."""

import copy
import json
import re

import pytest
from browser import CHROMIUM, Browser

from inspect_utils.page import MOST_BYTES, draw_histogram, render_page, row_data, write_page

NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;<!--\ud800\u2028\0{{ 7*7 }}"
TOOLS = json.dumps([{"name": "weather", "parameters": {"city": {"type": "str"}}}])
MEMORY = {"base": 2.5, "trained": 1.0, "activations": 0.5, "logits": 1.0, "peak": 5.0, "tokens": 900, "supervised": 140}
TIME = {"tokens_per_second": 870.2, "mfu": 0.013, "limit": "launches", "step_seconds": 3.6, "training_hours": 7.1,
        "evaluation_hours": 0.4, "hours": 7.5}  # fmt: skip
ESTIMATE = {
    "settings": "base in NF4", "memory": MEMORY, "steps": 7000, "steps_per_epoch": 7000, "tokens_per_epoch": 22_000_000,
    "evaluations": 71, "notes": ["computed, not measured"], "lines": ["a line"],
    "gpus": [
        {"name": "h100", "memory_gib": 79.6, "fits": True, "time": TIME},
        {"name": "l4", "memory_gib": 22.5, "fits": False, "time": None},
    ],
}  # fmt: skip


def make_row(index, findings=(), **fields):
    row = {
        "id": f"row-{index}", "part": "eval" if index % 10 == 0 else "train", "query": f"Weather in town {index}?",
        "tools": TOOLS, "answers": '[{"name": "weather", "arguments": {"city": "Rome"}}]', "words": "",
        "tokens": 100 + index, "findings": list(findings),
    }  # fmt: skip
    return row | fields


def make_inspection(num_rows=120):
    """An inspection of 60,000 rows, with two findings."""
    rows = [make_row(index, ["wrong_type"] if index in (70, 80) else []) for index in range(num_rows)]
    items = [{"id": f"row-{index}", "detail": f"weather.city: {index} is not of type 'string'"} for index in (70, 80)]
    left_out = [{"id": f"line {line}", "detail": "broken JSON"} for line in range(7)]
    finding = {"severity": "error", "advice": "Correct it.", "unit": "row"}
    return {
        "version": 1, "title": "rows.jsonl", "settings": {"seed": 42, "max_train_steps": None}, "layouts": {"xLAM": 60_000},
        "notes": {"a note": 3},
        "counts": dict.fromkeys(("records", "valid", "bad", "repeats", "train", "eval", "in_neither", "refused", "too_long",
                                 "without_calls"), 59_321),
        "verdict": {"go_on": False, "line": "Do not go on yet: a reason.", "reasons": ["a reason", "another one"]},
        "findings": [
            finding | {"name": "broken_json", "title": "Broken JSON", "count": 1234, "items": left_out},
            finding | {"name": "wrong_type", "title": "Of another type", "count": 2, "items": items},
        ],
        "distributions": [{"name": "calls", "title": "Calls a row", "values": [["0", 0], ["1", 57_123]]}, {"name": "none", "title": "None", "values": []}],
        "overlap": {"eval_rows": 3000, "same_query": 1, "near_repeats": 2, "tools_all_seen": 3, "tools_some_unseen": 4, "tools_none_seen": 5},
        "tools": {"offered": 3673, "called": 3600, "in_one_row": 12, "unseen_in_training": 7},
        "lengths": {
            "limit": 1024, "max": 1500, "mean": 310.5, "quantiles": [["50 %", 300], ["100 %", 1500]],
            "histogram": {"edges": [0, 500, 1000, 1500], "train": [10, 0, 30], "eval": [10, 0, 0]},
            "limits": [
                {"max_seq_length": size, "lost": 4321, "share": 0.072, "is_set": size == 1024} for size in (512, 1024, 2048)
            ],
            "completion": {"mean": 65.2, "max": 410},
        },
        "proof": {"rows": 59_000, "exact": 58_999, "changed": 1, "ids": ["row-5"], "end_token": "<|endoftext|>"},
        "training": {"rows": 57_000, "steps_per_epoch": 7125, "steps": 7125, "epochs": 1.0, "global_batch": 8, "tokens_per_epoch": 22_572_000,
                     "supervised_per_epoch": 4_000_000, "tokens_per_step": 3168.0, "longest_step": 5006},
        "examples": [{"id": "row-1", "part": "train", "tokens": [["Weather?\n", 0.0], ["[{", 1.0], ["<|end|>", 0.5]]}],
        "made": ["a line on made rows"], "rows": rows, "rows_left_out": 59_321 - num_rows, "estimate": copy.deepcopy(ESTIMATE),
    }  # fmt: skip


def words(page):
    """The page's text without its styles, scripts and tags."""
    page = re.sub(r"(?s)<(style|script).*?</\1>", " ", page)
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


def test_all_counts_are_on_the_page():
    text = words(render_page(make_inspection()))
    for part in (
        "Do not go on yet: a reason.", "another one", "1,234 rows", "line 6 broken JSON", "2 more", "57,123",
        "3,673", "58,999 of 59,000 rows", "row-5", "7.2%", "22,572,000", "5.0 GiB", "870", "7.5 h", "24 min", "does not fit",
        "time is not computed", "a line on made rows", "120 of 59,321 valid rows", "drawn by",
    ):  # fmt: skip
        assert part in text, part
    assert text.count("a reason") == 1  # the line has it already


def test_without_tokenizer_evaluation_and_estimate():
    inspection = make_inspection(0) | dict.fromkeys(("lengths", "proof", "training", "overlap", "estimate"))
    inspection |= {"examples": [], "findings": [], "rows_left_out": 0}
    text = words(render_page(inspection))
    assert "No findings." in text and "out of reach" in text and "There are no valid rows." in text
    only_lines = render_page(make_inspection() | {"estimate": {"lines": ["not computed: no such GPU"]}})
    assert "not computed: no such GPU" in words(only_lines)


def test_hostile_texts_stay_texts(tmp_path):
    """In every place of a data set's texts."""

    def soiled(value):
        if isinstance(value, str) and value not in ("train", "eval", "error", "wrong_type", "broken_json", "launches"):
            return value + NASTY
        if isinstance(value, list):
            return [soiled(item) for item in value]
        return {key: soiled(item) for key, item in value.items()} if isinstance(value, dict) else value

    write_page(tmp_path / "page.html", soiled(make_inspection(20)))
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<script") == 2 and "<img" not in page and "alert(1)" in page and "49" not in words(page)[:300]
    data = json.loads(re.search(r'(?s)<script type="application/json" id="data">(.*?)</script>', page)[1])
    assert data["rows"][0]["query"].endswith(NASTY)


def test_rows_with_findings_come_first_and_the_size_is_bounded():
    inspection = make_inspection()
    long = "x" * 15_000
    inspection["rows"] = [make_row(index, query=f"{index} {long}") for index in range(1900)]
    inspection["rows"] += [make_row(index, ["wrong_type"]) for index in range(1900, 2000)]
    data = row_data(inspection)
    assert 500 < len(data["rows"]) < 700 and data["counts"] == {"wrong_type": 100}
    assert [row["findings"] for row in data["rows"][:101]] == [["wrong_type"]] * 100 + [[]]
    page = render_page(inspection)
    assert MOST_BYTES * 0.9 < len(page.encode()) < 10e6
    assert f"{len(data['rows'])} of {59_201 + 2000 - 1920 + 1920:,} valid rows" in words(page)
    # One tool in all rows is held once, and a text of any length is cut.
    assert len(data["tools"]) == 1
    inspection["rows"] = [make_row(0, query="y" * 10_000_000)]
    assert len(row_data(inspection)["rows"][0]["query"]) < 21_000


def test_the_histogram_has_all_rows_and_lines():
    drawing = draw_histogram(make_inspection()["lengths"])
    assert [(bar["train_height"] + bar["eval_height"]) for bar in drawing["bars"]] == pytest.approx([200 / 3, 0, 100])
    assert [line["max_seq_length"] for line in drawing["lines"]] == [512, 1024]  # 2,048 is beyond the longest row
    assert drawing["lines"][0]["x"] == pytest.approx(100 * 512 / 1500)
    crowded = {"max_seq_length": 520, "lost": 1, "share": 0.1, "is_set": False}
    lengths = make_inspection()["lengths"]
    lengths["limits"].insert(1, crowded)
    assert [line["level"] for line in draw_histogram(lengths)["lines"]] == [0, 1, 0]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")
class TestInBrowser:
    @pytest.fixture
    def page(self, browser, tmp_path):
        inspection = make_inspection()
        inspection["rows"][7] |= {"query": f"needle {NASTY}", "tools": json.dumps([{"name": NASTY}]), "answers": NASTY}
        inspection["examples"][0]["tokens"].insert(0, [NASTY, 0.0])
        write_page(tmp_path / "inspection.html", inspection)
        browser.errors.clear()
        browser.requests.clear()
        browser.resize(1280)
        browser.open(tmp_path / "inspection.html")
        yield browser
        assert browser.errors == []
        own = {(tmp_path / "inspection.html").as_uri()}
        assert {url.split("#")[0] for url in browser.requests if not url.startswith(("data:", "about:"))} == own

    def count(self, page):
        return page.run("document.getElementById('count').textContent")

    def choose(self, page, control, value):
        page.run(
            f"(() => {{ const node = document.getElementById('{control}'); node.value = {json.dumps(value)};"
            "for (const kind of ['input', 'change']) node.dispatchEvent(new Event(kind, {bubbles: true})); })()"
        )

    def test_rows_are_searched_filtered_and_ordered(self, page):
        assert self.count(page) == "120 rows; the first 50 are shown"
        ids = "[...document.querySelectorAll('#list .id')].map((node) => node.textContent)"
        assert page.run(ids)[:3] == ["row-70", "row-80", "row-0"]
        self.choose(page, "part", "eval")
        assert self.count(page) == "12 of 120 rows match"
        self.choose(page, "sort", "-tokens")
        assert page.run(ids)[0] == "row-110"
        page.click(".filters button")
        page.wait_for("document.getElementById('count').textContent.startsWith('120 rows')")
        self.choose(page, "text", "NEEDLE </script>")
        page.wait_for("document.querySelectorAll('#list details.row').length == 1")
        page.click("#list details.row summary")
        page.wait_for("document.querySelector('#list .body')")
        page.click("#list .tools summary")
        page.wait_for("document.querySelector('#list .tools pre')")
        assert "alert(1)" in page.run("document.querySelector('#list .body').textContent")
        page.click(".filters button")
        page.wait_for("document.getElementById('count').textContent.startsWith('120 rows')")
        page.click("#more")
        assert page.run(f"{ids}.length") == 100

    def test_a_findings_count_opens_its_rows(self, page):
        page.click("table.findings a")
        assert self.count(page) == "2 of 120 rows match"
        assert page.run("location.hash") == "#finding=wrong_type"
        page.click("#list details.row summary")
        page.wait_for("document.querySelector('#list .body')")
        assert "70 is not of type 'string'" in page.run("document.querySelector('#list .body').textContent")

    @pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (375, "dark")])
    def test_nothing_is_wider_than_the_window(self, page, width, scheme):
        page.resize(width)
        page.use_media(prefers_color_scheme=scheme)
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        assert page.run("document.querySelectorAll('.histogram rect').length") == 4  # two bars, train and eval
        assert page.run("document.querySelectorAll('.token.supervised').length") == 2
