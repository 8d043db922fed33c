"""Memory and time of a training on a GPU, computed from the model's configuration and the rows'
lengths, before anything is paid for. docs/estimate.md compares it with measurements.

Memory: the counts of footprint.py, in the largest micro-batch. Time of a micro-batch: the larger of
the GPU's work and the CPU's launches. The constants of the time were fitted to Qwen3-4B's shape on
H100 and H200. Other GPUs are scaled by their data sheets."""

import math
from types import SimpleNamespace

import torch

from data_utils.batching import TrainingData, largest_chunks, num_tokens
from model_utils.cuda_graphs import padded
from model_utils.footprint import SCALE_BYTES, footprint
from model_utils.gpus import GPUS, nearest_gpu
from run_utils.errors import UserError

GIB = 2**30
SHOWN = ("rtx-4090", "l40s", "a100-80gb", "h100")  # without a GPU at hand
# By compiled: bf16 logits and their gradients; plain, float32 logits and log-probabilities too.
LOGIT_BYTES = {False: 14, True: 4}
OUTSIDE_GIB = 1.0  # CUDA's context and the allocator's gaps, beside the tensors
PRODUCTS_SHARE = 0.74  # of the peak, by products of large matrices
PASSES = {False: 30, True: 23}  # by compiled: reads and writes of a kept byte in forward and backward
DEQUANTIZE_BYTES = 5  # read and written for an NF4 weight in each pass over it
GRAPH_SECONDS = 0.5e-3  # per layer and micro-batch, with CUDA graphs
# The CPU's launches without them, per layer and micro-batch.
LAUNCH_SECONDS = {"none": 9e-3, "nf4": 12.5e-3}
CHECKPOINTED_LAUNCHES = 2


def estimate(args, config, train_examples, eval_examples, gpu=None):
    """The memory and time of a run, as JSON values with "lines" for the terminal. If the model
    cannot be counted, only "lines" with the reason.

    args: train.py's. config: the model's. train_examples, eval_examples: [Example], within the
    length limit. gpu: a name of GPUS or "cpu", by default the GPU at hand or else a few."""
    if not train_examples:
        return {"lines": ["Memory and time are not computed: no training row is left"]}
    names, at_hand = ([gpu], None) if gpu else gpus_to_show()
    fp32 = args.dtype == "fp32" or (args.dtype == "auto" and gpu == "cpu")
    try:
        foot = footprint(args, config, torch.float32 if fp32 else torch.bfloat16)
    except UserError as error:
        return {"lines": [f"Memory and time are not computed: {error}"]}
    except Exception:  # models raise anything on the meta device
        return {"lines": [f"Memory and time are not computed: {config.model_type} does not run without weights"]}
    train = TrainingData(train_examples, args.seed, args.per_device_train_batch_size, args.gradient_accumulation_steps)
    steps = args.max_train_steps or math.ceil(args.num_train_epochs * train.steps_per_epoch)
    memory = training_memory(args, foot, train.chunks(range(min(steps, train.steps_per_epoch))))
    evaluations = num_evaluations(args, steps) if eval_examples else 0
    gpus = []
    for name in names:
        if name in GPUS:
            known = None if fp32 or never_measured(args) else GPUS[name]
            time = known and training_time(
                args, foot, known, train, eval_examples, steps=steps, evaluations=evaluations
            )
            fits = memory["peak"] + OUTSIDE_GIB <= GPUS[name].memory_gib
            gpus.append({"name": name, "memory_gib": GPUS[name].memory_gib, "fits": fits, "time": time})
    result = {
        "settings": describe_settings(args, fp32),
        "memory": memory,
        "steps": steps,
        "steps_per_epoch": train.steps_per_epoch,
        "tokens_per_epoch": num_tokens(train.examples),
        "evaluations": evaluations,
        "gpus": gpus,
        "notes": describe_limits(args, at_hand, gpu, gpus),
    }
    return result | {"lines": describe(result)}


def gpus_to_show():
    """`(names of GPUS, torch's name of the GPU at hand or None)`."""
    if not torch.cuda.is_available():
        return SHOWN, None
    name = torch.cuda.get_device_name()
    known = nearest_gpu(name, torch.cuda.get_device_properties(0).total_memory / GIB)
    return [known] if known else SHOWN, name


# ---- memory --------------------------------------------------------------------------------------


