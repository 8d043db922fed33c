"""The one place that loads a tokenizer and a base model, quantises it, and gives it a LoRA adapter."""

import contextlib
import hashlib
import json
from collections import Counter
from pathlib import Path

import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import is_liger_kernel_available
from transformers.utils import logging as transformers_logging

from attention_utils import ISOLATED, has_varlen_kernel
from data_utils.prompt import PROMPT_VERSION
from script_utils import ROOT, UserError, check_hub_access
from self_checks import (
    check_training_batches,
    difference,
    num_positions,
    one_line,
    plain_logits,
    set_attention,
    tolerance,
)

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16}  # by Accelerator.mixed_precision

# Random numbers are PyTorch's own: else kernels would draw those of dropout's masks anew wherever they read them.
COMPILE = {"dynamic": True, "options": {"fallback_random": True}}

# Dense bf16 tensor-core peaks in FLOP/s, from the vendors' data sheets; the longest matching name counts.
PEAK_BF16_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA A10": 125e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "NVIDIA GeForce RTX 5090": 210e12,
}


def resolve_model(name):
    """The path or hub id that `transformers` loads: `demo` is the embedded model; a hub id must be within reach."""
    if name == "demo":
        return str(ROOT / "demo" / "base")
    if not Path(name).is_dir():
        if name.count("/") != 1 or name.startswith((".", "/", "~")):
            raise UserError(f"{name}: no such model folder (a hub id looks like Qwen/Qwen3-4B-Base)")
        check_hub_access(name, "model")
    return name


def load_config(name, revision=None):
    try:
        return AutoConfig.from_pretrained(name, revision=revision)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError
        raise UserError(f"cannot load a model from {name}: {one_line(error)}") from None


def load_tokenizer(name, revision=None):
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and what tokenizers raises
        raise UserError(f"cannot load a tokenizer from {name}: {one_line(error)}") from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {name} has no end-of-sequence token: generations could not stop")
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


def load_base_model(name, accelerator, revision=None, quantization="none"):
    """The causal language model on this process's device, frozen, in bf16 or float32 as the Accelerator's precision
    says; its linear layers in NF4 (double quantisation, QLoRA) or int8 if asked for. Its attention is transformers' own."""
    dtype = DTYPES[accelerator.mixed_precision]
    config = {
        "none": None,
        "nf4": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        ),
        "int8": BitsAndBytesConfig(load_in_8bit=True),
    }[quantization]
    transformers_logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            name,
            revision=revision,
            dtype=dtype,
            quantization_config=config,
            device_map={"": accelerator.device},
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # transformers raises OSError, ValueError, ImportError, KeyError, SafetensorError
        raise UserError(f"cannot load a model from {name}: {one_line(error)}") from None
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # On a CPU, bitsandbytes repacks NF4 weights at the first evaluation and has no gradient through them then.
            module.support_avx512bf16_for_cpu = False
    return model.requires_grad_(False).eval()


def add_lora(model, r, alpha, dropout, target_modules):
    """The model under a fresh LoRA adapter, in float32 whatever the base's dtype. B starts at zero: same outputs."""
    from peft import LoraConfig, get_peft_model  # late: importing peft imports bitsandbytes, and takes seconds

    from fused_lora import fuse_lora

    # Of a model that also sees or hears, only the decoder of text is trained: nothing else meets these rows.
    text_modules = {model.get_output_embeddings(), *model.get_decoder().modules()}
    elsewhere = [name for name, module in model.named_modules() if name and module not in text_modules]
    names = {name.split(".")[-1] for name, module in model.named_modules() if module in text_modules}
    if unknown := [module for module in target_modules if module not in names]:
        raise UserError(f"cannot add LoRA to {', '.join(unknown)}: the model has no such layers")

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=target_modules,
        exclude_modules=[name for name in elsewhere if name.split(".")[-1] in target_modules] or None,
    )
    try:
        return fuse_lora(get_peft_model(model, config))
    except ValueError as error:
        raise UserError(f"cannot add LoRA to {', '.join(target_modules)}: {one_line(error)}") from None


def use_liger_kernels(model):
    """Liger's Triton kernels for rotary positions, RMSNorm and SwiGLU in a PEFT model."""
    if not is_liger_kernel_available():
        raise UserError("--liger_kernel needs a package that is not here: pip install liger-kernel")
    from transformers.integrations.liger import apply_liger_kernel  # late: it imports peft

    # The head's loss is ours: it runs on the completion tokens alone.
    apply_liger_kernel(model, {"cross_entropy": False, "fused_linear_cross_entropy": False})


def compile_layers(model):
    """Compile each decoder layer of a PEFT model by itself, for any number of tokens. Training needs one graph for all
    layers and lengths, evaluation another."""
    base = model.get_base_model()
    layers = getattr(base.get_decoder(), "layers", None)
    if layers is None:
        raise UserError(f"--torch_compile does not know where {type(base).__name__} keeps its layers")
    try:
        torch.compile(torch.sin)(torch.zeros(8, device=model.device))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever PyTorch, Triton and their compilers raise
        needs = "gcc and Python's headers" if model.device.type == "cuda" else "g++"
        cause = one_line(getattr(error, "inner_exception", error))
        raise UserError(f"--torch_compile, which needs {needs}, does not work here: {cause}") from None
    # Else the first layer, whose input has no gradient, would need a graph of its own.
    base.get_input_embeddings().register_forward_hook(
        lambda module, args, output: output.requires_grad_() if torch.is_grad_enabled() else output
    )
    # For the whole process: floats are constants. Else some are taken for inputs, and each training run traces its graph
    # twice, having found one (epsilon, LoRA's scaling) that cannot be.
    torch._dynamo.config.specialize_float = True
    for layer in layers:
        layer.compile(**COMPILE)


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


