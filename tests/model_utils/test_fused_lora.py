"""The fused LoRA layers against PEFT's, finite differences and explicit dropout."""

import copy

import pytest
import torch
import torch._dynamo
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.utils.checkpoint import checkpoint

from model_utils.fused_lora import LoraProjection, draw_noise, fuse_lora, group_lora, hashed_mask
from model_utils.speed import COMPILE


def nf4(linear):
    base = Linear4bit(
        linear.in_features, linear.out_features, bias=False, compute_dtype=torch.float32, quant_type="nf4",
        compress_statistics=True,
    )  # fmt: skip
    base.load_state_dict({"weight": linear.weight.data})
    return base.to("cpu")


def layer(quantized=False, dropout=0.0, **variant):
    """PEFT's layer of 96 to 64 features over a random base, with a nonzero B, and its fused copy.

    variant: more arguments of LoraConfig.
    """
    torch.manual_seed(0)
    base = torch.nn.Linear(96, 64, bias=not quantized)
    if quantized:
        base = nf4(base)
    model = torch.nn.Sequential(base).requires_grad_(False)
    model.is_loaded_in_4bit = quantized  # PEFT chooses its layer by this flag
    config = LoraConfig(r=4, lora_alpha=12, lora_dropout=dropout, target_modules=["0"], **variant)
    peft_model = get_peft_model(model, config)
    for parameter in peft_model.base_model.model[0].lora_B["default"].parameters():
        torch.nn.init.normal_(parameter)
    return peft_model.train(), fuse_lora(copy.deepcopy(peft_model)).train()


def output_and_gradients(model, x):
    x = x.clone().requires_grad_()
    y = model(x)
    (y * torch.arange(y.numel()).view_as(y).sin()).sum().backward()
    return y, x.grad, *(parameter.grad for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("quantized", [False, True])
def test_output_and_gradients_equal_pefts(quantized):
    peft_model, fused = layer(quantized)
    x = torch.randn(2, 7, 96)
    for ours, theirs in zip(output_and_gradients(fused, x), output_and_gradients(peft_model, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    assert type(fused.base_model.model[0]).__name__ == ("FusedLinear4bit" if quantized else "FusedLinear")


@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize(
    ("variant", "is_plain"),
    [
        ({}, True),
        ({"use_rslora": True}, True),  # another scaling
        ({"init_lora_weights": "gaussian"}, True),
        ({"use_dora": True}, False),
        ({"lora_bias": True}, False),
    ],
)
def test_only_plain_layers_are_fused_and_all_variants_equal_pefts(variant, is_plain, dropout):
    peft_model, fused = layer(dropout=dropout, **variant)
    assert type(fused.base_model.model[0]).__name__.startswith("Fused") == is_plain
    x = torch.randn(2, 7, 96)
    results = []
    for model in (fused, peft_model):
        torch.manual_seed(3)
        results.append(output_and_gradients(model, x))
    # each weight has a gradient
    assert all(tensor is not None and tensor.any() for tensor in results[0])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_in_bf16_the_error_is_at_most_pefts():
    peft_model, fused = layer()
    x = torch.randn(40, 96)
    wanted = output_and_gradients(copy.deepcopy(peft_model), x)
    errors = []
    for model in (peft_model, fused):
        model.base_model.model[0].base_layer.bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            got = output_and_gradients(model, x.bfloat16())
        # y, x, A, B
        assert [tensor.dtype for tensor in got] == [torch.bfloat16] * 2 + [torch.float32] * 2
        errors.append([((a.float() - b).norm() / b.norm()).item() for a, b in zip(got, wanted, strict=True)])
    for theirs, ours in zip(*errors, strict=True):
        assert ours < 1.2 * theirs + 1e-3 and theirs < 0.02


def test_gradients_equal_finite_differences():
    base = torch.nn.Linear(6, 5).double().requires_grad_(False)
    x, a, b = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 6), (2, 6), (5, 2)))

    def projection(x, a, b):
        return LoraProjection.apply(x, 0.0, base, 1.5, a, b)

    assert torch.autograd.gradcheck(projection, (x, a, b))


