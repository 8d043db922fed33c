r"""Fine-tune a base language model with LoRA or QLoRA to turn a query and tools into tool calls.

    accelerate launch train.py                                # the embedded demo: offline, on a CPU
    accelerate launch -q --config_file accelerate_configs/single_gpu.yaml \
        train.py --config recipes/qwen3_4b_qlora.yaml
    accelerate launch ... train.py --config ... --resume_from_checkpoint latest
    tensorboard --logdir runs

The defaults are the reference experiment. `main` is the run, from top to bottom. Edit both freely.
data_utils/ turns rows into batches, model_utils/ holds the model, eval_utils/ the metrics.
"""

from run_utils.clock import describe_parts, lap
from run_utils.signals import Stopped, StopRequest, exit_at_once, handle_signals

if __name__ == "__main__":
    handle_signals(exit_at_once)  # until run_script has its own

import re
from dataclasses import dataclass
from typing import Literal

from data_utils.augment import TRANSFORMATIONS, check_names
from data_utils.data_set_names import check_data_sets
from data_utils.parts import LOSS_MASKS, PARTS, part_weights
from data_utils.prompt import PROMPT_FORMATS
from data_utils.readers import READERS
from demo.rows import GENERATORS
from eval_utils.metrics import METRICS
from model_utils.variants import OPTIMIZERS, SCHEDULES, check_variants
from model_utils.warm_start import take_settings
from run_utils.arguments import argument, check_limits, parse_arguments
from run_utils.errors import require, run_script
from run_utils.launch_file import is_sharded
from run_utils.libraries import load_libraries

BEST_METRICS = [name for name, metric in METRICS.items() if metric.headline and metric.kind == "rate"]


