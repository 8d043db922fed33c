"""Fine-tune a base language model with LoRA or QLoRA to turn a query and a list of tools into a JSON list of calls.

    accelerate launch train.py                                      # the embedded demo: offline, on a CPU
    accelerate launch -q --config_file accelerate_configs/single_gpu.yaml train.py --config recipes/qwen3_4b_qlora.yaml
    tensorboard --logdir runs                                       # look at it
    accelerate launch ... train.py --config ... --resume_from_checkpoint latest

Rows, prompt and batches come from data_utils/, the model from model_utils.py. The defaults below are the reference
experiment's; `main` is the run, from top to bottom. Edit either.
"""

import functools
import math
import re
import resource
import sys
import time
from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import broadcast, gather_object, send_to_device
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from checkpoint_utils import (
    RunState,
    abandon_later_steps,
    clear_run,
    complete_checkpoints,
    deliver_adapter,
    is_delivered,
    load_checkpoint,
    prepare_output_dir,
    save_checkpoint,
    to_deliver,
)
from cuda_graphs import average_gradients, use_cuda_graphs
from data_utils.batching import TrainingData, fingerprint, mark_supervised, micro_batches, tokenize_rows
from data_utils.prompt import PROMPT_VERSION, to_json
from data_utils.rows import describe_bad_rows, load_rows, split_rows
from evaluate import METRICS, predict
from generation_utils import problem_with_slots
from model_utils import (
    COMPILE,
    add_lora,
    base_fingerprint,
    choose_attention,
    compile_layers,
    dtype_census,
    load_base_model,
    load_config,
    load_tokenizer,
    peak_flops,
    resolve_model,
    training_flops,
    use_liger_kernels,
)
from preflight import check_evaluation_fits, check_graphs_fit, check_training_fits
from script_utils import (
    UserError,
    environment_record,
    parse_arguments,
    require,
    require_positive,
    require_share,
    run_script,
    start_accelerator,
    step_profiler,
    write_json,
    write_yaml,
)
from self_checks import num_positions


