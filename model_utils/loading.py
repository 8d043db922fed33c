"""Tokenizers and base models: loaded, quantised and given their attention. No other module does
this."""

import contextlib
import hashlib
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from model_utils.attention import (
    ISOLATED,
    RUNS_FLASH_ATTENTION_3,
    has_varlen_kernel,
    leave_flash_attention_3,
    use_flash_attention_3,
)
from model_utils.kept_checks import check_key, has_passed, keep_pass
from model_utils.model_facts import set_attention
from model_utils.self_checks import check_training_batches, check_vocabulary
from run_utils.arguments import ROOT
from run_utils.clock import lap
from run_utils.errors import UserError, describe_error, say
from run_utils.hub import check_hub_access
from run_utils.launch_file import is_sharded
from run_utils.paths import did_you_mean, near_path
from run_utils.terminal import shows_bars

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16}  # by Accelerator.mixed_precision


class ModelSource(NamedTuple):
    """A base model's origin."""

    path: str  # a folder or a hub id
    revision: str | None = None
    quantization: str = "none"
    trust_remote_code: bool = False


def model_source(args, adapter=None):
    """The base named by a script's arguments, by default the Adapter's base. For the adapter's
    base, the adapter's revision is the default. The default quantisation is the training's. Raises
    UserError if the base is out of reach."""
    trained_with = adapter.args if adapter else {}
    name = args.model_name_or_path or trained_with.get("model_name_or_path", "")
    is_own = name == trained_with.get("model_name_or_path")
    with adapter.named_in("--model_name_or_path") if is_own else contextlib.nullcontext():
        path = resolve_model(name)
    return ModelSource(
        path,
        args.model_revision or (trained_with.get("model_revision") if is_own else None),
        args.quantization or trained_with.get("quantization", "none"),
        args.trust_remote_code,
    )


def resolve_model(name):
    """The path or hub id for `transformers`: `demo` is the embedded model. Raises UserError if
    there is no such folder, or if a hub id is out of reach."""
    if name == "demo":
        return str(ROOT / "demo" / "base")
    if not Path(name).is_dir():
        if name.count("/") != 1 or name.startswith((".", "/", "~")):
            near = did_you_mean(name, "config.json")
            raise UserError(f"{name}: no such model folder (a hub id looks like Qwen/Qwen3-4B-Base){near}")
        check_hub_access(name, "model")
    elif not (Path(name) / "config.json").is_file():
        adapter = near_path(name, "adapter_config.json")
        hint = did_you_mean(name, "config.json") or (f"; {adapter} is an adapter, for --adapter" if adapter else "")
        raise UserError(f"{name} holds no model: there is no config.json{hint}")
    return name


def options(source):
    # A model's own Python code only runs with --trust_remote_code: without a value, transformers
    # asks on the terminal.
    return {"revision": source.revision, "trust_remote_code": source.trust_remote_code}


def load_config(source):
    try:
        return AutoConfig.from_pretrained(source.path, **options(source))
    except Exception as error:  # transformers raises OSError, ValueError, KeyError
        near = did_you_mean(source.path, "config.json")
        raise UserError(f"cannot load a model from {source.path}: {describe_error(error)}{near}") from None


def without_weights(config, trust_remote_code=False):
    """A configuration's model on the meta device: layers and their shapes. Raises UserError if
    there is no such model."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises ValueError, ImportError, KeyError
        raise UserError(f"cannot load a model from {config.name_or_path}: {describe_error(error)}") from None


def load_tokenizer(source):
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.path, **options(source))
        tokenizer.decode(tokenizer("text").input_ids)  # some settings are read only now
    # Transformers raises OSError, ValueError, KeyError; tokenizers has other errors.
    except Exception as error:
        near = did_you_mean(source.path, "config.json")
        raise UserError(f"cannot load a tokenizer from {source.path}: {describe_error(error)}{near}") from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {source.path} has no end-of-sequence token: generations could not stop")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def choose_attention(model, requested, name, examples, compiled):
    """Set the attention implementation of a base model for training, and return its name. It must
    pass check_training_batches on these examples. Raises UserError if none passes.

    `auto` tries, in this order: a kernel that separates examples without masks, if torch has its
    variable-length kernel, or on a CPU; SDPA's block mask; eager. Elsewhere the first one's
    substitute would wait for the GPU in every layer, and cannot be compiled. Where FlashAttention 3
    is installed, torch's kernel is tried with it first."""
    check_vocabulary(model, [example.input_ids for example in examples])
    isolated = has_varlen_kernel(model.device, model.dtype)
    if isolated and requested in ("auto", ISOLATED) and use_flash_attention_3(model.device):
        try:
            return first_that_passes([ISOLATED], model, name, examples, "FA3") + ", by FlashAttention 3"
        except UserError as error:
            leave_flash_attention_3(model.device, error)
    RUNS_FLASH_ATTENTION_3.setdefault(model.device, False)  # generation must not change training's attention
    isolated = isolated or (model.device.type == "cpu" and not compiled)
    candidates = [*([ISOLATED] if isolated else []), "sdpa", "eager"] if requested == "auto" else [requested]
    return first_that_passes(candidates, model, name, examples)


