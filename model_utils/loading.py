"""The one place that loads a tokenizer and a base model, quantises it, and chooses its attention."""

import contextlib
import hashlib
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from model_utils.attention import ISOLATED, has_varlen_kernel
from model_utils.model_facts import one_line, set_attention
from model_utils.self_checks import check_training_batches, check_vocabulary
from run_utils.arguments import ROOT
from run_utils.errors import UserError, say
from run_utils.hub import check_hub_access
from run_utils.launch_file import is_sharded

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16}  # by Accelerator.mixed_precision


class ModelSource(NamedTuple):
    """A base model's origin."""

    path: str  # a folder or a hub id
    revision: str | None = None
    quantization: str = "none"
    trust_remote_code: bool = False


def model_source(args, adapter=None):
    """The base that a script's arguments name, else the one that the Adapter was trained on: with the adapter's own revision
    if it is the same base, and the training's quantisation unless the arguments have one. UserError if it is out of reach."""
    trained_with = adapter.args if adapter else {}
    name = args.model_name_or_path or trained_with["model_name_or_path"]
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
    """The path or hub id that `transformers` loads: `demo` is the embedded model; a hub id must be within reach."""
    if name == "demo":
        return str(ROOT / "demo" / "base")
    if not Path(name).is_dir():
        if name.count("/") != 1 or name.startswith((".", "/", "~")):
            raise UserError(f"{name}: no such model folder (a hub id looks like Qwen/Qwen3-4B-Base)")
        check_hub_access(name, "model")
    return name


def options(source):
    # A model's own Python code runs with --trust_remote_code alone: without a choice, transformers asks on the terminal.
    return {"revision": source.revision, "trust_remote_code": source.trust_remote_code}


def load_config(source):
    try:
        return AutoConfig.from_pretrained(source.path, **options(source))
    except Exception as error:  # transformers raises OSError, ValueError, KeyError
        raise UserError(f"cannot load a model from {source.path}: {one_line(error)}") from None


def without_weights(config, trust_remote_code=False):
    """The model of a configuration on the meta device: its layers and their shapes. UserError if there is no such model."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises ValueError, ImportError, KeyError
        raise UserError(f"cannot load a model from {config.name_or_path}: {one_line(error)}") from None


def load_tokenizer(source):
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.path, **options(source))
        tokenizer.decode(tokenizer("text").input_ids)  # some settings are read no earlier
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, tokenizers its own
        raise UserError(f"cannot load a tokenizer from {source.path}: {one_line(error)}") from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {source.path} has no end-of-sequence token: generations could not stop")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def choose_attention(model, requested, name, examples, compiled):
    """Switch a base model to the attention implementation that training is to use, and return its name. It must pass
    check_training_batches on these examples; UserError where none does.

    `auto` tries, in this order: examples kept apart by kernel, without masks, where torch has its variable-length kernel or on a
    CPU (elsewhere the stand-in for that kernel would wait for the GPU in every layer, and cannot be compiled); SDPA's block
    mask; eager.
    """
    isolated = has_varlen_kernel(model.device, model.dtype) or (model.device.type == "cpu" and not compiled)
    check_vocabulary(model, [example.input_ids for example in examples])
    candidates = [*([ISOLATED] if isolated else []), "sdpa", "eager"] if requested == "auto" else [requested]
    problem, tried = None, set()
    for candidate in candidates:
        try:
            implementation = set_attention(model, candidate)
        except ValueError as error:  # transformers knows that the model has no such one
            problem = problem or UserError(f"{name} has no --attn_implementation {candidate}: {one_line(error)}")
            continue
        if implementation in tried:
            continue
        tried.add(implementation)
        try:
            check_training_batches(model, name, examples)
        except UserError as error:
            problem = error
        else:
            return implementation
    raise problem


def load_base_model(source, accelerator):
    """The causal language model on this process's device, frozen, in bf16 or float32 as the Accelerator's precision
    says; its linear layers in NF4 (double quantisation, QLoRA) or int8 if asked for. Its attention is transformers' own.
    UserError if it cannot be loaded or if its files lack weights; weights that the model does not use are left unread."""
    dtype = DTYPES[accelerator.mixed_precision]
    config = {
        "none": None,
        "nf4": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            # Accelerate's and PEFT's guides want a float for FSDP2.
            bnb_4bit_quant_storage=dtype if is_sharded() else torch.uint8,
        ),
        "int8": BitsAndBytesConfig(load_in_8bit=True),
    }[source.quantization]
    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its report on missing weights is a line of ours below
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            source.path,
            **options(source),
            dtype=dtype,
            quantization_config=config,
            device_map={"": accelerator.device},
            output_loading_info=True,
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # transformers raises OSError, ValueError, ImportError, KeyError, SafetensorError
        raise UserError(f"cannot load a model from {source.path}: {one_line(error)}") from None
    finally:
        transformers_logging.set_verbosity(verbosity)
    if missing := sorted(report["missing_keys"]):  # transformers fills them with random numbers; a tied head is not one
        raise UserError(
            f"{source.path} lacks {len(missing)} of its model's weights, {missing[0]} first: the files are incomplete, or of another "
            "architecture than config.json names"
        )
    ends = model.generation_config.eos_token_id
    if not all(isinstance(token, int | None) for token in (ends if isinstance(ends, list) else [ends])):
        raise UserError(
            f"{source.path}: eos_token_id must be a token's number or a list of them, in generation_config.json"
        )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # On a CPU, bitsandbytes repacks NF4 weights at the first evaluation and has no gradient through them then.
            module.support_avx512bf16_for_cpu = False
    experts = [weight for _, _, weight in expert_parameters(model)] if source.quantization != "none" else []
    if experts:
        size = sum(weight.numel() * weight.element_size() for weight in experts) / 2**30
        say(
            f"{source.quantization} is for linear layers: the experts stay in {str(dtype).removeprefix('torch.')}, {size:.2f} GiB"
        )
    return model.requires_grad_(False).eval()


def text_decoder(model):
    """The decoder of text, without the head."""
    decoder = model.get_decoder()
    return decoder if any(True for _ in decoder.children()) else model.base_model  # some call their head the decoder


def expert_parameters(model):
    """`(path of the module, name, parameter)` of the weights of a mixture's experts: transformers keeps those of a layer as
    parameters [experts, ...] of one module, which no rule for linear layers finds. Paths are the text decoder's."""
    return [
        (path, name, parameter)
        for path, module in text_decoder(model).named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and "Expert" in type(module).__name__
    ]


def base_fingerprint(model):
    """A hash of all norms and of rows spread over the input embedding: the same for the same base in bf16, float32 or
    NF4, whose quantisation leaves these alone. Merging an adapter into linear layers goes unnoticed."""
    weight = model.get_input_embeddings().weight.detach()
    rows = weight[torch.linspace(0, len(weight) - 1, 64).long().to(weight.device)].bfloat16().cpu()
    norms = [parameter.detach().bfloat16().cpu() for parameter in model.parameters() if parameter.ndim == 1]
    digest = hashlib.sha256()
    for tensor in (rows, *norms):
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def weight_hashes(model):
    """`{name: SHA-256}` of the bytes of each weight and of each buffer that is saved with them."""
    return {
        name: hashlib.sha256(tensor.detach().cpu().flatten().view(torch.uint8).numpy()).hexdigest()
        for name, tensor in model.state_dict().items()
    }