def training_memory(args, foot, chunks):
    """The peak of the tensors on one GPU without sharding, and its parts, in GiB. chunks: the
    micro-batches, lists of examples."""
    sizes = [(num_tokens(chunk), sum(example.num_supervised for example in chunk)) for chunk in largest_chunks(chunks)]
    if args.cuda_graphs:  # the graphs keep the memory of the most tokens
        sizes = [tuple(map(max, *sizes))]
    peaks = [micro_batch_memory(args, foot, *size) for size in sizes]
    return max(peaks, key=lambda memory: memory["peak"])


def micro_batch_memory(args, foot, tokens, supervised):
    size = padded(tokens) if args.cuda_graphs else tokens
    kept = foot.kept_compiled_bytes if args.torch_compile else foot.kept_bytes
    if args.gradient_checkpointing:
        kept = foot.num_layers * foot.width * foot.item_bytes
    kept *= size
    if args.torch_compile and args.quantization == "nf4":
        kept += SCALE_BYTES * foot.quantized
    logits = supervised * foot.vocab_size * LOGIT_BYTES[args.torch_compile]
    # One layer at a time is computed again, when the logits are gone. CUDA graphs keep memory of
    # their own for it.
    again = args.torch_compile or args.gradient_checkpointing
    layer = foot.kept_bytes / foot.num_layers * size if again else 0
    moments = 2 * foot.trained if args.optim.endswith("8bit") else 2 * foot.trained_bytes
    parts = {
        "base": foot.base_bytes,
        # Weights, gradients, perhaps the average of the weights
        "trained": (3 if args.ema_decay else 2) * foot.trained_bytes + moments,
        "activations": kept + (layer if args.cuda_graphs else max(0, layer - logits)),
        "logits": logits,
    }
    parts = {name: size / GIB for name, size in parts.items()}
    return parts | {"peak": sum(parts.values()), "tokens": tokens, "supervised": supervised}


# ---- time ----------------------------------------------------------------------------------------


def training_time(args, foot, gpu, train, eval_examples, *, steps, evaluations):
    """Speed, hours, and the limit of the speed."""
    tokens, supervised = num_tokens(train.examples), sum(example.num_supervised for example in train.examples)
    count = math.ceil(len(train.examples) / train.batch_size)  # micro-batches in an epoch
    work = work_seconds(args, foot, gpu, tokens / count, supervised / count)
    launches = foot.num_layers * launch_seconds(args)
    seconds = work + launches if args.cuda_graphs else max(work, launches)
    step_seconds = seconds * count / train.steps_per_epoch
    evaluation = evaluation_seconds(args, foot, gpu, eval_examples) if evaluations else 0
    flop = foot.flops.per_token * tokens + foot.flops.per_completion_token * supervised
    return {
        "tokens_per_second": tokens / (seconds * count),
        "mfu": flop / (seconds * count) / gpu.peak,
        "limit": "launches" if launches > work else "arithmetic",
        "step_seconds": step_seconds,
        "training_hours": steps * step_seconds / 3600,
        "evaluation_hours": evaluations * evaluation / 3600,
        "hours": (steps * step_seconds + evaluations * evaluation) / 3600,
    }


def work_seconds(args, foot, gpu, tokens, supervised):
    """The GPU's work for a micro-batch: products, and memory traffic between them."""
    passes = 3 if args.gradient_checkpointing else 2  # over the weights
    kept = foot.kept_compiled_bytes if args.torch_compile else foot.kept_bytes
    flop = (foot.flops.per_token + foot.flops.recomputed_per_token) * tokens
    flop += foot.flops.per_completion_token * supervised
    moved = PASSES[args.torch_compile] * kept * tokens * (1 + 1 / 3 * args.gradient_checkpointing)
    if args.quantization == "nf4":
        moved += DEQUANTIZE_BYTES * passes * foot.quantized
    return flop / (PRODUCTS_SHARE * gpu.peak) + moved / gpu.bandwidth


def launch_seconds(args):
    if args.cuda_graphs:
        return GRAPH_SECONDS
    return LAUNCH_SECONDS[args.quantization] * (CHECKPOINTED_LAUNCHES if args.gradient_checkpointing else 1)


