"""Fine-tune a base language model with LoRA or QLoRA to turn a query and a list of tools into a JSON list of calls.

    accelerate launch train.py                                      # the embedded demo: offline, on a CPU
    accelerate launch -q --config_file accelerate_configs/single_gpu.yaml train.py --config recipes/qwen3_4b_qlora.yaml
    tensorboard --logdir runs                                       # look at it
    accelerate launch ... train.py --config ... --resume_from_checkpoint latest

The defaults are the reference experiment's; `main` is the run, from top to bottom. Edit both freely. The prompt, rows and
batches are in data_utils/, the model and its fast paths in model_utils/, the metrics in eval_utils/.
"""

from run_utils.signals import Stopped, StopRequest, exit_at_once, handle_signals

if __name__ == "__main__":
    handle_signals(exit_at_once)  # until run_script has its own

import re
from dataclasses import dataclass
from typing import Literal

from data_utils.prompt import PROMPT_FORMATS, format_hash
from data_utils.readers import READERS
from demo.rows import GENERATORS
from eval_utils.metrics import METRICS, score, summarize
from run_utils.arguments import argument, check_limits, parse_arguments
from run_utils.errors import require, run_script, say
from run_utils.launch_file import is_sharded

BEST_METRICS = [name for name, metric in METRICS.items() if metric.headline and metric.kind == "rate"]