@dataclass
class TrainingArguments:
    config: str | None = argument(None, "YAML file of these arguments; flags override it", free_on_resume=True)

    model_name_or_path: str = argument("Qwen/Qwen3-4B-Base", "Hub id, folder, or 'demo'", group="Model and data")
    model_revision: str | None = argument(None)
    trust_remote_code: bool = argument(False, "Run Python code that comes with the model")
    dataset_name: list[str] | str = argument(
        "Salesforce/xlam-function-calling-60k",
        f"Hub id, file ({', '.join(READERS)}), folder in the hub's layout, or 'demo'; or several",
    )
    dataset_shares: list[float] | None = argument(
        None, "Of the training rows, one share a data set, as many rows as there are; by default all rows"
    )
    dataset_config_name: str | None = argument(None)
    dataset_revision: str | None = argument(None)
    prompt_format: Literal[*PROMPT_FORMATS] = argument("tags-1", "A format of data_utils/prompt.py, or chat")
    train_words: bool = argument(True, "With chat: turns in words as they are; false: as empty turns")
    eval_dataset_name: str | None = argument(None, "Rows to evaluate on instead of rows held out")
    eval_fraction: float = argument(0.05, "Share of the valid rows held out", at_least=0, below=1)
    eval_split: Literal["random", "tools"] = argument("random", "tools: training has no tool of a held-out row")
    max_bad_rows: float = argument(
        0.01, "Bad rows allowed: a share if below 1, else a count", at_least=0, free_on_resume=True
    )
    split_seed: int | None = argument(None, "Draws the held-out rows and the subsets; by default --seed", at_least=0)
    max_train_examples: int | None = argument(None, above=0)
    max_eval_examples: int | None = argument(None, above=0)
    max_seq_length: int = argument(1024, "Tokens; longer rows are dropped, never cut", above=0)
    no_call_fraction: float = argument(
        0.0, "Share of the training rows to add: without the right tool, to be answered by no call", at_least=0, below=1
    )
    augment: list[str] | None = argument(None, f"Of {', '.join(TRANSFORMATIONS)}: one of them for a row, once")
    augment_fraction: float = argument(
        0.5, "Share of the training rows that --augment transforms", at_least=0, at_most=1
    )

    output_dir: str = argument("runs/qwen3_4b_qlora", group="Output", free_on_resume=True)
    overwrite_output_dir: bool = argument(False, free_on_resume=True)
    resume_from_checkpoint: str | None = argument(None, "'latest', or a checkpoint's path", free_on_resume=True)

    seed: int = argument(42, group="Optimisation", at_least=0)
    dtype: Literal["auto", "bf16", "fp32"] = argument("auto", "auto: bf16 on CUDA, fp32 on a CPU")
    loss_mask: Literal[*LOSS_MASKS] = argument("completion_only", "Tokens with a loss; eval_loss follows")
    loss_weights: list[str] | None = argument(None, f"Weights such as names=2 end=1, of {', '.join(PARTS)}")
    num_train_epochs: float = argument(1.0, above=0)
    max_train_steps: int | None = argument(None, "Optimizer steps; overrides num_train_epochs", above=0)
    stop_after_steps: int | None = argument(
        None, "End early, on the same learning-rate schedule", above=0, free_on_resume=True
    )
    # A resume may change processes, accumulation and batch size, but not their product.
    per_device_train_batch_size: int = argument(2, above=0, free_on_resume=True)
    per_device_eval_batch_size: int = argument(2, above=0, free_on_resume=True)
    gradient_accumulation_steps: int = argument(4, above=0, free_on_resume=True)
    learning_rate: float = argument(1e-4, above=0)
    lr_scheduler_type: Literal[*SCHEDULES] = argument("cosine", "By transformers' names")
    lr_scheduler_kwargs: list[str] | None = argument(None, "Of the schedule: num_decay_steps=200 min_lr_ratio=0.1")
    warmup_ratio: float = argument(0.03, at_least=0, below=1)
    weight_decay: float = argument(0.0, at_least=0)
    max_grad_norm: float = argument(1.0, "0 turns clipping off", at_least=0)
    ema_decay: float | None = argument(
        None, "Evaluate and deliver an exponential average of the weights, such as 0.999", above=0, below=1
    )
    optim: Literal[*OPTIMIZERS] = argument("adamw_torch_fused")
    label_smoothing_factor: float = argument(0.0, "In training; eval/loss stays plain", at_least=0, below=1)
    neftune_noise_alpha: float | None = argument(None, "NEFTune: noise on the embeddings in training", above=0)

    use_peft: bool = argument(True, "false: train every weight, without an adapter", group="LoRA")
    lora_r: int = argument(32, above=0)
    lora_alpha: int = argument(64, above=0)
    lora_dropout: float = argument(0.05, at_least=0, below=1)
    lora_target_modules: list[str] | None = argument(
        None, "Names, all-linear, attention or mlp; by default the decoder's linear layers and its experts"
    )
    rank_pattern: list[str] | None = argument(None, "Ranks by layer, as q_proj=64 down_proj=8")
    alpha_pattern: list[str] | None = argument(None, "Alphas by layer")
    use_rslora: bool = argument(False, "Scale by alpha / sqrt(r), not alpha / r")
    use_dora: bool = argument(False, "Magnitude and direction apart; slower: PEFT's layers")
    init_lora_weights: str = argument("true", "false, gaussian, orthogonal, pissa, pissa_niter_4, olora, loftq")
    loraplus_lr_ratio: float | None = argument(None, "LoRA+: the learning rate of B over that of A", above=0)
    init_adapter: str | None = argument(None, "Folder of an adapter to start from, with its rank, alpha and layers")

    quantization: Literal["none", "nf4", "int8"] = argument("nf4", group="Memory and speed")
    base_precision: Literal["same", "fp8"] = argument(
        "same", "fp8: training multiplies by the frozen weights in FP8; faster on an H100 or newer, rounds more"
    )
    gradient_checkpointing: bool = argument(True, free_on_resume=True)
    attn_implementation: Literal["auto", "isolated", "sdpa", "eager"] = argument("auto", free_on_resume=True)
    liger_kernel: bool = argument(False, "Liger's RoPE, RMSNorm and SwiGLU; without compilation", free_on_resume=True)
    torch_compile: bool = argument(False, "Compile the layers: minutes at the start, then faster", free_on_resume=True)
    cuda_graphs: bool = argument(False, "All layers as one CUDA graph, for small micro-batches", free_on_resume=True)

    logging_steps: int = argument(
        10, group="Logging, evaluation, checkpoints, in optimizer steps", above=0, free_on_resume=True
    )
    eval_steps: int = argument(100, above=0, free_on_resume=True)
    eval_on_start: bool = argument(False, "Evaluate the untouched base too, as step 0", free_on_resume=True)
    eval_generate_examples: int = argument(
        0, "Held-out rows to generate calls for at each evaluation", at_least=0, free_on_resume=True
    )
    best_metric: Literal["eval_loss", *BEST_METRICS] = argument(
        "eval_loss", "All but eval_loss need --eval_generate_examples"
    )
    early_stopping_patience: int | None = argument(
        None, "End after this many evaluations without a better --best_metric", above=0, free_on_resume=True
    )
    save_steps: int = argument(100, above=0, free_on_resume=True)
    save_total_limit: int = argument(
        3, "Checkpoints to keep, always with the newest and the best", above=0, free_on_resume=True
    )
    final_adapter: Literal["last", "best"] = argument(
        "last", "The checkpoint that becomes adapter/", free_on_resume=True
    )
    profile_steps: str | None = argument(None, "5:7 traces steps 5 to 7 for Perfetto, in profile/", free_on_resume=True)

    def __post_init__(self):
        check_limits(self)
        check_data_sets(self)
        if self.init_adapter and self.use_peft:
            take_settings(self)
        part_weights(self.loss_mask, self.loss_weights)
        check_variants(self)
        require(
            self.best_metric == "eval_loss" or self.eval_generate_examples,
            f"--best_metric {self.best_metric} needs --eval_generate_examples",
        )
        check_names("--augment", self.augment)
        require(self.augment or self.augment_fraction == 0.5, "--augment_fraction needs --augment")
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
            require(self.use_peft, "FSDP2 shards a frozen base: --use_peft true, or a launch file without FSDP2")
            require(
                not self.cuda_graphs, "--cuda_graphs needs the whole model on each GPU: --cuda_graphs false with FSDP2"
            )
            require(not self.use_dora, "FSDP2 shards the weights whose norms --use_dora needs whole: --use_dora false")
            require(self.quantization != "int8", "FSDP2 cannot gather int8 layers: --quantization nf4 or none")
            require(
                self.base_precision == "same",
                "--base_precision fp8 needs the whole model on each GPU: --base_precision same with FSDP2",
            )
            require(
                not self.eval_generate_examples,
                "--eval_generate_examples 0 (and --best_metric eval_loss) with FSDP2, whose processes cannot generate "
                "independently; evaluate.py scores the checkpoints",
            )
        steps = re.fullmatch(r"([1-9]\d*):(\d+)", self.profile_steps or "1:1")
        require(steps and int(steps[1]) <= int(steps[2]), f"--profile_steps must be like 5:7, not {self.profile_steps}")


