"""The output of a run during training: trackers of its figures, a progress bar or plain lines, a
profile."""

import contextlib
import math
import os
import resource
import sys
import time
from pathlib import Path

import torch

from run_utils.arguments import compared_arguments
from run_utils.checkpoint import LogEntry
from run_utils.errors import UserError, say
from run_utils.metrics_file import MetricsFile, last_figure
from run_utils.tensorboard import TensorBoard
from run_utils.terminal import bar, describe_seconds, shows_bars
from run_utils.time_left import events_left, seconds_left

# Another tracker is one more class with `files` and the four methods of MetricsFile.
TRACKERS = [TensorBoard, MetricsFile]
# An evaluation's rates on the terminal. metrics.jsonl and TensorBoard have all of them.
SHOWN_RATES = {"exact_match": "exact", "json_valid": "JSON", "tools_exist": "tools exist"}
MOST_RATES_SHOWN = 2  # learning rates in a line of 100 columns
BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


class TrainingLog:
    """The curves and lines of a training run, from `run.start()` on. Every process has one, and
    only the main process writes.

    The losses of steps stay on the GPU until `read_losses`: reading a loss makes the CPU wait for
    all queued work of the GPU, and then the GPU for the CPU."""

    def __init__(self, run, state, last_step, data, flops):
        self.run, self.args, self.device = run, run.args, run.accelerator.device
        self.state, self.first_step, self.last_step = state, state.global_step, last_step
        self.steps_per_epoch, self.flops = data.train.steps_per_epoch, flops
        self.eval_steps = self.args.eval_steps if data.eval_examples else None
        # {event: (number, seconds)} in this process, for the time left. A resumed run begins with
        # an evaluation's seconds from its log.
        evaluation = last_figure(run.output_dir, "eval/seconds") if state.global_step else None
        self.measured = {"step": (0, 0.0), "evaluation": (1, evaluation) if evaluation else (0, 0.0), "save": (0, 0.0)}
        self.since = time.perf_counter()  # the end of the last measured event
        # (global step, supervised tokens, their weights, row ids, tensor of loss and gradient norm)
        self.pending = []
        self.is_main = run.accelerator.is_main_process
        self.trackers, self.profiler = [], None
        self.has_bar = shows_bars(sys.stdout)
        if self.is_main:
            # An evaluation that is due at step 0 replaces an earlier one.
            first_step = state.global_step + (state.global_step > 0 or not state.evaluation_due)
            arguments = compared_arguments(self.args, state.effective_batch)
            for tracker in TRACKERS:
                with self.survives(tracker):
                    self.trackers.append(tracker(run.output_dir, first_step, *arguments))
            self.profiler = start_profiler(self.args.profile_steps, state.global_step, run.output_dir)
        if not self.has_bar and state.global_step < last_step:
            say(f"Training from step {state.global_step + 1} to {last_step} ...")
        self.bar = bar(file=sys.stdout, total=last_step, initial=state.global_step, bar_format=BAR)
        self.shown = ""  # the newest figures, on the bar

    @contextlib.contextmanager
    def survives(self, tracker):
        """Around a tracker's writes: losing the curves, on a full disk for example, must not end
        the run."""
        try:
            yield
        except (OSError, UserError) as error:
            self.trackers = [other for other in self.trackers if other is not tracker]
            reason = getattr(error, "strerror", None) or error
            say(f"{tracker.files} cannot be written ({reason}): training continues without its curves")

    def start_step(self):
        self.step_started = time.perf_counter()
        step = self.state.global_step
        if self.measured["step"][0] and (self.state.is_best or step % self.args.save_steps == 0):  # it was saved
            self.measure("save", self.step_started - self.since)

    def end_step(self, step, loss_sum, grad_norm, learning_rates):
        """Record an optimizer step: the loss_sum of all processes, the gradient norm, and a
        learning rate for each of the optimizer's parameter groups."""
        results = torch.stack([loss_sum, grad_norm])
        self.pending.append((self.state.global_step, step.num_supervised, step.weight_sum, step.row_ids, results))
        self.learning_rates = learning_rates
        entry = self.state.entry
        entry.num_steps += 1
        entry.num_tokens += step.num_tokens
        self.state.num_tokens += step.num_tokens
        entry.num_supervised += step.num_supervised
        entry.data_seconds += step.seconds
        now = time.perf_counter()
        entry.seconds += now - self.step_started
        if self.state.global_step == self.first_step + 2:  # the first one compiled and allocated: forget it
            self.measured["step"] = (0, 0.0)
        self.measure("step", now - self.step_started)
        self.since = now
        self.bar.set_postfix_str("  ".join(filter(None, [self.shown, self.time_left()])), refresh=False)
        self.bar.update()
        if self.profiler:
            self.read_losses()  # each step then has its own kernels
            self.profiler.step()

    def read_losses(self):
        """Add the losses of the steps since the last call to the next entry. Raises UserError if
        one is not finite."""
        entry, start = self.state.entry, time.perf_counter()
        for global_step, num_supervised, weight_sum, row_ids, results in self.pending:
            loss_sum, self.grad_norm = results.tolist()
            if not (math.isfinite(loss_sum) and math.isfinite(self.grad_norm)):
                raise UserError(
                    f"step {global_step} has loss {loss_sum / weight_sum} and gradient norm "
                    f"{self.grad_norm}; its rows: {', '.join(row_ids)}; "
                    f"{self.run.last_good()}"
                )
            entry.loss_sum += loss_sum
            entry.weight_sum += weight_sum
            entry.completion_tokens += num_supervised
        self.pending.clear()
        self.since = time.perf_counter()
        entry.seconds += self.since - start
        self.measure("step", self.since - start, number=0)

    def measure(self, event, seconds, number=1):
        count, total = self.measured[event]
        self.measured[event] = count + number, total + seconds

    def time_left(self):
        """The time that steps, evaluations and saves still need, in words: "over" a time without
        the evaluations and saves if none of them is measured yet."""
        events = events_left(self.state.global_step, self.last_step, self.eval_steps, self.args.save_steps)
        seconds, is_complete = seconds_left(events, self.measured)
        return f"{'' if is_complete else 'over '}{describe_seconds(seconds)} left"

    def write(self):
        """Write the train/ entry of the steps since the last entry. Their losses have been read."""
        state, entry = self.state, self.state.entry
        rates = {
            f"learning_rate_{index}" if index else "learning_rate": lr for index, lr in enumerate(self.learning_rates)
        }
        metrics = {
            "loss": entry.loss_sum / entry.weight_sum,
            **rates,
            "grad_norm": self.grad_norm,
            "tokens_per_second": entry.num_tokens / entry.seconds,
            "completion_tokens": entry.completion_tokens,
            "num_tokens": state.num_tokens,
            "data_wait_fraction": entry.data_seconds / entry.seconds,
            "peak_memory_gib": peak_memory_gib(self.device, self.args.cuda_graphs),
            "epoch": state.global_step / self.steps_per_epoch,
        }
        if self.flops.peak:
            measured = entry.num_tokens, entry.num_supervised, entry.seconds
            metrics["mfu"] = self.flops.utilization(*measured)
            metrics["hfu"] = self.flops.hardware_utilization(*measured)
        self.add_scalars("train", metrics)
        loss, speed = metrics["loss"], metrics["tokens_per_second"]
        lr = ", ".join(f"{rate:.2e}" for rate in self.learning_rates[:MOST_RATES_SHOWN])
        lr += ", ..." * (len(self.learning_rates) > MOST_RATES_SHOWN)
        self.shown = f"loss {loss:.4f}  lr {lr}  {speed:,.0f} tok/s"
        if self.has_bar:
            self.bar.set_postfix_str(f"{self.shown}  {self.time_left()}")
        else:
            self.print(f"{self.shown}  {self.time_left()}")
        state.entry = LogEntry()

    def write_evaluation(self, metrics, samples):
        """Write an eval/ entry: figures by name, and samples, a Markdown table or "". The state has
        the evaluation already. Raises UserError if the loss is not finite."""
        seconds = time.perf_counter() - self.since
        self.measure("evaluation", seconds)
        self.since += seconds
        if not math.isfinite(metrics["loss"]):
            raise UserError(
                f"the evaluation after step {self.state.global_step} has loss {metrics['loss']}; {self.run.last_good()}"
            )
        best = {"best_loss": self.state.best_loss, "best_exact_match": self.state.best_exact_match}
        best = {name: value for name, value in best.items() if value is not None}
        self.add_scalars("eval", metrics | {"seconds": seconds} | best)
        rates = [f"{title} {100 * metrics[name]:.3g} %" for name, title in SHOWN_RATES.items() if name in metrics]
        mark = ["best so far"] * self.state.is_best
        self.print("  ".join([f"eval loss {metrics['loss']:.4f}", *rates, *mark]))
        for tracker in self.trackers if samples else ():
            with self.survives(tracker):
                tracker.text(self.state.global_step, "eval/samples", samples)

    def add_scalars(self, group, metrics):
        for tracker in self.trackers:
            with self.survives(tracker):
                tracker.scalars(self.state.global_step, {f"{group}/{name}": value for name, value in metrics.items()})

    def print(self, line):
        write = self.bar.write if self.has_bar else print
        if self.is_main:
            try:
                write(f"step {self.state.global_step}/{self.last_step}  {line}")
            except BrokenPipeError:
                # stdout's reader, for example `tee`, got the same Ctrl-C: still save a checkpoint.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def close(self, is_finished):
        """End the log. is_finished: False after a signal. Writes an entry for the steps since the
        last, which early stopping leaves."""
        if is_finished and self.state.entry.num_steps:
            self.write()
        self.bar.set_postfix_str(self.shown)
        self.bar.close()
        if self.profiler:
            self.profiler.stop()
        for tracker in self.trackers:
            with self.survives(tracker):
                tracker.close(is_finished)


def start_profiler(steps, steps_done, output_dir):
    """A started torch profiler of the optimizer steps `A:B`, or None if no such step is left. Call
    its `step` after each step.

    Writes profile/steps-A-B.json.gz under `output_dir`, a trace for https://ui.perfetto.dev or
    TensorBoard's profiler, and a text file with the sums by operation."""
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
            say(f"the profile cannot be written ({error.strerror}): training continues")

    warmup = min(1, before)
    schedule = torch.profiler.schedule(wait=before - warmup, warmup=warmup, active=last - first + 1, repeat=1)
    profiler = torch.profiler.profile(schedule=schedule, on_trace_ready=write)
    profiler.start()
    return profiler


def peak_memory_gib(device, cuda_graphs):
    """The highest memory so far: resident memory on a CPU, tensors' memory on a GPU. With CUDA
    graphs, whose tensors are not counted, the reserved memory."""
    if device.type == "cuda":
        return (torch.cuda.max_memory_reserved if cuda_graphs else torch.cuda.max_memory_allocated)(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "linux" else 2**30)
