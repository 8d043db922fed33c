"""The model card: names from other people's files are literal, and an evaluation adds its table."""

import json
from html.parser import HTMLParser

import markdown
import pytest
from huggingface_hub import ModelCard

from eval_utils.card_figures import SECTION, evaluation_section, rows_name, update_card
from eval_utils.model_card import write_card
from run_utils.files import file_hash

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
    figures = {"num_examples": 2, "exact_match": rate}
    evaluation = {"systems": {name: figures}, "quantization": name, "rows": name, "data": name}
    write_card(tmp_path, "An adapter.", "", ARGS, {}, evaluation=evaluation)
    _, page = rendered(tmp_path)
    assert page.rows[-1] == [f"{' '.join(name.split())}, 2 rows", "", "50.0 (10.0–90.0)", "", ""]
    assert page.rows[-2][0] == f"{' '.join(name.split())}, % (95 % interval)"


def test_fields_of_other_types_are_shown_as_they_are(tmp_path):
    args = ARGS | {"dataset_revision": 5, "lora_target_modules": 5, "quantization": [1]}
    write_card(tmp_path, "An adapter.", "", args, {"gpus": 5, "base": 5, "data": [1], "mixed_precision": {"a": 1}})
    _, page = rendered(tmp_path)
    rows = dict(row for row in page.rows if row != ["", ""])
    assert rows["base"] == "5" and rows["rows"] == "[1] at 5" and rows["lora_target_modules"] == "5"


RATE = {"k": 1, "n": 2, "rate": 0.5, "low": 0.1, "high": 0.9}


@pytest.mark.parametrize(
    ("args", "name"),
    [
        ({"dataset_name": "some/rows", "eval_fraction": 0.05}, "held-out rows of some/rows"),
        ({"dataset_name": "/home/me/rows.jsonl"}, "held-out rows of rows.jsonl"),
        ({"dataset_name": "/home/me/rows.jsonl", "eval_fraction": 1}, "rows of rows.jsonl"),
        ({"dataset_name": "some/rows", "eval_dataset_name": "../valid.jsonl"}, "rows of valid.jsonl"),
    ],
)
def test_rows_are_named_by_their_own_file_without_its_folder(args, name):
    assert rows_name(args) == name


def test_a_card_names_the_rows_of_its_losses_and_of_its_figures(tmp_path):
    args = ARGS | {"eval_dataset_name": "data/valid.jsonl"}
    figures = {"num_examples": 2, "exact_match": RATE}
    evaluation = {"systems": {"adapter": figures, "fewshot": figures}, "shots": 2, "rows": "rows of valid.jsonl"}
    write_card(
        tmp_path, "An adapter.", "", args, {}, curves=[(1, 0.5, 0.25)], evaluation=evaluation | {"data": "valid.jsonl"}
    )
    card, page = rendered(tmp_path)
    assert ["step", "training loss", "loss on rows of valid.jsonl"] in page.rows and "held-out" not in card.text
    assert "2 examples in fewshot" in card.text and "fewshot: base model as prompted, after examples" in card.text
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.dataset_type) == ("rows of valid.jsonl", "valid.jsonl")
    write_card(tmp_path, "An adapter.", "", args, {"eval_loss": 0.25})
    assert "Loss on rows of valid.jsonl at this step: 0.2500." in rendered(tmp_path)[0].text


@pytest.fixture
def evaluated(tmp_path):
    """The folder of an evaluation beside its adapter, whose card has no figures yet."""
    adapter, folder = tmp_path / "run" / "adapter", tmp_path / "run" / "evaluation"
    for path in (adapter, folder):
        path.mkdir(parents=True)
        (path / "args.yaml").write_text("dataset_name: rows.jsonl\n")
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    write_card(adapter, "An adapter.", "", ARGS, {})
    figures = {"num_examples": 2, "exact_match": RATE}
    (folder / "metrics.json").write_text(json.dumps({"systems": {"adapter": figures}}))
    sha256 = file_hash(adapter / "adapter_model.safetensors")
    (folder / "environment.json").write_text(json.dumps({"adapter_sha256": sha256}))
    return folder


def card_of(folder):
    return folder.parent / "adapter" / "README.md"


def read_bytes(folder):
    return {path: path.read_bytes() for path in folder.parent.rglob("*") if path.is_file()}