def parse():
    return parse_arguments(TrainingArguments, __doc__, "demo.yaml")


if __name__ == "__main__":
    args = run_script(parse)  # --help and a wrong flag end here: the imports below take seconds
    load_libraries()

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import send_to_device

from data_utils.batching import fingerprint
from data_utils.dataset import prepare_data
from eval_utils.curves import curve_figures, samples_table
from eval_utils.model_card import write_adapter_card
from model_utils.cuda_graphs import use_cuda_graphs
from model_utils.flops import count_flops, peak_flops
from model_utils.in_training import evaluation_figures, generated_texts
from model_utils.loading import load_config, load_tokenizer, model_source, without_weights
from model_utils.memory import check_evaluation_memory, check_graph_memory, check_training_memory
from model_utils.model_facts import num_positions
from model_utils.optimizers import optimizers, parameter_groups, schedule_options
from model_utils.speed import COMPILE, enable_speedups, gradient_sync, prepare_model
from model_utils.systems import System
from model_utils.targets import choose_targets
from model_utils.training_model import load_model
from model_utils.weight_average import WeightAverage
from run_utils.checkpoint import RunState
from run_utils.launch import end_training, start_accelerator
from run_utils.progress import TrainingLog
from run_utils.run import open_run
from run_utils.training import Training

DECODING = {"max_new_tokens": 256, "batch_tokens": 16384}  # in the evaluations during training


