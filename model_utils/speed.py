"""The fast paths: compiled layers, Liger's kernels, FSDP2, gradients averaged once a step."""

import contextlib

import torch
from accelerate.utils import broadcast
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers.utils import is_liger_kernel_available

from model_utils.fp8 import use_fp8_products
from run_utils.errors import UserError, describe_error
from run_utils.launch_file import is_sharded

# Use PyTorch's own random numbers: other kernels would draw dropout's numbers again at each use.
COMPILE = {"dynamic": True, "options": {"fallback_random": True}}


def enable_speedups(model, args, accelerator):
    """Enable gradient checkpointing, FP8 products, kernels and compiled layers of a PEFT model by
    train.py's arguments."""
    if accelerator.device.type == "cpu" and (args.quantization != "none" or args.gradient_checkpointing):
        faster = "--quantization none --gradient_checkpointing false"
        accelerator.print(f"On a CPU, {faster} is several times faster, if memory allows")
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if args.base_precision == "fp8":
        accelerator.print(use_fp8_products(model))
    if args.liger_kernel:
        use_liger_kernels(model)
    if args.torch_compile:
        accelerator.print("Compiling with the first batch, one graph for all layers: minutes on a GPU")
        compile_layers(model)


def use_liger_kernels(model):
    """Liger's Triton kernels for rotary positions, RMSNorm and SwiGLU in a PEFT model."""
    if not is_liger_kernel_available():
        raise UserError("--liger_kernel needs a package that is not here: pip install liger-kernel")
    from transformers.integrations.liger import apply_liger_kernel  # late: it imports peft

    # train.py computes the head's loss, on the supervised tokens only.
    apply_liger_kernel(model, {"cross_entropy": False, "fused_linear_cross_entropy": False})


def compile_layers(model):
    """Compile each decoder layer of a PEFT model separately, for any number of tokens. Training
    needs one graph for all layers and lengths, evaluation another."""
    # Late: they import peft and the compiler.
    from model_utils.fused_lora import group_lora
    from model_utils.recomputation import recompute_cheap_operations

    base = model.get_base_model()
    layers = getattr(base.get_decoder(), "layers", None)
    if layers is None:
        raise UserError(f"--torch_compile finds no layers in {type(base).__name__}")
    try:
        torch.compile(torch.sin)(torch.zeros(8, device=model.device))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # PyTorch, Triton and compilers raise anything
        needs = "gcc and Python's headers" if model.device.type == "cuda" else "g++"
        cause = describe_error(getattr(error, "inner_exception", error))
        raise UserError(f"--torch_compile, which needs {needs}, does not work here: {cause}") from None
    # Without this, the first layer would need a separate graph: its input has no gradient.
    base.get_input_embeddings().register_forward_hook(
        lambda module, args, output: output.requires_grad_() if torch.is_grad_enabled() else output
    )
    # Make floats constants, in the whole process. Otherwise the compiler makes some floats inputs,
    # finds one that cannot be an input (epsilon, LoRA's scaling), and traces each run's graph
    # twice.
    torch._dynamo.config.specialize_float = True
    recompute_cheap_operations()
    # Also keep graphs with the fused LoRA's own backward. Their key has the code of both passes.
    torch._functorch.config.autograd_cache_allow_custom_autograd_functions = True
    group_lora(model)
    for layer in layers:
        layer.compile(**COMPILE)


def prepare_model(accelerator, model, cuda_graphs):
    """The model for training on all processes: under DDP, or with its base under FSDP2 if the
    launch file asks for it. DDP does not see the gradients of CUDA graphs, and FSDP2 does not have
    the adapter: in these cases gradient_sync averages the gradients."""
    inner, forward = model, model.forward
    if is_sharded():
        shard_base(accelerator, model)
    else:
        model = accelerator.prepare_model(model, evaluation_mode=cuda_graphs)
    if accelerator.mixed_precision == "bf16":
        # In place of Accelerate's wrapper, which also converts the logits to float32. The loss does
        # this on the fly.
        inner.forward = torch.autocast(accelerator.device.type, torch.bfloat16)(forward)
    if is_sharded() or cuda_graphs:
        # Start from the main process's adapter, as under DDP: different GPUs draw different
        # numbers.
        broadcast([parameter.data for parameter in model.parameters() if parameter.requires_grad])
    return model


def shard_base(accelerator, model):
    """Spread the frozen base of a PEFT model over the processes with PyTorch's FSDP2. Each layer is
    gathered when used.

    The adapter stays whole on every process. It is small, and saving, resuming and averaging work
    as without FSDP."""
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    options = {"mesh": mesh, "ignored_params": {weight for weight in model.parameters() if weight.requires_grad}}
    base = model.get_base_model()
    layers = [module for module in base.modules() if type(module).__name__ in (base._no_split_modules or ())]
    if not layers:
        raise UserError(f"{type(base).__name__} does not name its layers: FSDP2 would gather all of it at once")
    try:
        # From the inside out. The base's own call shards the embedding, the last norm and the head.
        for module in [*reversed(layers), base]:
            fully_shard(module, **options)
    # For example a scalar parameter, or layers with shared parameters.
    except (TypeError, ValueError) as error:
        raise UserError(f"FSDP2 cannot share out {type(base).__name__}: {describe_error(error)}") from None
    parts = [weight.to_local() for weight in base.parameters() if isinstance(weight, DTensor)]
    size = sum(part.numel() * part.element_size() for part in parts) / 2**30
    accelerator.print(f"FSDP2: {size:.2f} GiB of the base on each of {accelerator.num_processes} processes")
    if accelerator.device.type == "cuda":
        # The whole base was on the GPU for a moment: measure the peak from here on.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


@contextlib.contextmanager
def gradient_sync(accelerator, model, is_last_batch):
    """Around forward and backward of a micro-batch: average gradients over the processes once a
    step, with its last micro-batch."""
    under_ddp = isinstance(model, DistributedDataParallel)
    with accelerator.no_sync(model) if under_ddp and not is_last_batch else contextlib.nullcontext():
        yield
    if is_last_batch and accelerator.num_processes > 1 and not under_ddp:
        average_gradients(accelerator, [parameter for parameter in model.parameters() if parameter.requires_grad])


@torch.no_grad()
def average_gradients(accelerator, parameters):
    """Average over the processes in one message. DDP needs several."""
    for parameter in parameters:
        if parameter.grad is None:  # not used on this process
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([parameter.grad.flatten() for parameter in parameters])
    torch.distributed.all_reduce(flat)
    flat /= accelerator.num_processes
    for parameter, part in zip(parameters, flat.split([parameter.numel() for parameter in parameters]), strict=True):
        parameter.grad.copy_(part.view_as(parameter))
