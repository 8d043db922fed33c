"""The one place that loads a tokenizer and a base model, quantises it, and gives it a LoRA adapter."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import torch
import yaml
from accelerate.utils import send_to_device
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import is_liger_kernel_available
from transformers.utils import logging as transformers_logging

from attention_utils import ISOLATED, has_varlen_kernel
from data_utils.batching import Example, collate
from data_utils.prompt import PROMPT_VERSION
from script_utils import ROOT, UserError, check_hub_access

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


def choose_attention(accelerator, compiled=False):
    """What `--attn_implementation auto` means: examples kept apart by kernel, without masks, where torch has its
    variable-length kernel or on a CPU; by SDPA's block mask elsewhere, where the stand-in for that kernel would wait for
    the GPU in every layer to learn the examples' lengths, and cannot be compiled."""
    on_cpu = accelerator.device.type == "cpu"
    if has_varlen_kernel(accelerator.device, DTYPES[accelerator.mixed_precision]) or (on_cpu and not compiled):
        return ISOLATED
    return "sdpa"


def load_base_model(name, accelerator, revision=None, quantization="none", attn_implementation=None):
    """The causal language model on this process's device, frozen, in bf16 or float32 as the Accelerator's precision
    says; its linear layers in NF4 (double quantisation, QLoRA) or int8 if asked for."""
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
            attn_implementation=attn_implementation or choose_attention(accelerator),
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


def one_line(error):
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}{'...' * (len(text) > 300)}"


def add_lora(model, r, alpha, dropout, target_modules):
    """The model under a fresh LoRA adapter, in float32 whatever the base's dtype. B starts at zero: same outputs."""
    from peft import LoraConfig, get_peft_model  # late: importing peft imports bitsandbytes, and takes seconds

    from fused_lora import fuse_lora

    names = {name.split(".")[-1] for name, _ in model.named_modules()}
    if unknown := [module for module in target_modules if module not in names]:
        raise UserError(f"cannot add LoRA to {', '.join(unknown)}: the model has no such layers")

    config = LoraConfig(
        task_type="CAUSAL_LM", r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=target_modules
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


def load_adapter(model, folder):
    """The base under the adapter saved in `folder`: merged into it, or beside its weights where these are quantised.
    Refuses an adapter trained on another base."""
    from peft import PeftModel  # late, as in add_lora

    _, environment = read_adapter(folder)
    if environment["base_fingerprint"] != base_fingerprint(model):
        raise UserError(f"{folder} was trained on another base model than {model.name_or_path}")
    try:
        model = PeftModel.from_pretrained(model, folder)
    except Exception as error:  # whatever a broken file makes safetensors and peft raise
        raise UserError(f"cannot load the adapter {folder}: {one_line(error)}") from None
    quantized = not all(parameter.is_floating_point() for parameter in model.parameters())
    return (model if quantized else model.merge_and_unload()).eval()


@torch.no_grad()
def check_isolation(model, name):
    """Refuse a model whose examples see their neighbours in a padding-free batch.

    Two tiny examples end to end: editing the first must not move the second's logits. Linear attention, sliding caches
    and kernels that ignore restarting positions fail this without a word.
    """
    first, edited, second = ([token + i for token in range(8)] for i in (1, 20, 40))
    logits = []
    for neighbour in (first, edited):
        batch = collate([Example("", torch.tensor(ids).int().numpy(), 1) for ids in (neighbour, second)])
        del batch["labels"]
        batch = send_to_device(batch, model.device)
        try:
            logits.append(model(**batch, use_cache=False).logits[0, len(first) - 1 :].float())
        except torch.OutOfMemoryError:
            raise
        except (ValueError, RuntimeError) as error:  # what transformers and kernels raise that know that they cannot
            raise UserError(f"{name} cannot keep examples of one batch apart: {one_line(error)}") from None
    leak = (logits[0] - logits[1]).abs().max() / logits[0].std()
    # Exactly 0 where attention alone mixes tokens; mixtures of experts regroup their sums within rounding.
    if not leak < (1e-4 if model.dtype == torch.float32 else 2e-2):
        raise UserError(
            f"{name} with --attn_implementation {model.config._attn_implementation} lets examples of one batch see each "
            f"other (logits move by {leak:.1e} of their spread): use another --attn_implementation or model"
        )


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