@dataclass
class TrainingArguments:
    config: str | None = field(default=None, metadata={"help": "YAML file of these arguments; flags override it"})
    # Model and data
    model_name_or_path: str = field(default="Qwen/Qwen3-4B-Base", metadata={"help": "Hub id, folder, or 'demo'"})
    model_revision: str | None = None
    dataset_name: str = field(
        default="Salesforce/xlam-function-calling-60k",
        metadata={"help": "Hub id, .json, .jsonl or .parquet file, folder in the hub's layout, or 'demo'"},
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Where a data set has several configurations"}
    )
    dataset_revision: str | None = None
    eval_fraction: float = field(default=0.05, metadata={"help": "Share of the valid rows held out"})
    eval_split: Literal["random", "tools"] = field(
        default="random", metadata={"help": "tools: no tool of a held-out row occurs in training"}
    )
    max_bad_rows: float = field(default=0.01, metadata={"help": "Bad rows to bear: a share below 1, a count from 1 on"})
    max_train_examples: int | None = None
    max_eval_examples: int | None = None
    max_seq_length: int = field(default=1024, metadata={"help": "Tokens; longer rows are dropped, never cut"})
    # Where
    output_dir: str = "runs/qwen3_4b_qlora"
    overwrite_output_dir: bool = False
    resume_from_checkpoint: str | None = field(default=None, metadata={"help": "'latest', or a checkpoint's path"})
    # Optimisation
    seed: int = 42
    dtype: Literal["auto", "bf16", "fp32"] = field(
        default="auto", metadata={"help": "auto: bf16 on CUDA, fp32 on a CPU"}
    )
    num_train_epochs: float = 1.0
    max_train_steps: int | None = field(default=None, metadata={"help": "Optimizer steps; overrides num_train_epochs"})
    stop_after_steps: int | None = field(
        default=None, metadata={"help": "End early, on the same learning-rate schedule"}
    )
    per_device_train_batch_size: int = 2
    per_device_eval_batch_size: int = 2
    gradient_accumulation_steps: int = 4
    learning_rate: float = 1e-4
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = field(default=1.0, metadata={"help": "0 turns clipping off"})
    optim: Literal["adamw_torch", "adamw_torch_fused"] = "adamw_torch_fused"
    # LoRA
    lora_r: int = 32
    lora_alpha: int = 64
    lora_dropout: float = 0.05
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    # Memory and speed
    quantization: Literal["none", "nf4", "int8"] = "nf4"
    gradient_checkpointing: bool = True
    attn_implementation: Literal["auto", "isolated", "sdpa", "eager"] = "auto"
    liger_kernel: bool = field(
        default=False, metadata={"help": "Liger's RoPE, RMSNorm and SwiGLU; without compilation"}
    )
    torch_compile: bool = field(
        default=False, metadata={"help": "Compile the layers: minutes at first, faster from then"}
    )
    cuda_graphs: bool = field(
        default=False, metadata={"help": "Launch a micro-batch's layers at once: for small ones on a fast GPU"}
    )
    # Logging, evaluation, checkpoints: every so many optimizer steps
    logging_steps: int = 10
    eval_steps: int = 100
    eval_generate_examples: int = field(
        default=0, metadata={"help": "Held-out rows to generate calls for and score at each evaluation"}
    )
    save_steps: int = 100
    save_total_limit: int = field(default=3, metadata={"help": "Checkpoints kept; the newest and the best always are"})
    final_adapter: Literal["last", "best"] = field(
        default="last",
        metadata={"help": "Which step's adapter/ is: the last, or the one of the lowest evaluation loss"},
    )
    profile_steps: str | None = field(
        default=None, metadata={"help": "5:7 writes a trace of steps 5 to 7, for Perfetto, to profile/ in --output_dir"}
    )

    def __post_init__(self):
        require_positive(
            self, "max_train_examples", "max_eval_examples", "max_seq_length", "num_train_epochs", "max_train_steps",
            "stop_after_steps", "per_device_train_batch_size", "per_device_eval_batch_size",
            "gradient_accumulation_steps", "learning_rate", "lora_r", "lora_alpha", "logging_steps", "eval_steps",
            "save_steps", "save_total_limit",
        )  # fmt: skip
        require_share(self, "eval_fraction", "warmup_ratio", "lora_dropout")
        for name in ("seed", "eval_generate_examples", "max_bad_rows", "weight_decay", "max_grad_norm"):
            value = getattr(self, name)
            require(value >= 0 and math.isfinite(value), f"--{name} must be at least 0, not {value}")
        require(
            not (self.overwrite_output_dir and self.resume_from_checkpoint),
            "--overwrite_output_dir and --resume_from_checkpoint contradict each other",
        )
        require(
            not (self.cuda_graphs and self.gradient_checkpointing),
            "--cuda_graphs keeps what --gradient_checkpointing throws away: switch one of them off",
        )
        require(
            not (self.torch_compile and self.liger_kernel),
            "--torch_compile makes what --liger_kernel brings, and cannot trace it: switch one of them off",
        )
        steps = re.fullmatch(r"([1-9]\d*):(\d+)", self.profile_steps or "1:1")
        require(steps and int(steps[1]) <= int(steps[2]), f"--profile_steps must be like 5:7, not {self.profile_steps}")


# What a resumed run may change without becoming another experiment. Batch size and accumulation may change
# together: their product is checked.
MAY_CHANGE_ON_RESUME = [
    "config",
    "output_dir",
    "overwrite_output_dir",
    "resume_from_checkpoint",
    "max_bad_rows",
    "stop_after_steps",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "attn_implementation",
    "liger_kernel",
    "torch_compile",
    "cuda_graphs",
    "logging_steps",
    "eval_steps",
    "eval_generate_examples",
    "save_steps",
    "save_total_limit",
    "final_adapter",
    "profile_steps",
]

GENERATED_TOKENS = 256  # at most, in an evaluation inside training


