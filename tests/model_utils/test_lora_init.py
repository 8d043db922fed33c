"""First values of A and B: PEFT's own PiSSA and OLoRA as oracles, LoftQ by its error."""

import copy

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from model_utils.adapters import add_lora
from model_utils.loading import ModelSource, load_base_model
from model_utils.lora_init import dense_weight

LAYERS = ["q_proj", "down_proj"]
IDS = torch.arange(30)[None]


@pytest.fixture
def base(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model).requires_grad_(False)


def train_steps(model, optimizer):
    for _ in range(3):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def sgd(model):
    return torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.05)


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize(
    "more", [{}, {"use_rslora": True, "rank_pattern": {"q_proj": 6}, "alpha_pattern": {"q_proj": 3}}]
)
def test_training_is_peft_s_and_the_file_loads_on_the_original_base(base, tmp_path, init, more):
    untouched, theirs = copy.deepcopy(base), copy.deepcopy(base)
    theirs = get_peft_model(
        theirs,
        LoraConfig(r=4, lora_alpha=8, target_modules=LAYERS, init_lora_weights=init, task_type="CAUSAL_LM", **more),
    )
    ours = add_lora(base, 4, 8, 0.0, LAYERS, init=init, **more)
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS).logits, untouched(IDS).logits, rtol=1e-4, atol=1e-4)
    frozen = [weight.detach().clone() for weight in halves(ours, second=True)]
    first = [weight.detach().clone() for weight in halves(ours, second=False)]
    train_steps(ours, sgd(ours))
    train_steps(theirs, sgd(theirs))
    assert all(map(torch.equal, halves(ours, second=True), frozen))
    assert not any(map(torch.equal, halves(ours, second=False), first))
    with torch.no_grad():
        moved = (theirs(IDS).logits - untouched(IDS).logits).abs().max()
        assert (ours(IDS).logits - theirs(IDS).logits).abs().max() < 1e-2 * moved
        ours.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(untouched, tmp_path)
        torch.testing.assert_close(loaded(IDS).logits, ours(IDS).logits, rtol=1e-5, atol=1e-5)


def halves(model, second):
    found = []
    for name, weight in model.named_parameters():
        if "lora_A" in name:
            found.append(weight.chunk(2)[second])
        elif "lora_B" in name:
            found.append(weight.chunk(2, dim=1)[second])
    return found


def test_orthogonal_starts_as_the_base(base):
    untouched = copy.deepcopy(base)
    model = add_lora(base, 4, 8, 0.0, LAYERS, init="orthogonal")
    assert all(weight.abs().sum() for name, weight in model.named_parameters() if "lora_" in name)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, untouched(IDS).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("alpha", [4, 16])
def test_loftq_takes_the_rounding_s_largest_part_out(base, tiny_model, alpha):
    quantised = load_base_model(ModelSource(str(tiny_model), quantization="nf4"), Accelerator(cpu=True))
    model = add_lora(quantised, 4, alpha, 0.0, LAYERS, init="loftq", original=base)
    for path, layer in model.get_base_model().named_modules():
        if hasattr(layer, "lora_A"):
            weight, original = dense_weight(layer.get_base_layer()), base.get_submodule(path).weight
            before = original - weight
            after = before - layer.get_delta_weight("default")
            values = torch.linalg.svdvals(before)
            assert torch.linalg.matrix_norm(after) == pytest.approx(values[4:].square().sum().sqrt().item(), rel=1e-3)


def test_quantised_bases_take_pissa(base, tiny_model):
    quantised = load_base_model(ModelSource(str(tiny_model), quantization="nf4"), Accelerator(cpu=True))
    with torch.no_grad():
        expected = quantised(IDS).logits
        model = add_lora(quantised, 4, 8, 0.0, LAYERS, init="pissa")
        torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-3, atol=1e-3)