def evaluation_seconds(args, foot, gpu, examples):
    """A forward pass is half of the products and a third of the launches. It has no graphs."""
    count = math.ceil(len(examples) / args.per_device_eval_batch_size)
    tokens, supervised = num_tokens(examples), sum(example.num_supervised for example in examples)
    plain = SimpleNamespace(
        torch_compile=args.torch_compile, quantization=args.quantization, gradient_checkpointing=False
    )
    work = work_seconds(plain, foot, gpu, tokens / count, supervised / count) / 2
    return count * max(work, foot.num_layers * LAUNCH_SECONDS[args.quantization] / 3)


def num_evaluations(args, steps):
    """train.py evaluates every --eval_steps, before each checkpoint, and at the end."""
    due = {*range(args.eval_steps, steps + 1, args.eval_steps), *range(args.save_steps, steps + 1, args.save_steps)}
    return len(due | {steps}) + args.eval_on_start


def never_measured(args):
    """The kind of base, in a word, whose time was never compared with a measurement, or None."""
    return "FP8" if args.base_precision == "fp8" else "int8" if args.quantization == "int8" else None


# ---- words ---------------------------------------------------------------------------------------


def describe_settings(args, fp32):
    base = {"none": "float32" if fp32 else "bf16", "nf4": "NF4", "int8": "int8"}[args.quantization]
    base += " and FP8" * (args.base_precision == "fp8")
    parts = [f"base in {base}", f"LoRA r={args.lora_r}"]
    parts.append(f"{args.per_device_train_batch_size} x {args.gradient_accumulation_steps} rows a step")
    flags = ("gradient_checkpointing", "torch_compile", "cuda_graphs")
    return ", ".join(parts + [f"--{flag}" for flag in flags if getattr(args, flag)])


def describe_limits(args, at_hand, gpu, gpus):
    """The limits of the figures, in words."""
    notes = ["computed, not measured: for one GPU, without its sharing by FSDP2"]
    if args.torch_compile or args.cuda_graphs:
        notes.append("without the minutes of compiling and capturing at the start")
    if args.eval_generate_examples:
        notes.append("without the calls generated in evaluations")
    if args.use_dora:
        notes.append("--use_dora is slower than this: PEFT's layers run")
    if args.liger_kernel:
        notes.append("--liger_kernel needs less than this")
    if weights := never_measured(args):
        notes.append(f"{weights} was never compared with a measurement, and has no time here")
    if args.base_precision == "fp8":
        notes.append("--base_precision fp8 needs an H100, an H200 or a newer GPU")
    if at_hand and (len(gpus) > 1):
        notes.append(f"this machine's {at_hand} has no figures in model_utils/gpus.py")
    if gpu == "cpu":
        notes.append("a CPU's time is not computed: --max_train_steps 5 measures tokens/s")
    elif not at_hand and not gpu:
        notes.append("no GPU is here: --gpu names one; a CPU's time is not computed")
    return notes


def describe(result):
    """Lines for the terminal."""
    memory = result["memory"]
    peak, base, trained, activations, logits = (
        f"{size:.1f}" if size >= 1 else f"{size:.2f}"
        for size in (memory[part] for part in ("peak", "base", "trained", "activations", "logits"))
    )
    lines = [
        f"Computed: {result['settings']}",
        f"Memory: {peak} GiB = base {base} + adapter, its gradients and moments {trained} + activations of "
        f"{memory['tokens']:,} tokens {activations} + logits of {memory['supervised']:,} supervised tokens {logits}",
    ]
    if result["gpus"]:
        lines.append(f"Time: of {count(result['steps'], 'step')} and {count(result['evaluations'], 'evaluation')}")
    for gpu in result["gpus"]:
        line = f"  {gpu['name']}, {gpu['memory_gib']:.0f} GiB: {'fits' if gpu['fits'] else 'does not fit'}"
        if time := gpu["time"]:
            limit = "; the CPU's launches limit it" if time["limit"] == "launches" else ""
            line += f"; {show_hours(time['hours'])} at {time['tokens_per_second']:,.0f} tokens/s"
            line += f", {time['mfu']:.0%} of its peak{limit}"
        lines.append(line)
    return [*lines, f"({'; '.join(result['notes'])})"]


def show_hours(hours):
    minutes = math.ceil(60 * hours)
    return f"{hours:.1f} hours" if minutes >= 60 else count(minutes, "minute")


def count(number, unit):
    return f"{number:,} {unit}{'s' * (number != 1)}"
