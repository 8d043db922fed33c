"""--base_precision fp8: the quantiser, and a layer's products beside the same products of the
rounded factors. torch multiplies FP8 on a CPU too, slowly."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

import train
from model_utils.fp8 import quantise, use_fp8_products
from model_utils.fused_lora import fuse_lora
from model_utils.speed import COMPILE
from run_utils.errors import UserError


def layers(dropout=0.0, widths=(96, 64), bias=True):
    """A PEFT model of one fused layer on a bf16 base, with a nonzero B, and its copy in FP8."""
    torch.manual_seed(0)
    base = torch.nn.Linear(*widths, bias=bias, dtype=torch.bfloat16)
    config = LoraConfig(r=4, lora_alpha=12, lora_dropout=dropout, target_modules=["0"])
    model = fuse_lora(get_peft_model(torch.nn.Sequential(base).requires_grad_(False), config)).train()
    torch.nn.init.normal_(model.base_model.model[0].lora_B["default"].weight, std=0.05)
    in_fp8 = copy.deepcopy(model)
    use_fp8_products(in_fp8)
    return model, in_fp8


def output_and_gradients(model, x):
    """y, dx, and the gradients of A and B."""
    x = x.clone().requires_grad_()
    torch.manual_seed(1)  # of dropout
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    y.backward(output_gradient(y))
    return y, x.grad, *(parameter.grad for parameter in model.parameters() if parameter.requires_grad)


def output_gradient(y):
    return torch.arange(y.numel()).view_as(y).sin().to(y.dtype)


def rounded(matrix):
    values, scales = quantise(matrix)
    return values.float() * scales


def distance(ours, theirs):
    return ((ours.float() - theirs.float()).norm() / theirs.float().norm()).item()


def test_each_row_is_rounded_by_its_own_scale():
    torch.manual_seed(0)
    rows = torch.randn(5, 4096).bfloat16() * torch.tensor([1.0, 1e-6, 1e4, 1e-20, 0.0])[:, None].bfloat16()
    values, scales = quantise(rows)
    assert values.dtype == torch.float8_e4m3fn and scales.shape == (5, 1)
    assert torch.equal(values.float().abs().amax(1), torch.tensor([448.0, 448, 448, 448, 0]))
    for row, again in zip(rows[:4], rounded(rows[:4]), strict=True):
        assert 0.02 < distance(again, row) < 0.03
        large = row.abs() > row.abs().max() / 1000  # 3 bits after the first: half a step is a 16th
        assert ((again - row) / row)[large].abs().max() <= 1 / 16 + 1e-3
    assert not rounded(rows[4:]).any()


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_stays_visible(broken):
    rows = torch.ones(2, 32, dtype=torch.bfloat16)
    rows[0, 3] = broken
    assert rounded(rows)[0].isnan().all() and torch.equal(rounded(rows)[1], torch.ones(32))


@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("bias", [False, True])
def test_the_frozen_products_are_those_of_the_rounded_factors(dropout, bias):
    """And the adapter's gradients are those of bf16."""
    model, in_fp8 = layers(dropout, bias=bias)
    x = torch.randn(33, 96).bfloat16()
    weight = model.base_model.model[0].base_layer.weight
    y, dx, *ab = output_and_gradients(model, x)
    y8, dx8, *ab8 = output_and_gradients(in_fp8, x)
    dy = output_gradient(y)
    wanted_y = y.float() - x.float() @ weight.float().t() + rounded(x) @ rounded(weight).t()
    wanted_dx = dx.float() - dy.float() @ weight.float() + rounded(dy) @ rounded(weight.t()).t()
    assert distance(y8, wanted_y) < 0.005 < 0.01 < distance(y8, y)
    assert distance(dx8, wanted_dx) < 0.005 < 0.01 < distance(dx8, dx)
    assert [tensor.dtype for tensor in (y8, dx8, *ab8)] == [torch.bfloat16] * 2 + [torch.float32] * 2
    for ours, theirs in zip(ab8, ab, strict=True):
        assert torch.equal(ours, theirs) and theirs.any()


@pytest.mark.slow  # 20 s, mostly in the C++ compiler
def test_compiled_it_computes_the_same():
    _, in_fp8 = layers()
    compiled = copy.deepcopy(in_fp8)
    compiled.base_model.model[0].compile(**COMPILE)
    for tokens in (33, 50):
        x = torch.randn(tokens, 96).bfloat16()
        for ours, theirs in zip(*(output_and_gradients(model, x) for model in (compiled, in_fp8)), strict=True):
            assert distance(ours, theirs) < 0.005


def test_outside_training_the_weights_are_the_bases():
    model, in_fp8 = layers()
    x = torch.randn(7, 96).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(in_fp8(x), model(x))
        assert torch.equal(in_fp8.eval()(x), model.eval()(x))
    # Neither saved nor sent to other processes.
    assert in_fp8.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(in_fp8.merge_and_unload()[0].weight, model.merge_and_unload()[0].weight)


def test_layers_of_other_widths_stay_in_bf16():
    with pytest.raises(UserError, match="multiples of 16: --base_precision same") as error:
        layers(widths=(96, 56))
    assert "\n" not in str(error.value)


def test_a_cpu_is_refused_in_one_line(run_here, flags):
    result = run_here(train, flags | {"base_precision": "fp8"})
    assert result.code == 1
    assert result.err.strip().splitlines()[-1].startswith("train.py: error: --base_precision fp8 needs FP8 products")
