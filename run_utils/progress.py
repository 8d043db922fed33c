"""What a run says while it trains: TensorBoard, a progress bar or plain lines, a profile."""

import contextlib
import math
import os
import resource
import sys
import threading
import time
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from run_utils.errors import UserError, say
from run_utils.redaction import redact


class TrainingLog:
    """The curves and lines of a training run, from `run.start()` on; on other processes than the main one it only checks.

    The losses of steps stay on the GPU until `read_losses`: reading one makes the CPU wait for all that the GPU has still to do,
    and the GPU then for the CPU.
    """

    def __init__(self, run, state, last_step, steps_per_epoch, flops):
        self.run, self.args, self.accelerator = run, run.args, run.accelerator
        self.state, self.last_step = state, last_step
        self.steps_per_epoch, self.flops = steps_per_epoch, flops
        self.pending = []  # (global step, supervised tokens, their weights, row ids, loss and gradient norm as a tensor)
        self.is_main = self.accelerator.is_main_process
        self.writer = self.profiler = None
        self.on_terminal = sys.stdout.isatty()
        if self.is_main:
            threading.excepthook = leave_to_flush
            with self.tensorboard():
                # Entries that a killed run wrote after its last checkpoint are dropped: steps stay unique.
                self.writer = SummaryWriter(run.output_dir / "logs", purge_step=state.global_step + 1)
                loss = ["Multiline", ["train/loss", "eval/loss"]]
                self.writer.add_custom_scalars({"loss": {"training and evaluation": loss}})
            self.profiler = start_profiler(self.args.profile_steps, state.global_step, run.output_dir)
        hidden = not (self.is_main and self.on_terminal)
        self.progress = tqdm(total=last_step, initial=state.global_step, disable=hidden, file=sys.stdout)
        self.final = {}  # the newest figures
        self.start_entry()

    def start_entry(self):
        """The sums that the speed of the next entry comes from: of the steps of this process alone, after a resume too. The loss
        is the mean over all steps since the last entry: its sums are in the RunState, which checkpoints keep."""
        self.num_steps, self.num_tokens, self.num_supervised = 0, 0, 0
        self.seconds, self.data_seconds = 0.0, 0.0

    @contextlib.contextmanager
    def tensorboard(self):
        """Around what is written: losing the curves, on a full disk say, must not lose the run."""
        try:
            yield
        except OSError as error:
            self.writer = None
            say(f"TensorBoard's files cannot be written ({error.strerror}): training goes on without its curves")

    def start_step(self):
        self.step_started = time.perf_counter()

    def end_step(self, step, loss_sum, grad_norm, learning_rates):
        """Take note of an optimizer step: loss_sum of this process, grad_norm of all, a learning rate for each of the
        optimizer's parameter groups."""
        results = torch.stack([self.accelerator.reduce(loss_sum), grad_norm])
        self.pending.append((self.state.global_step, step.num_supervised, step.weight_sum, step.row_ids, results))
        self.learning_rates = learning_rates
        self.num_steps += 1
        self.num_tokens += step.num_tokens
        self.num_supervised += step.num_supervised
        self.data_seconds += step.seconds
        self.seconds += time.perf_counter() - self.step_started
        self.progress.update()
        if self.profiler:
            self.read_losses()  # so that each step has its own kernels
            self.profiler.step()

    def read_losses(self):
        """Add the losses of the steps since the last time to the RunState; UserError where one is not finite."""
        start = time.perf_counter()
        for global_step, num_supervised, weight_sum, row_ids, results in self.pending:
            loss_sum, self.grad_norm = results.tolist()
            if not (math.isfinite(loss_sum) and math.isfinite(self.grad_norm)):
                raise UserError(
                    f"step {global_step} has loss {loss_sum / weight_sum} and gradient norm "
                    f"{self.grad_norm}; its rows: {', '.join(row_ids)}; "
                    f"{self.run.last_good()}"
                )
            self.state.loss_sum += loss_sum
            self.state.weight_sum += weight_sum
            self.state.completion_tokens += num_supervised
        self.pending.clear()
        self.seconds += time.perf_counter() - start

    def write(self):
        """The entry of train/ for the steps since the last one, whose losses have been read."""
        state = self.state
        rates = {
            f"learning_rate_{index}" if index else "learning_rate": lr for index, lr in enumerate(self.learning_rates)
        }
        metrics = {
            "loss": state.loss_sum / state.weight_sum,
            **rates,
            "grad_norm": self.grad_norm,
            "tokens_per_second": self.num_tokens / self.seconds,
            "completion_tokens": state.completion_tokens,
            "data_wait_fraction": self.data_seconds / self.seconds,
            "peak_memory_gib": peak_memory_gib(self.accelerator.device, self.args.cuda_graphs),
            "epoch": state.global_step / self.steps_per_epoch,
        }
        if self.flops.peak:
            measured = self.num_tokens, self.num_supervised, self.seconds
            metrics["mfu"] = self.flops.utilization(*measured)
            metrics["hfu"] = self.flops.hardware_utilization(*measured)
        self.add_scalars("train", metrics)
        loss, speed = metrics["loss"], metrics["tokens_per_second"]
        lr = ", ".join(f"{rate:.2e}" for rate in self.learning_rates)
        self.progress.set_postfix({"loss": f"{loss:.4g}", "lr": lr, "tok/s": f"{speed:.4g}"})
        if not self.on_terminal:
            left = (self.last_step - state.global_step) * self.seconds / self.num_steps
            self.print(f"loss {loss:.4f}  lr {lr}  {speed:,.0f} tok/s  {left / 60:.1f} min left")
        state.loss_sum, state.weight_sum, state.completion_tokens = 0.0, 0.0, 0
        self.start_entry()

    def write_evaluation(self, metrics, samples):
        """An entry of eval/: figures by name, and rows to look at, `(query, generated text, gold)` each. UserError where the loss
        is not finite."""
        if not math.isfinite(metrics["loss"]):
            raise UserError(
                f"the evaluation after step {self.state.global_step} has loss {metrics['loss']}; {self.run.last_good()}"
            )
        self.add_scalars("eval", metrics)
        self.print("  ".join(f"eval {name} {value:.4f}" for name, value in metrics.items()))
        text = "\n\n".join(
            f"    query   {query}\n    output  {said}\n    gold    {gold}" for query, said, gold in samples
        )
        with self.tensorboard():
            if self.writer and samples:
                self.writer.add_text("eval/samples", text, self.state.global_step)

    def add_scalars(self, group, metrics):
        self.final |= {f"final/{group}_{name}": value for name, value in metrics.items()}
        with self.tensorboard():
            if self.writer:
                for name, value in metrics.items():
                    self.writer.add_scalar(f"{group}/{name}", value, self.state.global_step)
                self.writer.flush()

    def print(self, line):
        write = self.progress.write if self.on_terminal else print
        if self.is_main:
            try:
                write(f"step {self.state.global_step}/{self.last_step}  {line}")
            except (
                BrokenPipeError
            ):  # who read it, `tee` say, has got the same Ctrl-C: a checkpoint is saved all the same
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def close(self):
        self.progress.close()
        if self.profiler:
            self.profiler.stop()
        with self.tensorboard():
            if self.writer:
                # The arguments beside the final figures, for TensorBoard's table of runs; in this run and not in one of its own.
                arguments = {name: redact(str(value)) for name, value in vars(self.args).items()}
                self.writer.add_hparams(arguments, self.final, run_name=".", global_step=self.state.global_step)
                self.writer.close()


