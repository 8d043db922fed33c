"""An exported tokenizer is checked as it is on disk."""

import json
import shutil

import huggingface_hub.constants
import pytest
from transformers import AutoTokenizer

from data_utils.chat import chat_template, response_template
from data_utils.example_rows import difficult_rows, example_rows
from data_utils.prompt import PROMPT_FORMATS
from data_utils.tokens import encode_prompts
from data_utils.tool_formats import openai_tools
from model_utils.export_folder import check_tokenizer, save_tokenizer
from model_utils.loading import ModelSource, load_tokenizer
from run_utils.errors import UserError

TAGS = PROMPT_FORMATS["tags-1"]
CONFIG = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory):
    """A SentencePiece model of 600 pieces, without a tokenizer_config.json."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "text.txt").write_text("\n".join(row.query + row.tools for row in example_rows()))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "tokenizer"), model_type="bpe", vocab_size=600,
        byte_fallback=True, minloglevel=2,
    )  # fmt: skip
    return folder / "tokenizer.model"


@pytest.fixture
def base(sentencepiece_model, tmp_path):
    """`base(**config)`: a folder with the SentencePiece model and this tokenizer_config.json."""

    def make(folder=tmp_path / "base", **config):
        folder.mkdir(parents=True)
        shutil.copy(sentencepiece_model, folder)
        (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG | config))
        return folder

    return make


def prompts(tokenizer):
    rows = example_rows() + difficult_rows(tokenizer.all_special_tokens, 40)
    return [TAGS.render(row.query, row.tools) for row in rows]


def save(source, folder):
    """The tokenizer of a source, as export.py saves it in a folder."""
    tokenizer = load_tokenizer(source)
    tokenizer.chat_template = chat_template(tokenizer, "tags-1")
    tokenizer.response_template = response_template(tokenizer)
    folder.mkdir()
    save_tokenizer(tokenizer, source, folder)
    return tokenizer


def written(folder):
    return json.loads((folder / "tokenizer_config.json").read_text())


@pytest.mark.parametrize("legacy", [{"legacy": True}, {"legacy": False}, {}])
def test_a_chat_prompt_has_the_ids_of_training_with_each_kind_of_llama_tokenizer(base, tmp_path, legacy):
    source, folder = ModelSource(str(base(**legacy))), tmp_path / "export"
    tokenizer = save(source, folder)
    check_tokenizer(tokenizer, source, folder, prompts(tokenizer))
    served = AutoTokenizer.from_pretrained(folder)
    assert served.legacy == legacy.get("legacy", False) and written(folder).items() >= legacy.items()
    for row in example_rows():
        messages, tools = [{"role": "user", "content": row.query}], openai_tools(json.loads(row.tools))
        ids = served.apply_chat_template(messages, tools=tools, add_generation_prompt=True, return_dict=False)
        (trained,) = encode_prompts(tokenizer, [TAGS.render(row.query, row.tools)])
        assert ids == trained.tolist()


def test_a_lost_key_that_changes_the_ids_is_refused_by_name(base, tmp_path):
    source, folder = ModelSource(str(base(legacy=True))), tmp_path / "export"
    tokenizer = save(source, folder)
    config = written(folder)
    del config["legacy"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"the token ids of \d+ of 48 prompts; .* that differ: legacy. Nothing is exp"):
        check_tokenizer(tokenizer, source, folder, prompts(tokenizer))


@pytest.mark.parametrize(
    ("name", "value", "fault"), [("eos_token", "<unk>", "eos_token_id"), ("response_template", None, "response_templ")]
)
def test_another_end_token_or_template_is_refused_by_name(base, tmp_path, name, value, fault):
    source, folder = ModelSource(str(base())), tmp_path / "export"
    tokenizer = save(source, folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(written(folder) | {name: value}))
    with pytest.raises(UserError, match=f"the tokenizer differs in {fault}"):
        check_tokenizer(tokenizer, source, folder, prompts(tokenizer))


@pytest.mark.parametrize("adds_bos", [True, False])
def test_the_config_has_whether_a_bos_is_added(base, tmp_path, adds_bos):
    """For llama.cpp's converter. transformers reads it from tokenizer.json."""
    save(ModelSource(str(base(add_bos_token=adds_bos))), tmp_path / "export")
    assert written(tmp_path / "export")["add_bos_token"] == adds_bos
    assert (AutoTokenizer.from_pretrained(tmp_path / "export")("a").input_ids[0] == 1) == adds_bos


def test_the_sentencepiece_model_is_exported_with_the_tokens_added_to_it(base, sentencepiece_model, tmp_path):
    """llama.cpp's converter reads tokenizer.model and added_tokens_decoder."""
    folder, added = base(), tmp_path / "added"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save_pretrained(added)
    shutil.copy(sentencepiece_model, added)
    save(ModelSource(str(added)), tmp_path / "export")
    assert (tmp_path / "export" / "tokenizer.model").read_bytes() == sentencepiece_model.read_bytes()
    assert written(tmp_path / "export")["added_tokens_decoder"]["600"]["content"] == "<tool>"
    assert AutoTokenizer.from_pretrained(tmp_path / "export")("<tool>").input_ids[-1] == 600


def test_the_sentencepiece_model_of_a_base_on_the_hub_is_exported(base, sentencepiece_model, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--you--base"
    snapshot = base(repository / "snapshots" / ("a" * 40), legacy=True)
    (snapshot / "config.json").write_text('{"model_type": "llama"}')
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    source, folder = ModelSource("you/base"), tmp_path / "export"
    tokenizer = save(source, folder)
    check_tokenizer(tokenizer, source, folder, prompts(tokenizer))
    assert (folder / "tokenizer.model").read_bytes() == sentencepiece_model.read_bytes()
    assert written(folder)["legacy"] is True and str(tmp_path) not in (folder / "tokenizer_config.json").read_text()


def test_a_base_without_sentencepiece_has_no_such_file(tiny_model, tmp_path):
    save(ModelSource(str(tiny_model)), tmp_path / "export")
    assert not (tmp_path / "export" / "tokenizer.model").exists()
    assert "added_tokens_decoder" not in written(tmp_path / "export")