def test_an_evaluation_changes_its_own_section_of_the_card_alone(evaluated):
    card = card_of(evaluated)
    edited = b"My notes\r\n\r\n" + card.read_bytes() + "\r\nBy me: \u00fc\r\n".encode()
    card.write_bytes(edited)
    files = read_bytes(evaluated)
    update_card(evaluated, "where/it/was/adapter")
    text, start, end = card.read_bytes(), *(mark.encode() for mark in SECTION)
    assert b"| adapter, 2 rows |  | 50.0 (10.0" in text and b"held-out rows of rows.jsonl" in text
    assert text.split(start)[0] == edited.split(start)[0] and text.split(end)[1] == edited.split(end)[1]
    assert read_bytes(evaluated) == files | {card: text}
    update_card(evaluated, "adapter")  # for the second time
    assert card.read_bytes() == text
    metrics = (evaluated / "metrics.json").read_text()
    (evaluated / "metrics.json").write_text(metrics.replace("0.5", "0.75"))
    update_card(evaluated, "adapter")
    assert card.read_bytes() == text.replace(b"50.0 (", b"75.0 (")


def test_the_card_says_how_often_a_tool_is_called_if_none_is_right(evaluated):
    metrics = json.loads((evaluated / "metrics.json").read_text())
    metrics["made"] = {
        "no_call": {"systems": {"prompted": {"over_call": RATE | {"n": 7}}, "adapter": {"over_call": RATE}}}
    }
    (evaluated / "metrics.json").write_text(json.dumps(metrics))
    update_card(evaluated, "adapter")
    interval = "50.0 % (10.0–90.0)"
    text = card_of(evaluated).read_text(encoding="utf-8")
    assert "With the right tool off the list of 7 of these rows, a tool is still called:" in text
    assert f"\nprompted in {interval}, adapter in {interval}." in text


def test_the_card_of_an_older_adapter_gets_the_figures(evaluated):
    card = card_of(evaluated)
    text = card.read_text()
    for mark in SECTION:
        text = text.replace(f"{mark}\n\n", "").replace(f"\n\n{mark}", "")
    assert "-->" not in text
    card.write_text(text)
    update_card(evaluated, "adapter")
    assert "| adapter, 2 rows |" in card.read_text() and SECTION[1] in card.read_text()


def change_weights(folder):
    (folder.parent / "adapter" / "adapter_model.safetensors").write_bytes(b"of a later step")


def change_rows(folder):
    (folder / "args.yaml").write_text("dataset_name: other.jsonl\n")


def remove_section(folder):
    card_of(folder).write_text("My own card")


def remove_end(folder):
    card_of(folder).write_text(card_of(folder).read_text().replace(SECTION[1], ""))


def link_card(folder):
    card_of(folder).rename(folder.parent / "blob")
    card_of(folder).symlink_to("../blob")


def remove_adapter(folder):
    for path in (folder.parent / "adapter").iterdir():
        path.unlink()


@pytest.mark.parametrize("change", [change_weights, change_rows, remove_section, remove_end, link_card, remove_adapter])
def test_a_card_of_another_adapter_or_of_the_users_own_is_left_alone(evaluated, change, capsys):
    change(evaluated)
    files = read_bytes(evaluated)
    update_card(evaluated, "adapter")
    assert read_bytes(evaluated) == files and capsys.readouterr() == ("", "")


def test_an_evaluation_in_another_folder_changes_no_card(evaluated):
    other = evaluated.rename(evaluated.with_name("evaluation_unseen"))
    files = read_bytes(other)
    update_card(other, "adapter")
    assert read_bytes(other) == files


def block_writing(card):
    card.with_name("README.md.incomplete").mkdir()  # as in a folder that cannot be written


def break_text(card):
    card.write_bytes(card.read_bytes() + b"\xff")


@pytest.mark.parametrize("fault", [block_writing, break_text])
def test_a_card_that_cannot_be_written_is_one_line(evaluated, fault, capsys):
    card = card_of(evaluated)
    fault(card)
    text = card.read_bytes()
    update_card(evaluated, "adapter")
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"The figures are not in {card}: ") and err.count("\n") == 1
    assert card.read_bytes() == text


def test_a_name_in_the_figures_cannot_end_their_section():
    figures = {"systems": {SECTION[1]: {"num_examples": SECTION[1]}}, "rows": SECTION[1], "data": ""}
    assert evaluation_section(figures).count(SECTION[1]) == 1


def test_what_changed_the_training_is_named(tmp_path):
    plain = {"optim": "adamw_torch_fused", "loss_mask": "completion_only", "no_call_fraction": 0.0}
    changed = {"optim": "adamw_torch", "loss_mask": "values_only", "no_call_fraction": 0.1, "augment": ["rename", "shuffle"],
               "init_adapter": "/home/me/first/adapter"}  # fmt: skip
    for args, cells in (
        (plain, {}),
        (changed, changed | {"no_call_fraction": "0.1", "augment": "rename, shuffle", "init_adapter": "adapter"}),
    ):
        write_card(tmp_path, "what", "loading", ARGS | args, {})
        _, page = rendered(tmp_path)
        assert {name: value for name, value in page.rows[1:] if name in changed} == cells
