"""Full fine-tuning (`--use_peft false`): the text decoder and its head are trained whole."""

import torch

from model_utils.loading import text_decoder
from run_utils.errors import UserError, describe_error
from run_utils.weights import load_whole_model

GIB = 2**30


def train_all_weights(base):
    """Make the weights of a base's text decoder and head trainable. Vision and audio stay frozen,
    since rows are text.

    All weights become float32. Under autocast, matrix products are in bf16 all the same; but
    AdamW's steps, often less than a 256th of a weight, would be lost in bf16's 8 bits."""
    base.float()
    for module in (text_decoder(base), base.get_output_embeddings()):
        module.requires_grad_()


def describe_size(model):
    """A line on the memory and disk of full fine-tuning."""
    count = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return (
        f"Full fine-tuning: {count:,} weights in float32. Weights, gradients and AdamW's moments take "
        f"{16 * count / GIB:.2f} GiB beside the activations, each checkpoint {12 * count / GIB:.2f} GiB of disk"
    )


def load_full_model(base, folder):
    """The base with the weights of a folder of train.py's in place of its own. Raises UserError if
    they do not fit it."""
    if getattr(base, "hf_quantizer", None) is not None:
        raise UserError(f"{folder} is a whole model, which replaces the base's weights: --quantization none")
    try:
        load_whole_model(base, folder)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # broken files make safetensors and transformers raise anything
        raise UserError(f"cannot load the model {folder}: {describe_error(error)}") from None
    if broken := [name for name, weight in base.named_parameters() if not weight.isfinite().all()]:
        raise UserError(f"{folder} has {len(broken)} tensors whose numbers are not finite, {broken[0]} first")
    return base