@dataclass
class TrainingArguments:
    config: str | None = argument(None, "YAML file of these arguments; flags override it", free_on_resume=True)

    model_name_or_path: str = argument("Qwen/Qwen3-4B-Base", "Hub id, folder, or 'demo'", group="Model and data")
    model_revision: str | None = argument(None)
    trust_remote_code: bool = argument(False, "Run Python code that comes with the model")
    dataset_name: str = argument(
        "Salesforce/xlam-function-calling-60k",
        f"Hub id, file ({', '.join(READERS)}), folder in the hub's layout, or 'demo'",
    )
    dataset_config_name: str | None = argument(None)
    dataset_revision: str | None = argument(None)
    prompt_format: Literal[*PROMPT_FORMATS] = argument("tags-1", "One of those in data_utils/prompt.py")
    eval_dataset_name: str | None = argument(None, "Rows to evaluate on instead of rows held out")
    eval_fraction: float = argument(0.05, "Share of the valid rows held out", at_least=0, below=1)
    eval_split: Literal["random", "tools"] = argument("random", "tools: training has no tool of a held-out row")
    max_bad_rows: float = argument(
        0.01, "Bad rows allowed: a share below 1, a count from 1 on", at_least=0, free_on_resume=True
    )
    max_train_examples: int | None = argument(None, above=0)
    max_eval_examples: int | None = argument(None, above=0)
    max_seq_length: int = argument(1024, "Tokens; longer rows are dropped, never cut", above=0)

    output_dir: str = argument("runs/qwen3_4b_qlora", group="Where", free_on_resume=True)
    overwrite_output_dir: bool = argument(False, free_on_resume=True)
    resume_from_checkpoint: str | None = argument(None, "'latest', or a checkpoint's path", free_on_resume=True)

    seed: int = argument(42, group="Optimisation", at_least=0)
    dtype: Literal["auto", "bf16", "fp32"] = argument("auto", "auto: bf16 on CUDA, fp32 on a CPU")
    num_train_epochs: float = argument(1.0, above=0)
    max_train_steps: int | None = argument(None, "Optimizer steps; overrides num_train_epochs", above=0)
    stop_after_steps: int | None = argument(
        None, "End early, on the same learning-rate schedule", above=0, free_on_resume=True
    )
    # On resume, processes x accumulation x batch size must have the same product; each of them may change.
    per_device_train_batch_size: int = argument(2, above=0, free_on_resume=True)
    per_device_eval_batch_size: int = argument(2, above=0, free_on_resume=True)
    gradient_accumulation_steps: int = argument(4, above=0, free_on_resume=True)
    learning_rate: float = argument(1e-4, above=0)
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = argument("cosine")
    warmup_ratio: float = argument(0.03, at_least=0, below=1)
    weight_decay: float = argument(0.0, at_least=0)
    max_grad_norm: float = argument(1.0, "0 turns clipping off", at_least=0)
    optim: Literal["adamw_torch", "adamw_torch_fused"] = argument("adamw_torch_fused")

    lora_r: int = argument(32, group="LoRA", above=0)
    lora_alpha: int = argument(64, above=0)
    lora_dropout: float = argument(0.05, at_least=0, below=1)
    lora_target_modules: list[str] | None = argument(None, "By default the decoder's linear layers and its experts")

    quantization: Literal["none", "nf4", "int8"] = argument("nf4", group="Memory and speed")
    gradient_checkpointing: bool = argument(True, free_on_resume=True)
    attn_implementation: Literal["auto", "isolated", "sdpa", "eager"] = argument("auto", free_on_resume=True)
    liger_kernel: bool = argument(False, "Liger's RoPE, RMSNorm and SwiGLU; without compilation", free_on_resume=True)
    torch_compile: bool = argument(False, "Compile the layers: minutes at the start, then faster", free_on_resume=True)
    cuda_graphs: bool = argument(False, "All layers as one CUDA graph, for small micro-batches", free_on_resume=True)

    logging_steps: int = argument(
        10, group="Logging, evaluation, checkpoints, in optimizer steps", above=0, free_on_resume=True
    )
    eval_steps: int = argument(100, above=0, free_on_resume=True)
    eval_generate_examples: int = argument(
        0, "Held-out rows to generate calls for at each evaluation", at_least=0, free_on_resume=True
    )
    best_metric: Literal["eval_loss", *BEST_METRICS] = argument(
        "eval_loss", "All but eval_loss need --eval_generate_examples"
    )
    save_steps: int = argument(100, above=0, free_on_resume=True)
    save_total_limit: int = argument(
        3, "Checkpoints to keep; always the newest and the best", above=0, free_on_resume=True
    )
    final_adapter: Literal["last", "best"] = argument(
        "last", "The step whose adapter goes to adapter/", free_on_resume=True
    )
    profile_steps: str | None = argument(None, "5:7 traces steps 5 to 7 for Perfetto, in profile/", free_on_resume=True)

    def __post_init__(self):
        check_limits(self)
        require(
            self.best_metric == "eval_loss" or self.eval_generate_examples,
            f"--best_metric {self.best_metric} needs --eval_generate_examples",
        )
        require(
            not (self.overwrite_output_dir and self.resume_from_checkpoint),
            "--overwrite_output_dir and --resume_from_checkpoint contradict each other",
        )
        require(
            not (self.cuda_graphs and self.gradient_checkpointing),
            "--cuda_graphs and --gradient_checkpointing do not go together: switch one of them off",
        )
        require(
            not (self.torch_compile and self.liger_kernel),
            "--torch_compile cannot compile the kernels of --liger_kernel: switch one of them off",
        )
        if is_sharded():  # by the launch file
            require(
                not self.cuda_graphs, "--cuda_graphs needs the whole model on each GPU: --cuda_graphs false with FSDP2"
            )
            require(self.quantization != "int8", "FSDP2 cannot gather int8 layers: --quantization nf4 or none")
            require(
                not self.eval_generate_examples,
                "--eval_generate_examples 0 (and --best_metric eval_loss) with FSDP2, whose processes cannot generate for rows of "
                "their own; evaluate.py scores the checkpoints",
            )
        steps = re.fullmatch(r"([1-9]\d*):(\d+)", self.profile_steps or "1:1")
        require(steps and int(steps[1]) <= int(steps[2]), f"--profile_steps must be like 5:7, not {self.profile_steps}")


def parse():
    return parse_arguments(TrainingArguments, __doc__, "demo.yaml")


if __name__ == "__main__":
    args = run_script(parse)  # --help and a wrong flag end here: the imports below take seconds
    say("Loading PyTorch and transformers ...")

import functools
import itertools
import math
import sys

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import gather_object, send_to_device
from tqdm import tqdm

from data_utils.batching import fingerprint, micro_batches
from data_utils.dataset import prepare_data
from eval_utils.outputs import Output, Task
from model_utils.adapters import adapter_record, add_lora, describe_experts, expert_names, linear_layers
from model_utils.flops import count_flops, dtype_census, peak_flops
from model_utils.generation import generate
from model_utils.loading import (
    base_fingerprint,
    choose_attention,
    load_base_model,
    load_config,
    load_tokenizer,
    model_source,
)
from model_utils.memory import check_memory
from model_utils.model_facts import num_positions
from model_utils.slots import problem_with_slots
from model_utils.speed import COMPILE, compile_layers, gradient_sync, prepare_model, use_liger_kernels
from run_utils.checkpoint import RunState, Training
from run_utils.environment import environment_record, published_name
from run_utils.launch import check_alike, end_training, run_on_main, start_accelerator
from run_utils.progress import TrainingLog
from run_utils.run import file_of_bad_rows, open_run

