"""Passed checks are kept: for the same model, code and sizes, and for nothing else."""

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from data_utils.batching import Example
from model_utils import generation, kept_checks
from model_utils.adapters import add_lora
from model_utils.generation import choose_engine
from model_utils.kept_checks import check_key, has_passed, keep_pass
from model_utils.loading import ModelSource, choose_attention, load_base_model
from model_utils.merging import merge_adapter, merge_again
from run_utils.errors import UserError

PROMPTS = [np.arange(20, dtype=np.int32), np.arange(30, dtype=np.int32)]


@pytest.fixture
def model(tiny_model):
    return load_base_model(ModelSource(tiny_model), Accelerator(cpu=True))


@pytest.fixture
def num_passes(model):
    """The number of forward passes since the last call."""
    passes = []
    model.register_forward_hook(lambda *args: passes.append(None))

    def count():
        number = len(passes)
        passes.clear()
        return number

    return count


def in_a_new_process(model, room):
    generation.ENGINES.clear()
    return choose_engine(model, PROMPTS, room)


def test_generation_is_checked_once_for_a_model_and_a_length(model, num_passes):
    engine = in_a_new_process(model, 40)
    assert num_passes() > 0
    assert in_a_new_process(model, 40).name == engine.name and num_passes() == 0
    in_a_new_process(model, 35)
    assert num_passes() == 0
    in_a_new_process(model, 41)
    assert num_passes() > 0
    in_a_new_process(model, 41)
    assert num_passes() == 0
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1.01)
    in_a_new_process(model, 30)
    assert num_passes() > 0


def test_a_failed_check_of_generation_is_not_kept(model, monkeypatch, capsys):
    """A cache that loses a token, in the first process only."""
    with monkeypatch.context() as planted:
        planted.setattr("model_utils.slots.Slots.advance", lambda self, counts: None)
        assert "transformers' generate" in in_a_new_process(model, 40).name
        assert "transformers' generate" in in_a_new_process(model, 40).name
    assert capsys.readouterr().err.count("which is slower: in one cache, rows' logits would move by") == 2
    assert in_a_new_process(model, 40).name == "continuous batching"


def test_training_batches_are_checked_once_for_a_length(model, num_passes, monkeypatch):
    def choose(longest):
        texts = [np.arange(length, dtype=np.int32) for length in (10, longest)]
        return choose_attention(
            model, "auto", "tiny", [Example("", text, 5, np.ones_like(text)) for text in texts], False
        )

    chosen = choose(40)
    assert num_passes() > 0
    assert choose(40) == chosen and choose(20) == chosen and num_passes() == 0
    assert choose(41) == chosen and num_passes() > 0


def test_a_failed_check_of_training_batches_fails_again(model, monkeypatch):
    texts = [np.arange(length, dtype=np.int32) for length in (10, 40)]
    examples = [Example("", text, 5, np.ones_like(text)) for text in texts]
    monkeypatch.setattr("model_utils.self_checks.pack", lambda texts: {})
    for _ in range(2):
        with pytest.raises(UserError, match="does not run"):
            choose_attention(model, "auto", "tiny", examples, False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_kept_merge_gives_the_same_weights(tiny_model, dtype):
    merged = []
    for merge in (lambda model: merge_adapter(model, PROMPTS)[0], merge_again):
        base = load_base_model(ModelSource(tiny_model), Accelerator(cpu=True)).to(dtype)
        torch.manual_seed(0)
        model = add_lora(base, 4, 8, 0.0, ["q_proj", "down_proj"])
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight)
        merged.append(merge(model).state_dict())
    assert merged[0].keys() == merged[1].keys()
    for name, weight in merged[0].items():
        assert weight.dtype == dtype and torch.equal(weight, merged[1][name])


def test_the_key_has_the_models_weights_adapter_and_precision(tiny_model, monkeypatch):
    def load():
        return load_base_model(ModelSource(tiny_model), Accelerator(cpu=True))

    def changed_norm():
        model = load()
        model.model.norm.weight.data[5] += 1
        return model

    def longer_positions():
        model = load()
        model.config.max_position_embeddings += 1
        return model

    assert check_key(load(), "a") == check_key(load(), "a")
    others = [load().bfloat16(), add_lora(load(), 4, 8, 0.0, ["q_proj"]), add_lora(load(), 4, 16, 0.0, ["q_proj"])]
    others += [changed_norm(), longer_positions()]
    keys = [check_key(load(), "a"), check_key(load(), "b"), *(check_key(other, "a") for other in others)]
    monkeypatch.setattr(kept_checks, "ROOT", kept_checks.ROOT / "tests")  # other code
    keys.append(check_key(load(), "a"))
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("damaged", ["", "{", "[1, 2]", '{"a": "3"}', '{"a": null}', "\udcff"])
def test_a_damaged_file_is_no_file(damaged):
    keep_pass("a", 3)
    assert has_passed("a", 3)
    kept_checks.path().write_text(damaged, errors="surrogateescape")
    assert not has_passed("a") and not has_passed("a", 3)
    keep_pass("b", 2)
    assert json.loads(kept_checks.path().read_text()) == {"b": 2}


def test_the_file_keeps_the_greatest_size_and_the_newest_checks():
    keep_pass("first", 5)
    keep_pass("first", 3)
    assert has_passed("first", 5) and not has_passed("first", 6)
    for number in range(kept_checks.MOST - 1):
        keep_pass(f"{number}")
    assert has_passed("first")
    keep_pass("last")
    assert not has_passed("first") and has_passed("0") and has_passed("last")
    assert len(json.loads(kept_checks.path().read_text())) == kept_checks.MOST


def test_a_disk_without_room_costs_only_the_next_check(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(kept_checks, "HF_HOME", tmp_path / "file")
    keep_pass("a", 3)
    assert not has_passed("a")
