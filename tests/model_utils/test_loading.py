"""A base is whole and finite, or refused in one line."""

import json
import math
import shutil
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from conftest import TAGS
from safetensors.torch import load_file, save_file

from data_utils.batching import tokenize_rows
from data_utils.sources import load_rows
from model_utils.generation import generate
from model_utils.loading import ModelSource, choose_attention, load_base_model, load_tokenizer
from model_utils.model_facts import num_positions
from run_utils.errors import UserError

NORM = "model.layers.1.input_layernorm.weight"


@pytest.fixture
def load_edited(tiny_model, tmp_path):
    """`load_edited(edit, **config)`: the tiny model with edited tensors and configuration."""

    def load(edit=lambda tensors: tensors, generation=None, **config):
        folder = tmp_path / "base"
        shutil.copytree(tiny_model, folder)
        save_file(edit(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        if generation:
            (folder / "generation_config.json").write_text(json.dumps(generation))
        return load_base_model(ModelSource(str(folder)), Accelerator(cpu=True))

    return load


def without(name):
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def renamed(tensors):
    return {name.replace("self_attn", "attention"): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("edit", "config", "reason"),
    [
        (without(NORM), {}, f"lacks 1 of its model's weights, {NORM} first"),
        (without("model.embed_tokens.weight"), {}, "lacks "),
        (renamed, {}, "lacks 12 of its model's weights, model.layers.0.self_attn.k_norm.weight first"),
        (
            dict,
            {"num_hidden_layers": 3, "layer_types": None},
            "lacks 11 of its model's weights, model.layers.2.input_layernorm.weight first",
        ),
        (dict, {"tie_word_embeddings": False}, "lacks 1 of its model's weights, lm_head.weight first"),
    ],
)
def test_a_base_without_some_of_its_weights_is_refused_by_name(load_edited, capfd, edit, config, reason):
    with pytest.raises(UserError) as caught:
        load_edited(edit, **config)
    assert reason in str(caught.value) and "\n" not in str(caught.value)
    assert "MISSING" not in capfd.readouterr().err  # transformers' long report


def test_a_tied_head_and_unused_weights_are_accepted(load_edited):
    model = load_edited(lambda tensors: tensors | {"mtp.weight": torch.ones(3)})
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_base_with_logits_that_are_not_finite_is_refused_early(load_edited, tiny_model, rows_file, value):
    tokenizer, rows = load_tokenizer(ModelSource(tiny_model)), load_rows(str(rows_file))[0][:3]
    model = load_edited(lambda tensors: tensors | {NORM: torch.full_like(tensors[NORM], value)})
    with pytest.raises(UserError, match="^the base's logits are not finite on a text of"):
        choose_attention(model, "auto", "tiny", tokenize_rows(tokenizer, TAGS, rows, 4096).examples, False)
    with pytest.raises(UserError, match="^the base's logits are not finite on a text of"):
        list(generate(model, tokenizer, TAGS, [TAGS.render(rows[0].query, rows[0].tools)], 4, batch_tokens=8192))


@pytest.mark.parametrize("ends", [{"": None}, ["</s>"], 1.5])
def test_a_base_whose_end_tokens_are_no_numbers_is_refused_by_name(load_edited, ends):
    with pytest.raises(UserError, match="eos_token_id must be a token's number or a list of them"):
        load_edited(generation={"eos_token_id": ends})


@pytest.mark.parametrize(
    "rope", [{"factor": "x"}, {"factor": math.inf}, {"factor": [2]}, {"original_max_position_embeddings": "x"}]
)
def test_positions_of_other_types_are_refused_by_name(rope):
    with pytest.raises(UserError, match="rope_parameters of other types"):
        num_positions(
            SimpleNamespace(
                get_text_config=lambda decoder: SimpleNamespace(max_position_embeddings=9, rope_parameters=rope)
            )
        )


def test_a_tokenizer_that_loads_and_cannot_encode_is_refused_by_name(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "base")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": []}))
    with pytest.raises(UserError, match="cannot load a tokenizer from "):
        load_tokenizer(ModelSource(str(folder)))