# What each machine may call otherwise; the base and the rows are compared by content.
PLACES = ("config", "output_dir", "model_name_or_path", "dataset_name", "eval_dataset_name")
GENERATED_TOKENS = 256  # at most, in an evaluation inside training


def main(args):
    accelerator = start_accelerator(args.dtype, may_shard=True)
    check_alike({f"--{name}": value for name, value in vars(args).items() if name not in PLACES})
    run = open_run(args, accelerator)  # looks at the output folder, writes nothing yet

    # Rows -> prompt -> tokens -> optimizer steps
    source = model_source(args)
    tokenizer = load_tokenizer(source)
    positions = num_positions(load_config(source))
    report = file_of_bad_rows(args.output_dir) if accelerator.is_main_process else None
    data = prepare_data(args, tokenizer, positions, accelerator, report=report, generators=GENERATORS)
    accelerator.print("\n".join(data.summary))
    state = RunState(data_fingerprint=fingerprint(data.train.examples), effective_batch=data.train.global_batch)
    check_alike(
        {
            "their training rows": state.data_fingerprint,
            "their evaluation rows": fingerprint(data.eval_examples),
            "their mixed precision (name a --dtype)": accelerator.mixed_precision,
        }
    )
    max_steps = args.max_train_steps or math.ceil(args.num_train_epochs * data.train.steps_per_epoch)
    last_step = min(max_steps, args.stop_after_steps or max_steps)
    run_on_main(accelerator, lambda: run.check_experiment(state))  # on main alone: PLACES may be others elsewhere
    if run.is_finished(last_step):
        accelerator.print(
            f"{run.output_dir} is finished: all {last_step} steps are done, the adapter is in {run.adapter_dir}"
        )
        return end_training(accelerator)

    # Base model under a fresh adapter
    model = load_base_model(source, accelerator)
    attention = choose_attention(
        model, args.attn_implementation, args.model_name_or_path, data.examples, args.torch_compile
    )
    # A model that the fast generation does not suit is named here, before the training and not after it.
    problem_with_slots(model, data.prompt_ids, max(map(len, data.prompt_ids)) + GENERATED_TOKENS)
    run.environment = environment_record(
        base=published_name(args.model_name_or_path),
        data=published_name(args.dataset_name),
        prompt_format=args.prompt_format,
        prompt_sha256=format_hash(PROMPT_FORMATS[args.prompt_format]),
        base_fingerprint=base_fingerprint(model),
        mixed_precision=accelerator.mixed_precision,
        num_processes=accelerator.num_processes,
        attention=attention,
    )
    check_alike({"their base model": run.environment["base_fingerprint"]})
    args.lora_target_modules = args.lora_target_modules or [*linear_layers(model), *expert_names(model)]
    if left_out := [name for name in expert_names(model) if name not in args.lora_target_modules]:
        accelerator.print(f"LoRA leaves out {describe_experts(model, left_out)}")
    torch.manual_seed(args.seed)
    model = add_lora(model, args.lora_r, args.lora_alpha, args.lora_dropout, args.lora_target_modules)
    run.environment["adapter"] = adapter_record(model)
    accelerator.print(f"Attention: {attention}")
    accelerator.print(f"LoRA on: {', '.join(args.lora_target_modules)}")
    accelerator.print("Parameters: " + ", ".join(f"{count:,} {role}" for role, count in dtype_census(model).items()))
    flops = count_flops(model, args.gradient_checkpointing, peak_flops(accelerator))
    loss_fn = set_up_passes(args, model, accelerator)

    # Optimizer and schedule
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable, lr=args.learning_rate, weight_decay=args.weight_decay, fused=args.optim == "adamw_torch_fused"
    )
    from transformers import get_scheduler  # late: it imports bitsandbytes, whose hints run_script keeps quiet

    # Not given to Accelerate, which would step it as many times as there are processes.
    scheduler = get_scheduler(args.lr_scheduler_type, optimizer, math.ceil(args.warmup_ratio * max_steps), max_steps)
    model = prepare_model(accelerator, model, args.cuda_graphs)
    optimizer = accelerator.prepare_optimizer(optimizer)
    training = Training(model, optimizer, scheduler)

    state = run.resume(training, state)
    model.train()
    steps = range(state.global_step, last_step)
    generations = generate_calls(
        accelerator, model, tokenizer, args, rows_to_generate(accelerator, args, data.eval_rows)
    )
    check_memory(accelerator, args, training, data, steps, loss_fn, completion_loss, generations)
    run.check_disk(training)
    run.start(state, {"dropped_rows.json": data.dropped, "split.json": data.split})
    log = TrainingLog(run, state, last_step, data.train.steps_per_epoch, flops)
    stop = StopRequest(accelerator, run.last_checkpoint)  # from here on signals wait for the end of a step
    stopped = 0  # or the signal that any process has received
    if state.evaluation_due:
        stopped = evaluate(accelerator, model, tokenizer, args, data, log, state, stop)
        run.update(state)

    # The loop. global_step counts optimizer steps and nothing else.
    while state.global_step < last_step and not stopped:
        # ---------------------------------- one optimizer step ----------------------------------
        log.start_step()
        torch.manual_seed(step_seed(args.seed, state.global_step, accelerator.process_index))
        step = data.train[state.global_step]
        # The sum of the loss is divided by the tokens' weights of the whole step, on all processes: a token counts by its
        # weight, however the step is cut into micro-batches. Processes are averaged: multiply by their number.
        scale = accelerator.num_processes / step.weight_sum
        loss_sum = torch.zeros((), device=accelerator.device)
        for batch, is_last_batch in step:
            with gradient_sync(accelerator, model, is_last_batch):
                loss = loss_fn(model, batch, accelerator.device)
                accelerator.backward(loss * scale)
            loss_sum += loss.detach()
        grad_norm = accelerator.clip_grad_norm_(trainable, args.max_grad_norm or math.inf)
        learning_rates = scheduler.get_last_lr()  # of each of the optimizer's parameter groups
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        state.global_step, state.eval_loss = state.global_step + 1, None
        stopped = stop.agreed()  # where a process may wait for the others: part of the step's time
        log.end_step(step, loss_sum, grad_norm, learning_rates)

        # ---------------------------------- once in a while ----------------------------------
        is_last_step = state.global_step == last_step
        is_log = is_last_step or state.global_step % args.logging_steps == 0
        is_save = is_last_step or state.global_step % args.save_steps == 0
        # Before each save too, so that every checkpoint has its evaluation.
        is_eval = bool(data.eval_examples) and (is_save or state.global_step % args.eval_steps == 0)
        state.evaluation_due = is_eval
        if is_log or is_eval or is_save or stopped:
            log.read_losses()  # waits for the GPU
        if is_log:
            log.write()
        if is_eval and not stopped:
            stopped = evaluate(accelerator, model, tokenizer, args, data, log, state, stop)
        if is_save or state.is_best or stopped:
            run.save(training, state)

    log.close()
    if not stopped:
        run.finish(training, state)
    end_training(accelerator)
    if stopped := stopped or stop.number:
        raise Stopped(stopped, f"{run.last_checkpoint()} is complete; --resume_from_checkpoint latest goes on from it")