def main(args):
    lap("other imports")
    accelerator = start_accelerator(args.dtype, may_shard=True)
    run = open_run(args, accelerator, write_adapter_card)  # locks the folder, writes nothing yet

    # Rows -> prompts -> tokens -> optimizer steps
    source = model_source(args)
    tokenizer, config = load_tokenizer(source), load_config(source)
    report = run.bad_rows_file
    data = prepare_data(args, tokenizer, num_positions(config), accelerator, report=report, generators=GENERATORS)
    accelerator.print("\n".join(data.summary + [data.example] * (not run.saved)))
    lap("rows")
    max_steps = args.max_train_steps or math.ceil(args.num_train_epochs * data.train.steps_per_epoch)
    last_step = min(max_steps, args.stop_after_steps or max_steps)
    if args.use_peft:
        args.lora_target_modules = choose_targets(without_weights(config, args.trust_remote_code), args)
    fresh = RunState(**data.train.fingerprints, effective_batch=data.train.global_batch)
    fresh.evaluation_due = args.eval_on_start and bool(data.eval_examples)
    run.check_same_experiment(fresh, fingerprint(data.eval_examples))
    if run.is_finished(last_step):
        run.print_end(last_step)
        return end_training(accelerator)

    # Base model under a fresh adapter, or to train whole
    model, engine, record = load_model(args, source, data, accelerator, max_new_tokens=DECODING["max_new_tokens"])
    system = System(model, tokenizer, data.prompt_format, **DECODING, engine=engine)
    flops = count_flops(model, args.gradient_checkpointing, peak_flops(accelerator))
    enable_speedups(model, args, accelerator)
    token_loss = torch.compile(cross_entropy, **COMPILE) if args.torch_compile else cross_entropy
    token_loss = functools.partial(token_loss, label_smoothing=args.label_smoothing_factor)
    loss_fn = functools.partial(completion_loss, cross_entropy=token_loss)
    optimizer, scheduler = build_optimizer(model, args, max_steps)
    model, optimizer = prepare_model(accelerator, model, args.cuda_graphs), accelerator.prepare_optimizer(optimizer)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    average = WeightAverage(trainable, args.ema_decay) if args.ema_decay else None
    parts = {"average": average, "tokenizer": None if args.use_peft else tokenizer}  # for checkpoints
    training = Training(model=model, optimizer=optimizer, scheduler=scheduler, **parts)

    state = run.resume(training, fresh, record)
    steps = range(state.global_step, last_step)
    check_training_memory(training, data.train, steps, args, loss_fn)
    lap("largest micro-batches")
    if args.cuda_graphs and steps:
        use_cuda_graphs(accelerator, system.model, data.train, range(max_steps))
        check_graph_memory(training, data.train, steps, loss_fn)
    check_evaluation_memory(training, data, args, completion_loss, system)
    lap("largest evaluation")
    run.start(state, training, {"dropped_rows.json": data.dropped, "split.json": data.split})
    accelerator.print(describe_parts())
    log = TrainingLog(run, state, last_step, data, flops)
    stop = StopRequest(accelerator, run.last_checkpoint)  # from now on, signals wait for stop.check
    try:
        if state.evaluation_due:  # a signal interrupted it, or --eval_on_start
            evaluate(accelerator, training, data, args, system=system, log=log, state=state, stop=stop)
            if run.saved:
                run.save(training, state)

        while state.global_step < last_step and not state.stops_early(args.early_stopping_patience):
            # --------------------------------- one optimizer step ---------------------------------
            log.start_step()
            stop.check()  # raises Stopped, on all processes at once
            torch.manual_seed(step_seed(args.seed, state.global_step, accelerator.process_index))
            step = data.train[state.global_step]
            # The loss is a sum: divide it by the step's token weights on all processes, so that the
            # cut into micro-batches does not matter. Undo the average of gradients over processes.
            scale = accelerator.num_processes / step.weight_sum
            loss_sum = torch.zeros((), device=accelerator.device)
            for batch, is_last_batch in step:
                with gradient_sync(accelerator, model, is_last_batch):
                    loss = loss_fn(model, batch, accelerator.device)
                    accelerator.backward(loss * scale)
                loss_sum += loss.detach()
            grad_norm = accelerator.clip_grad_norm_(trainable, args.max_grad_norm or math.inf)
            learning_rates = scheduler.get_last_lr()  # one per parameter group
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            if average:
                average.update()
            state.global_step += 1  # counts optimizer steps
            log.end_step(step, accelerator.reduce(loss_sum), grad_norm, learning_rates)

            # ----------------------------------- once in a while ----------------------------------
            is_last_step = state.global_step == last_step
            is_log = is_last_step or state.global_step % args.logging_steps == 0
            is_save = is_last_step or state.global_step % args.save_steps == 0
            # Every checkpoint has its evaluation: evaluate before each save too.
            is_eval = bool(data.eval_examples) and (is_save or state.global_step % args.eval_steps == 0)
            state.eval_loss, state.evaluation_due = None, is_eval
            if is_log or is_eval or is_save:
                log.read_losses()  # waits for the GPU
            if is_log:
                log.write()
            if is_eval:
                evaluate(accelerator, training, data, args, system=system, log=log, state=state, stop=stop)
            if is_save or state.is_best or state.stops_early(args.early_stopping_patience):
                run.save(training, state)
        log.close(is_finished=True)
        run.finish(training, state, last_step)
    except Stopped:
        log.read_losses()
        run.save(training, state)
        log.close(is_finished=False)
    end_training(accelerator)
    if stop.number:
        message = f"{run.last_checkpoint()} is complete; --resume_from_checkpoint latest goes on from it"
        raise Stopped(stop.number, message)