def main():
    args = parse_arguments(TrainingArguments, __doc__, "demo.yaml")
    accelerator = start_accelerator(args.dtype)
    is_main, log = accelerator.is_main_process, accelerator.print
    checkpoint = prepare_output_dir(args, is_main)
    accelerator.wait_for_everyone()  # all have looked at the folder before anyone writes to it

    # Rows -> prompt -> tokens
    rows, dropped = load_rows(args.dataset_name, args.dataset_revision, args.max_bad_rows, args.dataset_config_name)
    train_rows, eval_rows, in_neither = split_rows(rows, args.eval_fraction, args.seed, args.eval_split)
    model_path = resolve_model(args.model_name_or_path)
    tokenizer = load_tokenizer(model_path, args.model_revision)
    positions = num_positions(load_config(model_path, args.model_revision))
    max_length = min(args.max_seq_length, positions)
    with accelerator.main_process_first():  # the others read what main leaves in the token cache
        train_examples, too_long = tokenize_rows(tokenizer, train_rows[: args.max_train_examples], max_length)
        eval_examples, too_long_eval = tokenize_rows(tokenizer, eval_rows[: args.max_eval_examples], max_length)
    if bad := describe_bad_rows(dropped):
        log(f"Dropped {sum(map(len, dropped.values()))} of {len(rows) + sum(map(len, dropped.values()))} rows: {bad}")
    dropped[f"longer than {max_length} tokens"] = [*too_long, *too_long_eval]
    dropped["in neither split: offers both held-out and other tools, or repeats a held-out row"] = [
        row.id for row in in_neither
    ]
    if not train_examples:
        raise UserError(
            f"no training rows left of {len(rows)}: --eval_fraction {args.eval_fraction} holds out {len(eval_rows)}, "
            f"{len(in_neither)} are in neither split, {len(too_long)} are longer than {max_length} tokens, the least of "
            f"--max_seq_length {args.max_seq_length} and the model's {positions} positions"
        )
    if args.final_adapter == "best" and not eval_examples:
        raise UserError("--final_adapter best needs rows to evaluate: raise --eval_fraction")
    log(
        f"{len(rows)} valid rows: {len(train_examples)} to train on, {len(eval_examples)} to evaluate, "
        f"{len(too_long)} + {len(too_long_eval)} longer than {max_length} tokens, {len(in_neither)} in neither split"
    )
    if warning := describe_too_long(train_examples + eval_examples, too_long | too_long_eval, max_length, positions):
        log(warning)
    if accelerator.device.type == "cpu" and (args.quantization != "none" or args.gradient_checkpointing):
        log("On a CPU, --quantization none --gradient_checkpointing false is several times faster, if memory allows")
    log(f"One example; the loss is on what stands between ⟦ and ⟧:\n{mark_supervised(tokenizer, train_examples[0])}")

    fingerprints = {row.id: row.fingerprint for row in train_rows + eval_rows}
    split = {
        "trained": {example.row_id: fingerprints[example.row_id] for example in train_examples},
        "held_out": {row.id: fingerprints[row.id] for row in eval_rows},
    }

    # The run's length
    data = TrainingData(
        train_examples,
        args.seed,
        args.per_device_train_batch_size,
        args.gradient_accumulation_steps,
        accelerator.num_processes,
        accelerator.process_index,
    )
    max_steps = args.max_train_steps or math.ceil(args.num_train_epochs * data.steps_per_epoch)
    last_step = min(max_steps, args.stop_after_steps or max_steps)
    output_dir = Path(args.output_dir)
    if checkpoint == output_dir / f"checkpoint-{last_step}" and is_delivered(checkpoint, args.final_adapter):
        return log(
            f"{output_dir} is finished: all {last_step} steps are done, the adapter is in {output_dir / 'adapter'}"
        )

    # Model, optimizer, schedule
    model = load_base_model(model_path, accelerator, args.model_revision, args.quantization)
    examples = train_examples + eval_examples
    attention = choose_attention(model, args.attn_implementation, args.model_name_or_path, examples, args.torch_compile)
    prompts = [example.input_ids[: example.prompt_length] for example in eval_examples or train_examples]
    # Said now, and not when all is trained.
    problem_with_slots(model, prompts, max(map(len, prompts)) + GENERATED_TOKENS)
    environment = environment_record(
        prompt_version=PROMPT_VERSION,
        base_fingerprint=base_fingerprint(model),
        mixed_precision=accelerator.mixed_precision,
        num_processes=accelerator.num_processes,
        attention=attention,
    )
    torch.manual_seed(args.seed)
    model = add_lora(model, args.lora_r, args.lora_alpha, args.lora_dropout, args.lora_target_modules)
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if args.liger_kernel:
        use_liger_kernels(model)
    loss_of = completion_loss
    if args.torch_compile:
        log("Compiling with the first batch, one graph for all layers: minutes on a GPU")
        compile_layers(model)
        # In one pass over the logits each way, keeping no log-probabilities.
        loss_of = functools.partial(completion_loss, loss_function=torch.compile(cross_entropy, **COMPILE))
    log(f"Attention: {attention}")
    log("Parameters: " + ", ".join(f"{count:,} {role}" for role, count in dtype_census(model).items()))
    flops_per_token, flops_per_completion_token = training_flops(model, args.gradient_checkpointing)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable, lr=args.learning_rate, weight_decay=args.weight_decay, fused=args.optim == "adamw_torch_fused"
    )
    from transformers import get_scheduler  # late: it imports bitsandbytes, whose hints run_script keeps quiet

    # Not prepared: Accelerate would step it once for every process.
    scheduler = get_scheduler(args.lr_scheduler_type, optimizer, math.ceil(args.warmup_ratio * max_steps), max_steps)
    # No DDP with CUDA graphs, which fill the gradients where it does not see them: the loop averages them then.
    model = accelerator.prepare_model(model, evaluation_mode=args.cuda_graphs)
    if args.cuda_graphs:
        broadcast([parameter.data for parameter in trainable])  # as DDP does: unlike cards may draw unlike weights
    optimizer = accelerator.prepare_optimizer(optimizer)

    state = RunState(data_fingerprint=fingerprint(train_examples), effective_batch=data.global_batch)
    if checkpoint:
        state = load_checkpoint(
            checkpoint, accelerator, args, environment, model, optimizer, scheduler, state, MAY_CHANGE_ON_RESUME
        )
        log(f"Resuming from {checkpoint}, after step {state.global_step}")
    model.train()
    if state.global_step < last_step:
        steps = state.global_step, last_step
        check_training_fits(accelerator, model, optimizer, loss_of, data, args, *steps)
        if args.cuda_graphs:
            log(f"CUDA graphs for {use_cuda_graphs(accelerator, model, data, *steps)} sizes of micro-batches")
            check_graphs_fit(model, optimizer, loss_of, data, *steps)
        check_evaluation_fits(accelerator, model, optimizer, completion_loss, data, eval_examples, args)
    writer = None
    if is_main:
        output_dir.mkdir(parents=True, exist_ok=True)
        if args.overwrite_output_dir:
            clear_run(output_dir)
        abandon_later_steps(output_dir, state.global_step)
        write_yaml(output_dir / "args.yaml", args)
        write_json(output_dir / "environment.json", environment)
        write_json(output_dir / "dropped_rows.json", dropped)
        write_json(output_dir / "split.json", split)
        # Entries that a killed run wrote after its last checkpoint are dropped: steps stay unique.
        writer = SummaryWriter(output_dir / "logs", purge_step=state.global_step + 1)
    accelerator.wait_for_everyone()

    # The loop. global_step counts optimizer steps and nothing else.
    terminal = sys.stdout.isatty()
    progress = tqdm(total=last_step, initial=state.global_step, disable=not (is_main and terminal), file=sys.stdout)
    peak = peak_flops(accelerator)
    num_tokens, seconds, data_seconds = 0, 0.0, 0.0  # since the last log entry
    unread = deque()  # steps whose loss is on the GPU
    profiler = step_profiler(args.profile_steps, state.global_step, output_dir) if is_main else None
    while state.global_step < last_step:
        step_start = time.perf_counter()
        torch.manual_seed(step_seed(args.seed, state.global_step, accelerator.process_index))
        window = data[state.global_step]
        data_seconds += time.perf_counter() - step_start

        # Summed over the window and divided by its completion tokens on all processes, so that every token weighs
        # the same however the window is cut up. Processes are averaged over, by DDP or here: multiply by their number.
        loss_sum = torch.zeros((), device=accelerator.device)
        scale = accelerator.num_processes / window.num_completion_tokens
        for i, batch in enumerate(window.micro_batches):
            is_last = i == len(window.micro_batches) - 1
            with nullcontext() if is_last else accelerator.no_sync(model):
                loss = loss_of(model, batch, accelerator.device)
                accelerator.backward(loss * scale)
            loss_sum += loss.detach()
        if args.cuda_graphs and accelerator.num_processes > 1:
            average_gradients(accelerator, trainable)
        grad_norm = accelerator.clip_grad_norm_(trainable, args.max_grad_norm or math.inf)
        learning_rate = scheduler.get_last_lr()[0]
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

        unread.append((window, torch.stack([accelerator.reduce(loss_sum), grad_norm])))
        num_tokens += window.num_tokens
        state.global_step += 1
        is_last = state.global_step == last_step
        is_log = is_last or state.global_step % args.logging_steps == 0
        is_save = is_last or state.global_step % args.save_steps == 0
        is_eval = eval_examples and (is_save or state.global_step % args.eval_steps == 0)

        # Reading a loss waits for the GPU, the only thing here that does. So the previous step's is read, while the GPU is busy
        # with this one; this one's too before anything that needs it.
        while len(unread) > (0 if is_log or is_eval or is_save or profiler else 1):
            window, results = unread.popleft()
            step_loss, grad_norm = results.tolist()
            if not (math.isfinite(step_loss) and math.isfinite(grad_norm)):
                last_good = next(reversed(complete_checkpoints(output_dir)), "none yet")
                raise UserError(
                    f"step {state.global_step - len(unread)} has loss {step_loss / window.num_completion_tokens} and gradient norm "
                    f"{grad_norm}; its rows: {', '.join(window.row_ids)}; last good checkpoint: {last_good}"
                )
            state.loss_sum += step_loss
            state.completion_tokens += window.num_completion_tokens
        seconds += time.perf_counter() - step_start
        progress.update()
        if profiler:
            profiler.step()

        if is_log:
            metrics = {
                "train/loss": state.loss_sum / state.completion_tokens,
                "train/learning_rate": learning_rate,
                "train/grad_norm": grad_norm,
                "train/tokens_per_second": num_tokens / seconds,
                "train/completion_tokens": state.completion_tokens,
                "train/data_wait_fraction": data_seconds / seconds,
                "train/peak_memory_gib": peak_memory_gib(accelerator.device, args.cuda_graphs),
                "train/epoch": state.global_step / data.steps_per_epoch,
            }
            if peak:
                flops = flops_per_token * num_tokens + flops_per_completion_token * state.completion_tokens
                metrics["train/mfu"] = flops / seconds / peak
            report(writer, state.global_step, metrics)
            shown = {"loss": metrics["train/loss"], "lr": learning_rate, "tok/s": metrics["train/tokens_per_second"]}
            progress.set_postfix({key: f"{value:.4g}" for key, value in shown.items()})
            if not terminal:
                left = (last_step - state.global_step) * seconds / args.logging_steps
                log(
                    f"step {state.global_step}/{last_step}  loss {shown['loss']:.4f}  lr {learning_rate:.2e}  "
                    f"{shown['tok/s']:,.0f} tok/s  {left / 60:.1f} min left"
                )
            state.loss_sum, state.completion_tokens = 0.0, 0
            num_tokens, seconds, data_seconds = 0, 0.0, 0.0

        if is_eval:
            # Before saving, so that every checkpoint has its evaluation and the best one always exists.
            eval_loss = evaluate_loss(accelerator, model, eval_examples, args.per_device_eval_batch_size)
            report(writer, state.global_step, {"eval/loss": eval_loss})
            if args.eval_generate_examples:
                predictions = generate_calls(accelerator, model, tokenizer, eval_rows[: args.eval_generate_examples])
                rates = {name: sum(p[name] for p in predictions) / len(predictions) for name in METRICS}
                report(writer, state.global_step, {f"eval/{name}": rate for name, rate in rates.items()})
                if is_main:
                    samples = "\n\n".join(f"    {p['text']}\n    {to_json(p['gold'])}" for p in predictions[:5])
                    writer.add_text("eval/generated_above_gold", samples, state.global_step)
            say = progress.write if terminal else log
            say(f"step {state.global_step}/{last_step}  eval loss {eval_loss:.4f}")
            state.eval_loss = eval_loss if math.isfinite(eval_loss) else None
            if math.isfinite(eval_loss) and (state.best_eval_loss is None or eval_loss < state.best_eval_loss):
                state.best_eval_loss, state.best_checkpoint = eval_loss, f"checkpoint-{state.global_step}"
                is_save = True  # the best is always there to be had
        if is_save:
            save_checkpoint(accelerator, args, environment, model, optimizer, scheduler, state)
    progress.close()
    if profiler:
        profiler.stop()

    if is_main:
        writer.close()
        delivered = to_deliver(state, args.final_adapter)
        deliver_adapter(output_dir, output_dir / delivered)
        if state.best_checkpoint:
            log(f"Best checkpoint: {output_dir / state.best_checkpoint} (eval loss {state.best_eval_loss:.4f})")
        elif args.final_adapter == "best":
            log("No evaluation had a finite loss: none is the best")
        log(f"The adapter of {delivered}: {output_dir / 'adapter'}")
        log(f"Curves: tensorboard --logdir {output_dir}")
    accelerator.end_training()