@contextlib.contextmanager
def naming_adapter(adapter, flag):
    """Add to a UserError within that the value of `flag` comes from the arguments saved with an adapter, if there is one."""
    try:
        yield
    except UserError as error:
        if not adapter:
            raise
        raise UserError(f"{error}; it is named in {Path(adapter) / 'args.yaml'}, {flag} replaces it") from None


def read_adapter(folder):
    """What train.py saved beside an adapter: its arguments and its environment, two dicts. Refuses, as UserError, a
    folder without them and an adapter trained on another version of the prompt."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no adapter in {folder}: there is no such folder; train.py makes one")
    for name in ("adapter_config.json", "adapter_model.safetensors", "args.yaml", "environment.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not an adapter saved by train.py: no {name} there")
    try:
        environment = dict(json.loads((folder / "environment.json").read_text(encoding="utf-8")))
        args = dict(yaml.safe_load((folder / "args.yaml").read_text(encoding="utf-8")))
        prompt_version = environment["prompt_version"]
        _ = environment["base_fingerprint"], args["model_name_or_path"]
    except (ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{folder} cannot be read: {one_line(error)}") from None
    if prompt_version != PROMPT_VERSION:
        raise UserError(
            f"{folder} was trained on prompt version {prompt_version}, but data_utils/prompt.py is version {PROMPT_VERSION}"
        )
    return args, environment


def read_split(folder):
    """The rows that an adapter was trained on and those held out (see find_held_out); None of an adapter from before."""
    path = Path(folder) / "split.json"
    if not path.is_file():
        return None
    try:
        split = json.loads(path.read_text(encoding="utf-8"))
        return {part: dict(split[part]) for part in ("trained", "held_out")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}") from None


def load_adapter(model, folder, texts=()):
    """The base under the adapter saved in `folder`. Refuses an adapter trained on another base.

    Merged into the base's weights, which is faster, if there are `texts` (int32 token ids) to compare the merged model on, and
    if the weights are neither quantised nor shared with a layer that has no adapter, as those of a tied head are.
    """
    from peft import PeftModel  # late, as in add_lora

    _, environment = read_adapter(folder)
    if environment["base_fingerprint"] != base_fingerprint(model):
        raise UserError(f"{folder} was trained on another base model than {model.name_or_path}")
    try:
        model = PeftModel.from_pretrained(model, folder).eval()
    except Exception as error:  # whatever a broken file makes safetensors and peft raise
        raise UserError(f"cannot load the adapter {folder}: {one_line(error)}") from None
    quantized = not all(parameter.is_floating_point() for parameter in model.parameters())
    if quantized or not len(texts) or adapts_shared_weights(model):
        return model
    texts = [text[: min(len(text), num_positions(model.config))] for text in texts]
    reference = [plain_logits(model, [text])[0] for text in texts]
    allowed = tolerance(model, texts[0], reference[:1])
    model = model.merge_and_unload().eval()
    distance = difference([plain_logits(model, [text])[0] for text in texts], reference)
    if not distance <= allowed:
        raise UserError(
            f"merging {folder} into its base moves logits by {distance:.1e} of their spread (rounding: {allowed:.1e}): "
            "run it unmerged, with --merge_adapter false"
        )
    return model


def adapts_shared_weights(model):
    """Whether a weight under an adapter's layer has another layer that uses it too."""
    users = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    layers = [module.base_layer for module in model.modules() if hasattr(module, "base_layer")]
    return any(users[id(parameter)] > 1 for layer in layers for parameter in layer.parameters())


def dtype_census(model):
    """`{"trainable float32": 66_060_288, "frozen nf4": 3_623_878_656, ...}`: parameters by role and dtype."""
    census = Counter()
    for parameter in model.parameters():
        four_bit = type(parameter).__name__ == "Params4bit"  # two weights a byte
        dtype = "nf4" if four_bit else str(parameter.dtype).removeprefix("torch.")
        role = "trainable" if parameter.requires_grad else "frozen"
        census[f"{role} {dtype}"] += parameter.numel() * (1 + four_bit)
    return dict(census)


def training_flops(model, gradient_checkpointing):
    """FLOP of a training step, per token in the layers and per completion token in the head.

    A frozen weight costs 4 per token (forward 2, gradient of its input 2; it has no gradient of its own), a LoRA weight
    6, and checkpointing runs the layers' forward once more. Attention's own products are left out: at these lengths a
    few per cent.
    """
    embeddings = {id(weight): weight.numel() for weight in (model.get_input_embeddings().weight, head_weight(model))}
    census = dtype_census(model)
    frozen = sum(count for role, count in census.items() if role.startswith("frozen")) - sum(embeddings.values())
    trainable = sum(count for role, count in census.items() if role.startswith("trainable"))
    again = 2 if gradient_checkpointing else 0
    return frozen * (4 + again) + trainable * (6 + again), 4 * head_weight(model).numel()


def head_weight(model):
    return model.get_output_embeddings().weight


def peak_flops(accelerator):
    """The bf16 peak of all processes' devices in FLOP/s, or None where it is not known."""
    if accelerator.device.type != "cuda" or accelerator.mixed_precision != "bf16":
        return None
    name = torch.cuda.get_device_name(accelerator.device)
    known = [key for key in PEAK_BF16_FLOPS if name.startswith(key)]
    return PEAK_BF16_FLOPS[max(known, key=len)] * accelerator.num_processes if known else None