def set_up_passes(args, model, accelerator):
    """Switch on checkpointing, kernels and compilation as the arguments ask. Returns the loss function to train with:
    completion_loss, or the same with its cross-entropy compiled."""
    if accelerator.device.type == "cpu" and (args.quantization != "none" or args.gradient_checkpointing):
        faster = "--quantization none --gradient_checkpointing false"
        accelerator.print(f"On a CPU, {faster} is several times faster, if memory allows")
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if args.liger_kernel:
        use_liger_kernels(model)
    if not args.torch_compile:
        return completion_loss
    accelerator.print("Compiling with the first batch, one graph for all layers: minutes on a GPU")
    compile_layers(model)
    # Compiled, the loss reads the logits once forward and once backward, and keeps no log-probabilities.
    return functools.partial(completion_loss, cross_entropy=torch.compile(cross_entropy, **COMPILE))


def cross_entropy(logits, labels, weights):
    """Cross-entropy of each token times its weight, summed. Weights of 1 are None."""
    if weights is None:
        return F.cross_entropy(logits.float(), labels, reduction="sum")
    return (F.cross_entropy(logits.float(), labels, reduction="none") * weights).sum()


def completion_loss(model, batch, device, cross_entropy=cross_entropy):
    """Weighted cross-entropy of the supervised tokens of a collated micro-batch, summed; the head runs on these alone.

    `use_cache=False` saves memory, and more: with a cache, examples of a padding-free batch see each other.
    """
    batch = send_to_device(batch, device, non_blocking=True)
    labels, weights = batch.pop("labels"), batch.pop("loss_weights")
    logits = model(**batch, use_cache=False).logits[0]
    return cross_entropy(logits, labels, weights)