def first_that_passes(candidates, model, name, examples, kernel=None):
    """Set the first attention implementation that the model has and that passes, and return its
    name. Raises the last check's UserError."""
    problem, tried, longest = None, set(), max(len(example.input_ids) for example in examples)
    for candidate in candidates:
        try:
            implementation = set_attention(model, candidate)
        except ValueError as error:  # transformers refuses it for this model
            problem = problem or UserError(f"{name} has no --attn_implementation {candidate}: {describe_error(error)}")
            continue
        if implementation in tried:
            continue
        tried.add(implementation)
        key = check_key(model, "training batches", implementation, kernel)
        try:
            if not has_passed(key, longest):
                check_training_batches(model, name, examples)
        except UserError as error:
            problem = error
        else:
            keep_pass(key, longest)
            return implementation
    raise problem


def load_base_model(source, accelerator, device=None):
    """The causal language model on `device` (by default this process's), frozen, in bf16 or float32
    by the Accelerator's precision. Linear layers are in NF4 (double quantisation, QLoRA) or int8 if
    requested. The attention is transformers' choice. Raises UserError if the model cannot be
    loaded, or if its files lack weights. Unused weights are not read."""
    dtype = DTYPES[accelerator.mixed_precision]
    config = {
        "none": None,
        "nf4": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            # FSDP2 needs a float here, by Accelerate's and PEFT's guides.
            bnb_4bit_quant_storage=dtype if is_sharded() else torch.uint8,
        ),
        "int8": BitsAndBytesConfig(load_in_8bit=True),
    }[source.quantization]
    say(f"Loading the model {source.path} ...")
    if not shows_bars():
        transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    # A UserError below replaces its report on missing weights.
    transformers_logging.set_verbosity_error()
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            source.path,
            **options(source),
            dtype=dtype,
            quantization_config=config,
            device_map={"": device or accelerator.device},
            output_loading_info=True,
        )
    except torch.OutOfMemoryError:
        raise
    # Transformers raises OSError, ValueError, ImportError, KeyError, SafetensorError.
    except Exception as error:
        raise UserError(f"cannot load a model from {source.path}: {describe_error(error)}") from None
    finally:
        transformers_logging.set_verbosity(verbosity)
    # Transformers fills missing weights with random numbers. A tied head is not missing.
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"{source.path} lacks {len(missing)} of its model's weights, {missing[0]} first: the files are incomplete, "
            "or of another architecture than config.json names"
        )
    ends = model.generation_config.eos_token_id
    if not all(isinstance(token, int | None) for token in (ends if isinstance(ends, list) else [ends])):
        raise UserError(
            f"{source.path}: eos_token_id must be a token's number or a list of them, in generation_config.json"
        )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # On a CPU, bitsandbytes repacks NF4 weights at the first evaluation. They have no
            # gradient after it.
            module.support_avx512bf16_for_cpu = False
    experts = [weight for _, _, weight in expert_parameters(model)] if source.quantization != "none" else []
    if experts:
        size = sum(weight.numel() * weight.element_size() for weight in experts) / 2**30
        kept = str(dtype).removeprefix("torch.")
        say(f"{source.quantization} is for linear layers: the experts stay in {kept}, {size:.2f} GiB")
    lap("weights")
    return model.requires_grad_(False).eval()


def text_decoder(model):
    """The text decoder, without the head."""
    decoder = model.get_decoder()
    # Some models call their head the decoder.
    return decoder if any(True for _ in decoder.children()) else model.base_model


def expert_parameters(model):
    """`(path of the module, name, parameter)` of the weights of a mixture's experts. transformers
    keeps a layer's experts as parameters [experts, ...] of one module, which rules for linear
    layers miss. Paths begin at the text decoder."""
    return [
        (path, name, parameter)
        for path, module in text_decoder(model).named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and "Expert" in type(module).__name__
    ]


def base_fingerprint(model):
    """A hash of all norms and of rows spread over the input embedding. The same base has the same
    hash in bf16, float32 and NF4, since quantisation leaves these weights alone. An adapter merged
    into linear layers does not change it."""
    weight = model.get_input_embeddings().weight.detach()
    rows = weight[torch.linspace(0, len(weight) - 1, 64).long().to(weight.device)].bfloat16().cpu()
    norms = [parameter.detach().bfloat16().cpu() for parameter in model.parameters() if parameter.ndim == 1]
    digest = hashlib.sha256()
    for tensor in (rows, *norms):
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def weight_hashes(model):
    """`{name: SHA-256}` of the bytes of each weight and each saved buffer."""
    return {
        name: hashlib.sha256(tensor.detach().cpu().flatten().view(torch.uint8).numpy()).hexdigest()
        for name, tensor in model.state_dict().items()
    }
