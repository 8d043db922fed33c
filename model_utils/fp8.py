"""Products of frozen weights in FP8: e4m3, with a float32 scale for each row of both factors.

The weights are rounded once, activations and gradients each time. Rounding an entry to e4m3 moves
it by 2.6 % on average (root mean square), so a product is off by 3.7 %. Only training passes do
this: evaluation, generation and export use the bf16 weights, which stay."""

from typing import NamedTuple

import torch

from run_utils.errors import UserError, describe_error

LARGEST = torch.finfo(torch.float8_e4m3fn).max  # 448
ALIGNMENT = 16  # of both widths of a weight, in torch._scaled_mm


class Quantised(NamedTuple):
    """A matrix is values * scales."""

    values: torch.Tensor  # [rows, width], e4m3
    scales: torch.Tensor  # [rows, 1], float32


class Fp8Weight(NamedTuple):
    """A weight [out, in] for forward and for backward, which need other rows and layouts."""

    rows: Quantised  # [out, in]
    columns: Quantised  # [in, out]


def use_fp8_products(model):
    """Let the training passes of a PEFT model multiply by FP8 copies of the frozen weights under
    its fused LoRA layers. Returns a line for the terminal. Raises UserError if no layer can."""
    layers = fp8_layers(model)
    if not layers:
        raise UserError(
            "--base_precision fp8 finds no linear layer with LoRA whose two widths are multiples of "
            f"{ALIGNMENT}: --base_precision same"
        )
    for layer in layers:
        layer.fp8 = Fp8Weight(quantise(layer.weight), quantise(layer.weight.t().contiguous()))
    size = fp8_bytes(layers) / 2**30
    return f"FP8 products in {len(layers)} layers: {size:.2f} GiB beside the bf16 weights, which evaluation uses"


def fp8_layers(model):
    """The frozen layers of a PEFT model that can have FP8 copies."""
    from model_utils.fused_lora import FusedForward  # late: peft imports bitsandbytes

    frozen = [module.base_layer for module in model.modules() if isinstance(module, FusedForward)]
    return [layer for layer in frozen if not any(width % ALIGNMENT for width in layer.weight.shape)]


def fp8_bytes(layers):
    """Two copies of a byte each. Scales are few."""
    return sum(2 * layer.weight.numel() for layer in layers)


def quantise(matrix):
    """[rows, width] as Quantised. A row of zeros stays zeros; a row with NaN or infinity becomes
    NaN."""
    # Zeros would be divided by zero. Tiny gradients keep their digits.
    scales = (matrix.abs().amax(1, keepdim=True).float() / LARGEST).clamp(min=1e-30)
    return Quantised((matrix / scales).to(torch.float8_e4m3fn), scales)


def fp8_product(x, weight, bias=None, left=None, right=None):
    """x @ weight.t() + bias + left @ right, the first product in FP8. Returns [tokens, out], bf16.

    x: [tokens, in], bf16. weight: Quantised [out, in]. left: [tokens, r], right: [r, out], bf16."""
    return torch.ops.tool_calls.fp8_product(*quantise(x), *weight, bias, left, right, x.dtype)


# Hidden from the compiler: its own product would try Triton kernels for each shape at the start.
# With the tag, layers of one input share its rounded copy. Without it, the compiler would write one
# for each layer, to be sure of its strides.
@torch.library.custom_op("tool_calls::fp8_product", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def _(
    x: torch.Tensor,
    x_scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    bias: torch.Tensor | None,
    left: torch.Tensor | None,
    right: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    # The compiler may give a dimension of one entry any stride, which the product would refuse.
    scales = {"scale_a": x_scales.flatten()[:, None], "scale_b": weight_scales.t()}
    y = torch._scaled_mm(x.contiguous(), weight.t(), **scales, bias=bias, out_dtype=dtype, use_fast_accum=True)
    return y if left is None else y.addmm_(left, right)


@torch.library.register_fake("tool_calls::fp8_product")
def _(x, x_scales, weight, weight_scales, bias, left, right, dtype):
    return x.new_empty(x.shape[0], weight.shape[0], dtype=dtype)


def check_fp8(device):
    """Raise UserError if a device has no such products."""
    problem = "this is a CPU"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        try:
            tried = torch.ones(ALIGNMENT, ALIGNMENT, dtype=torch.bfloat16, device=device)
            fp8_product(tried, quantise(tried))
        except RuntimeError as error:
            problem = f"{name} has none: {describe_error(error)}"
        else:
            return
    raise UserError(f"--base_precision fp8 needs FP8 products with scales by row, as H100 and H200 have: {problem}")
