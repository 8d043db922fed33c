"""The fast paths that are switched on by a line: compiled layers, Liger's kernels, gradients averaged once a step."""

import contextlib

import torch
from accelerate.utils import broadcast
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers.utils import is_liger_kernel_available

from model_utils.model_facts import one_line
from run_utils.errors import UserError
from run_utils.launch_file import is_sharded

# Random numbers are PyTorch's own: else kernels would draw those of dropout's masks anew wherever they read them.
COMPILE = {"dynamic": True, "options": {"fallback_random": True}}


def enable_speedups(model, args, accelerator):
    """Switch on gradient checkpointing, kernels and compiled layers of a PEFT model, as train.py's arguments ask."""
    if accelerator.device.type == "cpu" and (args.quantization != "none" or args.gradient_checkpointing):
        faster = "--quantization none --gradient_checkpointing false"
        accelerator.print(f"On a CPU, {faster} is several times faster, if memory allows")
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
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

    # The head's loss is ours: it runs on the supervised tokens alone.
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
    # Else what a matrix product of the backward pass reads is kept, though it can be made anew from what is kept anyway: SwiGLU's
    # output above all. At 17,700 tokens a step of Qwen3-4B's shape, without dropout, 17 of 73 GiB.
    torch._functorch.config.ban_recompute_materialized_backward = False
    for layer in layers:
        layer.compile(**COMPILE)


def prepare_model(accelerator, model, cuda_graphs):
    """The model for training on all processes: under DDP, or its base under FSDP2 where the launch file says so. CUDA graphs fill the
    gradients where DDP does not see them, and FSDP2 does not have the adapter: gradient_sync averages them then."""
    if is_sharded():
        shard_base(accelerator, model)
    else:
        model = accelerator.prepare_model(model, evaluation_mode=cuda_graphs)
    if (
        is_sharded() or cuda_graphs
    ):  # all start from the main process's adapter, as under DDP: GPUs of two kinds draw different numbers
        broadcast([parameter.data for parameter in model.parameters() if parameter.requires_grad])
    return model


def shard_base(accelerator, model):
    """Spread the frozen base of a PEFT model over the processes, by PyTorch's FSDP2, layer by layer: each is gathered when it is used.

    The adapter stays whole on every process: it is small, and so it is saved, resumed and averaged as it is without FSDP.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    options = {"mesh": mesh, "ignored_params": {each for each in model.parameters() if each.requires_grad}}
    base = model.get_base_model()
    layers = [module for module in base.modules() if type(module).__name__ in (base._no_split_modules or ())]
    if not layers:
        raise UserError(
            f"{type(base).__name__} does not say which its layers are: FSDP2 would gather all of it at once"
        )
    try:
        for module in [*reversed(layers), base]:  # from the inside; with the base the rest: embedding, last norm, head
            fully_shard(module, **options)
    except (TypeError, ValueError) as error:  # a scalar among its parameters, layers that share theirs
        raise UserError(f"FSDP2 cannot share out {type(base).__name__}: {one_line(error)}") from None
    mine = [each.to_local() for each in base.parameters() if isinstance(each, DTensor)]
    size = sum(part.numel() * part.element_size() for part in mine) / 2**30
    accelerator.print(f"FSDP2: {size:.2f} GiB of the base on each of {accelerator.num_processes} processes")
    if (
        accelerator.device.type == "cuda"
    ):  # the whole base was here for a moment: the peak is that of training from here on
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if accelerator.mixed_precision == "bf16":  # as accelerator.prepare_model does
        model.forward = torch.autocast(accelerator.device.type, torch.bfloat16)(model.forward)


@contextlib.contextmanager
def gradient_sync(accelerator, model, is_last_batch):
    """Around forward and backward of a micro-batch: gradients are averaged over the processes once a step, with its last one."""
    under_ddp = isinstance(model, DistributedDataParallel)
    with accelerator.no_sync(model) if under_ddp and not is_last_batch else contextlib.nullcontext():
        yield
    if is_last_batch and accelerator.num_processes > 1 and not under_ddp:
        average_gradients(accelerator, [parameter for parameter in model.parameters() if parameter.requires_grad])


@torch.no_grad()
def average_gradients(accelerator, parameters):
    """Over the processes in one message, as DDP does in several."""
    for parameter in parameters:
        if parameter.grad is None:  # it took no part here
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([parameter.grad.flatten() for parameter in parameters])
    torch.distributed.all_reduce(flat)
    flat /= accelerator.num_processes
    for parameter, part in zip(parameters, flat.split([parameter.numel() for parameter in parameters]), strict=True):
        parameter.grad.copy_(part.view_as(parameter))
