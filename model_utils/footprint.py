"""Memory and FLOP of a training pass per token, without weights and without a GPU: the model is
built on the meta device, and autograd reports the tensors kept for backward."""

import contextlib
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface

from model_utils.adapters import add_lora
from model_utils.flops import Flops, count_flops
from model_utils.fp8 import fp8_bytes, fp8_layers
from model_utils.loading import text_decoder, without_weights
from model_utils.model_facts import set_attention, unwrapped
from model_utils.targets import choose_targets
from model_utils.variants import lora_options
from run_utils.errors import UserError

NUM_TOKENS = 128  # of the pass on the meta device: all counts grow with the tokens
NF4_BYTES = 0.516  # of a weight, with double quantisation's scales
SCALE_BYTES = 1 / 16  # of an NF4 weight: compiled code keeps the scales, see fused_lora.dense
PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten._grouped_mm}


class Footprint(NamedTuple):
    base_bytes: float  # with the copies of --base_precision fp8
    trained: int  # weights
    trained_bytes: float  # of the weights alone
    quantized: int  # weights
    num_layers: int
    width: int  # of the hidden states
    vocab_size: int
    item_bytes: int  # of an activation
    kept_bytes: float  # per token, by all layers, for backward
    kept_compiled_bytes: float  # the same, compiled
    flops: Flops


def footprint(args, config, dtype=torch.bfloat16):
    """The Footprint of a model in a training by train.py's arguments.

    config: transformers'. dtype: of the base, if not quantised. Raises UserError if there is no
    such model or adapter, and any error if the model cannot run on the meta device."""
    if not args.use_peft:
        raise UserError("full fine-tuning takes 16 bytes a weight beside the activations, which are not counted")
    model = without_weights(config, args.trust_remote_code).to(dtype).requires_grad_(False)
    with contextlib.suppress(ValueError):  # a model with an attention of its own
        set_attention(model, _COUNTED)
    base = base_bytes(model, args.quantization)
    variant = {"init": args.init_lora_weights, **lora_options(args)}
    targets = choose_targets(model, args)
    model = add_lora(model, args.lora_r, args.lora_alpha, args.lora_dropout, targets, **variant).train()
    decoder = text_decoder(unwrapped(model))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kept, kept_compiled = kept_bytes(decoder)
    if args.base_precision == "fp8":
        base += fp8_bytes(fp8_layers(model))
    text_config = config.get_text_config(decoder=True)
    return Footprint(
        base_bytes=base,
        trained=sum(parameter.numel() for parameter in trained),
        trained_bytes=sum(parameter.numel() * parameter.element_size() for parameter in trained),
        quantized=sum(weight.numel() for weight in quantized(model, args.quantization)),
        num_layers=text_config.num_hidden_layers,
        width=text_config.hidden_size,
        vocab_size=text_config.vocab_size,
        item_bytes=dtype.itemsize,
        kept_bytes=kept,
        kept_compiled_bytes=kept_compiled,
        flops=count_flops(model, args.gradient_checkpointing),
    )


def quantized(model, quantization):
    """The frozen weights quantised by bitsandbytes: of linear layers, without the head."""
    head = unwrapped(model).get_output_embeddings()
    return [
        module.weight
        for module in model.modules()
        if quantization != "none" and isinstance(module, torch.nn.Linear) and module is not head
        if not module.weight.requires_grad
    ]


def base_bytes(model, quantization):
    """Of the weights without an adapter. A tied head is counted once."""
    small = {id(weight) for weight in quantized(model, quantization)}
    size = {"none": 0, "nf4": NF4_BYTES, "int8": 1}[quantization]
    return sum(
        parameter.numel() * (size if id(parameter) in small else parameter.element_size())
        for parameter in model.parameters()
    )


def kept_bytes(decoder):
    """The bytes per token kept by a forward pass for backward: plain, and compiled.

    Plain: each storage saved by autograd, without parameters. Compiled: the results of matrix
    products and of attention. Compiled code computes the rest again (recomputation.py)."""
    own = {_storage(tensor) for tensor in [*decoder.parameters(), *decoder.buffers()]}
    saved, products = {}, Products()
    attention_results.clear()

    def pack(tensor):
        saved[_storage(tensor)] = tensor
        return tensor

    with torch.device("meta"), products, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ids = torch.zeros(1, NUM_TOKENS, dtype=torch.int64)
        result = decoder(input_ids=ids, position_ids=ids, use_cache=False)
    compiled = {_storage(tensor): tensor for tensor in [*products.results, *attention_results]}
    attention_results.clear()
    del result
    return [
        sum(tensor.untyped_storage().nbytes() for key, tensor in tensors.items() if key not in own) / NUM_TOKENS
        for tensors in (saved, compiled)
    ]


def _storage(tensor):
    return tensor.untyped_storage()._cdata


class Products(TorchDispatchMode):
    """Collects the results of matrix products."""

    def __init__(self):
        super().__init__()
        self.results = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function._overloadpacket in PRODUCTS:
            self.results.append(result)
        return result


_COUNTED = "counted"  # in `attn_implementation`
attention_results = []


class Attended(torch.autograd.Function):
    """Flash attention's results and the tensors kept for backward, without numbers."""

    @staticmethod
    def forward(ctx, query, key, value):
        batch, heads, tokens, _ = query.shape
        attended = query.new_empty(batch, tokens, heads, value.shape[-1])
        sums = query.new_empty(batch, heads, tokens, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, attended, sums)
        attention_results.extend((attended, sums))
        return attended


def counted_attention(module, query, key, value, attention_mask, **kwargs):
    return Attended.apply(query, key, value), None


AttentionInterface.register(_COUNTED, counted_attention)