def evaluate(accelerator, model, tokenizer, args, data, log, state, stop):
    """Evaluate, log it and take note of it in `state`; returns the signal that came before it was done, on whichever process,
    and 0 where none did. Its evaluation is then still due."""
    figures = {"loss": evaluate_loss(accelerator, model, data.eval_examples, args.per_device_eval_batch_size, stop)}
    samples = []
    stopped = max(gather_object([stop.number]))
    if args.eval_generate_examples and not stopped:
        calls, samples = evaluate_calls(accelerator, model, tokenizer, args, data.eval_rows, stop)
        figures |= calls
        stopped = max(gather_object([stop.number]))
    if stopped:
        return stopped
    log.write_evaluation(figures, samples)
    state.add_evaluation(figures, args.best_metric)
    return 0


@torch.no_grad()
def evaluate_loss(accelerator, model, examples, batch_size, stop):
    """Mean cross-entropy of the supervised tokens of `examples`, by their weights: whatever the batches, it is the same."""
    model.eval()
    loss_sum = torch.zeros((), device=accelerator.device, dtype=torch.float64)
    batches = micro_batches(examples, batch_size, accelerator.num_processes, accelerator.process_index)
    hidden = not (accelerator.is_main_process and sys.stdout.isatty())
    for batch in tqdm(batches, desc="eval", leave=False, disable=hidden):
        if stop.agreed():
            break
        loss_sum += completion_loss(model, batch, accelerator.device)
    model.train()
    return accelerator.reduce(loss_sum).item() / sum(example.weight_sum for example in examples)


def evaluate_calls(accelerator, model, tokenizer, args, eval_rows, stop):
    """Generate calls for the first --eval_generate_examples rows, shared out to the processes. Returns, the same on all of them,
    `{metric: figure}` and some rows to look at: `(query, generated text, gold)`."""
    prompt_format = PROMPT_FORMATS[args.prompt_format]
    rows = rows_to_generate(accelerator, args, eval_rows)
    model.eval()
    generations = generate_calls(accelerator, model, tokenizer, args, rows)
    mine = [
        (accelerator.process_index + index * accelerator.num_processes, said.text, said.finish)
        for index, said in itertools.takewhile(lambda generation: not stop.number, generations)
    ]
    # In the rows' order: they finish in another one, which several processes change.
    outputs = [(eval_rows[place], text, finish) for place, text, finish in sorted(gather_object(mine))]
    model.train()
    figures = summarize([score(Output(Task(row), text, prompt_format, finish)) for row, text, finish in outputs])
    shown = [name for name, metric in METRICS.items() if name in figures and (metric.headline or name == "over_call")]
    samples = [(row.query, text, row.answers) for row, text, _ in outputs[:5]]
    return {name: figures[name][METRICS[name].kind] for name in shown}, samples


def rows_to_generate(accelerator, args, eval_rows):
    return eval_rows[: args.eval_generate_examples][accelerator.process_index :: accelerator.num_processes]


def generate_calls(accelerator, model, tokenizer, args, rows):
    """`(index, Generation)` of each row, as they finish; nothing is generated before the first is asked for."""
    prompt_format = PROMPT_FORMATS[args.prompt_format]
    prompts = [prompt_format.render(row.query, row.tools) for row in rows]
    model = accelerator.unwrap_model(model)
    return generate(model, tokenizer, prompt_format, prompts, GENERATED_TOKENS, batch_tokens=16384)


def step_seed(seed, step, process_index):
    """The seed of dropout for one step on one process: 63 bits. Since every step is seeded, a resume is exact and no random
    state has to be saved, and what you add between the steps, such as an evaluation, does not change the training."""
    return int(np.random.SeedSequence([seed, step, process_index]).generate_state(1, np.uint64)[0] >> 1)


if __name__ == "__main__":
    run_script(lambda: main(args))