@pytest.mark.parametrize("compiled", [False, True])
def test_dropout_is_on_the_adapters_input_alone(compiled):
    _, fused = layer(dropout=0.25)
    plain = copy.deepcopy(fused).base_model.model[0]
    if compiled:
        fused.base_model.model[0].compile(**COMPILE)
    x = torch.randn(3, 50, 96)
    torch.manual_seed(1)
    got = output_and_gradients(fused, x)
    torch.manual_seed(1)
    if compiled:
        mask = hashed_mask(draw_noise((150, 96), "cpu"), (150, 96), 0.25)
    else:
        mask = torch.native_dropout(x.flatten(0, -2), 0.25, True)[1]
    mask = mask.view_as(x)
    assert 0.7 < mask.float().mean() < 0.8
    a, b = plain.lora_A["default"].weight, plain.lora_B["default"].weight

    def reference(x):
        return plain.base_layer(x) + 3 * (x * mask / 0.75) @ a.t() @ b.t()

    x = x.requires_grad_()
    y = reference(x)
    (y * torch.arange(y.numel()).view_as(y).sin()).sum().backward()
    for ours, theirs in zip(got, (y, x.grad, a.grad, b.grad), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    x = x.detach()
    assert torch.allclose(fused.eval()(x), plain.base_layer(x) + 3 * x @ a.t() @ b.t(), atol=1e-5)


def test_a_hashed_mask_is_like_independent_draws():
    """The mean, the variance between rows and between columns, and the correlation of pairs. One
    pair in 100,000 may be correlated: its numbers differ in few bits."""
    torch.manual_seed(0)
    shape = (3000, 2560)
    mask = hashed_mask(draw_noise(shape, "cpu"), shape, 0.05)
    kept = (mask.double() - 0.95) / (0.05 * 0.95) ** 0.5  # mean 0 and variance 1
    assert kept.mean().abs() < 4 / kept.numel() ** 0.5
    for rows in (kept, kept.t()):
        assert 0.85 < (rows.mean(1) * rows.shape[1] ** 0.5).var() < 1.15
        pairs = (rows @ rows.t() / rows.shape[1] ** 0.5)[*torch.triu_indices(len(rows), len(rows), 1)]
        assert 0.98 < pairs.std() < 1.02 and (pairs.abs() > 6).double().mean() < 3e-5


def test_an_adapter_can_be_switched_off():
    _, fused = layer()
    x = torch.randn(2, 96)
    with fused.disable_adapter():
        assert torch.equal(fused(x), fused.base_model.model[0].base_layer(x))


@pytest.mark.parametrize("compiled", [False, True])
def test_projections_of_one_input_save_it_once(compiled):
    """A saved dropout output would copy the input per projection. Compiled code saves no mask."""
    projections = [layer(dropout=0.25)[1].base_model.model[0] for _ in range(2)]
    run = lambda x: projections[0](x) + projections[1](x)  # noqa: E731
    if compiled:
        run = torch.compile(run, **COMPILE)
    x = torch.randn(40, 96, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        run(x)
    inputs = {
        tensor.untyped_storage().data_ptr() for tensor in kept if tensor.shape == x.shape and tensor.is_floating_point()
    }
    assert inputs == {x.untyped_storage().data_ptr()}
    assert sum(tensor.dtype == torch.bool for tensor in kept) == (0 if compiled else 2)


def test_compiled_layers_save_no_dequantised_weights():
    projection = layer(quantized=True, dropout=0.25)[1].base_model.model[0]
    projection.compile(**COMPILE)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        projection(torch.randn(40, 96, requires_grad=True))
    assert kept and not any(tensor.shape in ((64, 96), (96, 64)) for tensor in kept)


class Projections(torch.nn.Module):
    """Three projections of one input by transformers' names, of different widths."""

    def __init__(self, quantized=False):
        super().__init__()
        wrap = nf4 if quantized else lambda linear: linear
        self.q_proj = wrap(torch.nn.Linear(96, 64, bias=not quantized))
        self.k_proj = wrap(torch.nn.Linear(96, 32, bias=not quantized))
        self.v_proj = wrap(torch.nn.Linear(96, 32, bias=False))
        self.v_scale = 1.0

    def forward(self, x):
        value = self.v_proj(x if self.v_scale == 1 else self.v_scale * x)
        return self.q_proj(x) + torch.cat([self.k_proj(x), value], dim=-1)


def group(quantized=False, dropout=0.0):
    """Two modules of PEFT's layers, one after the other, and their grouped and compiled copy."""
    torch.manual_seed(0)
    modules = [Projections(quantized), torch.nn.Linear(64, 96), Projections(quantized)]
    model = torch.nn.Sequential(*modules).requires_grad_(False)
    model.is_loaded_in_4bit = quantized
    config = LoraConfig(
        r=4, lora_alpha=12, lora_dropout=dropout, target_modules=["q_proj", "k_proj", "v_proj"], init_lora_weights=False,
        rank_pattern={"k_proj": 6},
    )  # fmt: skip
    peft_model = get_peft_model(model, config).train()
    grouped = fuse_lora(copy.deepcopy(peft_model)).train()
    group_lora(grouped)
    for module in grouped.base_model.model[::2]:
        module.compile(backend="aot_eager", dynamic=True, fullgraph=True)
    return peft_model, grouped


def assert_equal_results(grouped, peft_model, x):
    results = [output_and_gradients(model, x) for model in (grouped, peft_model)]
    assert all(tensor is not None and tensor.any() for tensor in results[0])  # each weight has a gradient
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


@pytest.mark.parametrize("quantized", [False, True])
def test_a_groups_outputs_and_gradients_equal_pefts(quantized):
    assert_equal_results(*reversed(group(quantized)), torch.randn(2, 7, 96))


def test_a_group_reads_its_input_once_forward_and_once_backward():
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return make_boxed_func(graph)

    first = group()[1].base_model.model[0]
    first.compile(backend=aot_autograd(fw_compiler=keep, bw_compiler=keep), dynamic=False)
    output_and_gradients(first, torch.randn(50, 96))
    products = [node for graph in graphs for node in graph.graph.nodes if node.target is torch.ops.aten.mm.default]
    shapes = [[tuple(factor.meta["val"].shape) for factor in node.args] for node in products]
    # By all A, and by the gradients of what they gave. The frozen products are elsewhere.
    assert sorted(pair for pair in shapes if (50, 96) in pair) == [[(14, 50), (50, 96)], [(50, 96), (96, 14)]]


@torch._dynamo.config.patch(specialize_float=True)  # as in compile_layers
@pytest.mark.parametrize("change", ["another input", "one adapter off", "all off", "no gradients", "checkpointing"])
def test_a_group_in_other_uses_equals_pefts(change):
    """Layers with another input or without an adapter compute their own outputs."""
    peft_model, grouped = group()
    x = torch.randn(2, 7, 96)
    for model in (peft_model, grouped):
        first = model.base_model.model[0]
        if change == "another input":
            first.v_scale = 0.5
        elif change == "one adapter off":
            first.k_proj.enable_adapters(False)
        elif change == "all off":
            model.base_model.disable_adapter_layers()
    if change in ("all off", "no gradients"):
        with torch.no_grad():
            torch.testing.assert_close(grouped(x), peft_model(x), rtol=1e-4, atol=1e-4)
    else:
        assert_equal_results(Checkpointed(grouped) if change == "checkpointing" else grouped, peft_model, x)
    assert not any(layer.handed for layer in grouped.modules() if hasattr(layer, "handed"))  # would fill memory


class Checkpointed(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return checkpoint(self.model, x, use_reentrant=False)


def test_the_layers_of_a_group_share_one_dropout_mask():
    _, grouped = group(dropout=0.25)
    x = torch.randn(3, 50, 96)
    first = grouped.base_model.model[0]
    torch.manual_seed(1)
    got = output_and_gradients(first, x)
    torch.manual_seed(1)
    mask = hashed_mask(draw_noise((150, 96), "cpu"), (150, 96), 0.25).view_as(x)
    x = x.requires_grad_()
    layers = first.q_proj, first.k_proj, first.v_proj
    outputs = [
        layer.base_layer(x)
        + layer.scaling["default"]
        * (x * mask / 0.75)
        @ layer.lora_A["default"].weight.t()
        @ layer.lora_B["default"].weight.t()
        for layer in layers
    ]
    y = outputs[0] + torch.cat(outputs[1:], dim=-1)
    first.zero_grad()
    (y * torch.arange(y.numel()).view_as(y).sin()).sum().backward()
    wanted = y, x.grad, *(parameter.grad for parameter in first.parameters() if parameter.requires_grad)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())
