"""The weights in a checkpoint's folder: an adapter in PEFT's format, or a whole model of full
fine-tuning in transformers'."""

import torch
from safetensors.torch import load_file, save_file

from run_utils.files import ADAPTER_FILES, apply_umask, is_whole_model, read_json, weight_files, write_json


def write_weights(folder, training, model):
    """Write the trained weights, or a whole model with its tokenizer. model: of `training`,
    unwrapped and as delivered."""
    if training.tokenizer:
        model.save_pretrained(folder)
        training.tokenizer.save_pretrained(folder)
    else:
        # Only the adapter's weights: under FSDP2, a request for the base's weights would move them
        # on this process only.
        weights = {
            name: weight for name, weight in model.named_parameters(remove_duplicate=False) if weight.requires_grad
        }
        model.save_pretrained(folder, save_embedding_layers=False, state_dict=weights)
    apply_umask(*weight_files(folder))


def read_weights(path):
    """`(LoRA's settings, its weights)` of a checkpoint, or `(None, {})` of a whole model, whose
    weights are read and not kept. Raises ValueError if weights are not finite."""
    from peft import PeftConfig  # late: peft imports bitsandbytes, which takes seconds

    whole = is_whole_model(path)
    lora, weights = (
        (None, {}) if whole else (PeftConfig.from_pretrained(path).to_dict(), load_file(path / ADAPTER_FILES[0]))
    )
    for tensors in map(load_file, weight_files(path)) if whole else [weights]:
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise ValueError("weights that are not finite")
    return lora, weights


def load_whole_model(model, folder):
    """Load a folder's weights into a model of the same architecture, in the model's dtype. Raises
    ValueError if the folder has other weights."""
    from transformers import AutoModelForCausalLM  # late: it takes seconds

    saved, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=model.dtype, output_loading_info=True, trust_remote_code=False
    )
    if report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"]:
        raise ValueError("other weights")
    model.load_state_dict(saved.state_dict())


def round_weights(folder):
    """Round a whole model's weights to bf16: training needs float32, users do not."""
    for path in weight_files(folder):
        save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    apply_umask(*weight_files(folder))
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {"dtype": str(torch.bfloat16).removeprefix("torch.")})