def describe_too_long(examples, too_long, max_length, positions):
    """A warning where more than 2 % of the rows are left out for their length, with the length that keeps 99 % of them."""
    lengths = sorted([*(len(example.input_ids) for example in examples), *too_long.values()])
    if len(too_long) <= 0.02 * len(lengths):
        return None
    enough = lengths[math.ceil(0.99 * len(lengths)) - 1]
    cure = (
        f"--max_seq_length {enough} would keep 99 %" if enough <= positions else f"the model has {positions} positions"
    )
    share = len(too_long) / len(lengths)
    return f"Warning: {share:.0%} of the rows are longer than {max_length} tokens and left out; {cure}"


def cross_entropy(logits, labels):
    return F.cross_entropy(logits.float(), labels, reduction="sum")


def completion_loss(model, batch, device, loss_function=cross_entropy):
    """Cross-entropy of the completion tokens of a collated micro-batch, summed; the head runs on these alone.

    `use_cache=False` is more than thrift: with a cache, examples of a padding-free batch see each other.
    """
    batch = send_to_device(batch, device, non_blocking=True)
    labels = batch.pop("labels")
    logits = model(**batch, use_cache=False).logits[0]
    return loss_function(logits, labels)


@torch.no_grad()
def evaluate_loss(accelerator, model, examples, batch_size):
    """Mean cross-entropy of all completion tokens of `examples`: each token weighs the same, whatever the batches."""
    model.eval()
    loss_sum = torch.zeros((), device=accelerator.device, dtype=torch.float64)
    batches = micro_batches(examples, batch_size, accelerator.num_processes, accelerator.process_index)
    for batch in tqdm(
        batches, desc="eval", leave=False, disable=not (accelerator.is_main_process and sys.stdout.isatty())
    ):
        loss_sum += completion_loss(model, batch, accelerator.device)
    model.train()
    return accelerator.reduce(loss_sum).item() / sum(example.completion_length for example in examples)