def leave_to_flush(failure):
    """What TensorBoard's thread meets its `flush` raises too, where it is told in a line: no traceback beside it."""
    if not issubclass(failure.exc_type, OSError):
        threading.__excepthook__(failure)


def start_profiler(steps, steps_done, output_dir):
    """A started torch profiler of the optimizer steps `A:B`, or None for None: call its `step` after each step.

    Writes profile/steps-A-B.json.gz under `output_dir`, a trace for https://ui.perfetto.dev or TensorBoard's profiler, and
    beside it the sums by operation as text.
    """
    first, last = map(int, (steps or "0:0").split(":"))
    if last <= steps_done:
        return None
    first = max(first, steps_done + 1)
    before = first - 1 - steps_done

    def write(profiler):
        folder = Path(output_dir) / "profile"
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=by, row_limit=40, max_name_column_width=80)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(folder / f"steps-{first}-{last}.json.gz"))
            (folder / f"steps-{first}-{last}.txt").write_text(table, encoding="utf-8")
        except OSError as error:  # as with TensorBoard
            say(f"the profile cannot be written ({error.strerror}): training goes on")

    warmup = min(1, before)
    schedule = torch.profiler.schedule(wait=before - warmup, warmup=warmup, active=last - first + 1, repeat=1)
    profiler = torch.profiler.profile(schedule=schedule, on_trace_ready=write)
    profiler.start()
    return profiler


def peak_memory_gib(device, cuda_graphs):
    """Highest memory so far: resident on a CPU; on the GPU what tensors took, or, since the tensors inside CUDA graphs are
    not counted, what was reserved for them."""
    if device.type == "cuda":
        return (torch.cuda.max_memory_reserved if cuda_graphs else torch.cuda.max_memory_allocated)(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "linux" else 2**30)
