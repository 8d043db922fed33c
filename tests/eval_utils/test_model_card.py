"""The model card shows names from other people's files literally."""

from html.parser import HTMLParser

import markdown
import pytest
from huggingface_hub import ModelCard

from eval_utils.model_card import write_card

ARGS = {"model_name_or_path": "some/base", "dataset_name": "some/rows", "prompt_format": "tags-1"}
HOSTILE = [
    "a | b || c",
    "a\n| x | y |\n\n# heading\u2028next",
    "<img src=x onerror=f()> & &lt;b>",
    "`` `code | x` ``",
    "[link](https://example.com) ![image](https://example.com/i.png)",
    "ends in a backslash \\",
    "\\| *starred* \\` {{ title }}",
]


class Page(HTMLParser):
    """The cells of a page's first table, row by row, its headings, and the names of all tags."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.headings, self.tags = [], [], set()
        self.texts = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th", "h1"):
            self.texts = self.rows[-1] if tag != "h1" else self.headings
            self.texts.append("")

    def handle_endtag(self, tag):
        if tag in ("td", "th", "h1"):
            self.texts = None

    def handle_data(self, data):
        if self.texts is not None:
            self.texts[-1] += data


def rendered(folder):
    card = ModelCard.load(folder / "README.md")
    return card, Page(markdown.markdown(card.text, extensions=["tables", "fenced_code"]))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_text_in_its_cell(tmp_path, name):
    """Rendered by Python-Markdown: the table has rows of two cells, with the name unchanged except
    for line breaks."""
    environment = {"base": name, "data": name, "gpus": [name], "torch": name, "mixed_precision": name}
    args = ARGS | {"lora_target_modules": [name, name], "learning_rate": name}
    write_card(tmp_path, "An adapter.", "", args, environment)
    card, page = rendered(tmp_path)
    shown = " ".join(name.split())
    rows = dict(row for row in page.rows if row != ["", ""])
    assert (rows["base"], rows["rows"], rows["learning_rate"]) == (shown, shown, shown)
    assert rows["lora_target_modules"] == f"{shown}, {shown}" and rows["trained on"].endswith(f", {shown}")
    assert page.headings == [f"{shown.split('/')[-1]} that calls tools"] and card.data.model_name == page.headings[0]
    assert page.tags <= {"h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td", "pre", "code", "ul", "li"}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_system_of_an_evaluation_is_text_in_its_cell(tmp_path, name):
    rate = {"k": 1, "n": 2, "rate": 0.5, "low": 0.1, "high": 0.9}
    evaluation = {"systems": {name: {"num_examples": 2, "exact_match": rate}}, "quantization": name}
    write_card(tmp_path, "An adapter.", "", ARGS, {}, evaluation=evaluation)
    _, page = rendered(tmp_path)
    assert page.rows[-1] == [f"{' '.join(name.split())}, 2 rows", "", "50.0 (10.0–90.0)", "", ""]


def test_fields_of_other_types_are_shown_as_they_are(tmp_path):
    args = ARGS | {"dataset_revision": 5, "lora_target_modules": 5, "quantization": [1]}
    write_card(tmp_path, "An adapter.", "", args, {"gpus": 5, "base": 5, "data": [1], "mixed_precision": {"a": 1}})
    _, page = rendered(tmp_path)
    rows = dict(row for row in page.rows if row != ["", ""])
    assert rows["base"] == "5" and rows["rows"] == "[1] at 5" and rows["lora_target_modules"] == "5"