def generate_calls(accelerator, model, tokenizer, rows):
    """Generate calls for `rows`, shared out to the processes, and score them: predictions as evaluate.py's, on all."""
    model.eval()
    share = rows[accelerator.process_index :: accelerator.num_processes]
    unwrapped = accelerator.unwrap_model(model)
    predictions = list(predict(unwrapped, tokenizer, share, "adapter", GENERATED_TOKENS, batch_tokens=16384))
    model.train()
    return gather_object(predictions)


def step_seed(seed, step, process_index):
    """Dropout's seed of one step on one process. Seeding every step makes a resume exact with no random state to
    save, and keeps evaluation or anything else that you add between steps from changing the training."""
    return int(np.random.SeedSequence([seed, step, process_index]).generate_state(1, np.uint64)[0] >> 1)


def report(writer, step, metrics):
    if writer:  # on the main process
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)
        writer.flush()


def peak_memory_gib(device, cuda_graphs):
    """Highest memory so far: resident on a CPU; on the GPU what tensors took, or, since the tensors inside CUDA graphs are
    not counted, what was reserved for them."""
    if device.type == "cuda":
        return (torch.cuda.max_memory_reserved if cuda_graphs else torch.cuda.max_memory_allocated)(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "linux" else 2**30)


if __name__ == "__main__":
    run_script(main)