def build_optimizer(model, args, num_steps):
    """The optimizer of the adapter's weights, in one or more parameter groups, and its schedule."""
    from transformers import get_scheduler  # late: imports bitsandbytes, which run_script silences

    groups = parameter_groups(model, args.learning_rate, args.loraplus_lr_ratio)
    optimizer = optimizers()[args.optim](groups, lr=args.learning_rate, weight_decay=args.weight_decay)
    # accelerator.prepare would step the schedule once per process: keep it away from Accelerate.
    scheduler = get_scheduler(args.lr_scheduler_type, optimizer, **schedule_options(args, num_steps))
    return optimizer, scheduler


def cross_entropy(logits, labels, weights, label_smoothing=0.0):
    """Sum of the tokens' weighted cross-entropies. weights: None if all are 1. Compiled, it reads
    the logits once forward and once backward, and keeps no log-probabilities."""
    if weights is None:
        return F.cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=label_smoothing)
    losses = F.cross_entropy(logits.float(), labels, reduction="none", label_smoothing=label_smoothing)
    return (losses * weights).sum()


def completion_loss(model, batch, device, cross_entropy=cross_entropy):
    """Sum over the supervised tokens of a collated micro-batch. The head runs on these alone."""
    batch = send_to_device(batch, device, non_blocking=True)
    labels, weights = batch.pop("labels"), batch.pop("loss_weights")
    # With a cache, the examples of a padding-free batch would see each other.
    logits = model(**batch, use_cache=False).logits[0]
    return cross_entropy(logits, labels, weights)


def evaluate(accelerator, training, data, args, *, system, log, state, stop):
    """Score the held-out rows, log the figures and add them to `state`. After a signal, raises
    Stopped on all processes at once; the evaluation is then still due."""
    settings = {"batch_size": args.per_device_eval_batch_size, "loss_fn": completion_loss, "stop": stop}
    model, examples, samples = training.model, data.eval_examples, ""
    with training.as_delivered():
        figures = evaluation_figures(accelerator, model, examples, cross_entropy=cross_entropy, **settings)
        if args.eval_generate_examples:
            rows = data.eval_rows[: args.eval_generate_examples]
            answers = generated_texts(accelerator, model, system, rows, stop)
            figures |= curve_figures(rows, answers, system.prompt_format)
            samples = samples_table(rows, answers, system.prompt_format)
    state.add_evaluation(figures, args.best_metric)
    log.write_evaluation(figures, samples)


def step_seed(seed, step, process_index):
    """The 63-bit seed of a step's dropout on one process. Every step has its own seed: a resume is
    exact without a saved random state, and code between steps does not change the training."""
    return int(np.random.SeedSequence([seed, step, process_index]).generate_state(1, np.uint64)[0] >> 1)


if __name__ == "__main__":
    run_script(lambda: main(args))
