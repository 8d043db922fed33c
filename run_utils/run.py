"""Checkpoints of a run: the adapter, the optimizer and the run's state, never the frozen base.

    output_dir/
      args.yaml environment.json  the resolved arguments (a valid --config), the results' origin
      split.json                  the trained and held-out rows, as {id: fingerprint of content}
      logs/ metrics.jsonl         TensorBoard's files, and the same figures as JSON lines
      checkpoint-100/             adapter_model.safetensors, adapter_config.json (PEFT's format),
                                  args.yaml, environment.json (with the step), split.json;
                                  state.json, optimizer.pt, scheduler.pt, and a NAME.pt of each
                                  other object of Training (training.py)
      adapter/                    at the end: the last or best checkpoint, without a resume's files
      model/                      the same of full fine-tuning, whose checkpoints are whole models
      incomplete-*                half-written or half-deleted by a kill; the next start deletes it
      superseded-*                beyond the resumed checkpoint, until the first new one is complete

`Accelerator.save_state` is not used: it writes the base and reads pickles. Random states need no
file: the loop seeds every step from (seed, step, process)."""

import contextlib
import functools
import shutil
from pathlib import Path

from accelerate.utils import gather_object

from run_utils.arguments import as_yaml
from run_utils.checkpoint import (
    WRITING_FAILS,
    check_arguments,
    checkpoint_step,
    complete_checkpoints,
    delete_checkpoint,
    flush_to_disk,
    load_checkpoint,
    write_checkpoint,
    write_state,
)
from run_utils.errors import UserError, one_line
from run_utils.files import describe_free, is_full_disk, read_json, write_json, write_text
from run_utils.launch import check_alike, run_on_main
from run_utils.output_folder import claim, clear_run, delete_leftovers, deliver, find_checkpoint, holds_run, set_aside
from run_utils.terminal import print_next

# These may differ between machines: base, rows and adapter are compared by content.
PLACES = ("config", "output_dir", "model_name_or_path", "dataset_name", "eval_dataset_name", "init_adapter")


def open_run(args, accelerator, write_card):
    """The Run in --output_dir, new or resumed, and locked. Raises UserError if the folder holds a
    run, unless args resume or overwrite it, if another process trains in it, or if it has other
    files. Leaves nothing written.

    write_card: `(folder, args, environment)`, two dicts: writes the README.md of a checkpoint."""
    check_alike({f"--{name}": value for name, value in vars(args).items() if name not in PLACES})
    output_dir = Path(args.output_dir)
    run_on_main(accelerator, lambda: claim(output_dir))  # main only: it holds the lock
    saved = find_checkpoint(args, output_dir)
    # All processes have looked before one writes to the folder.
    found = gather_object([saved.path.name if saved else "none"])
    if len(set(found)) > 1:
        raise UserError(f"the processes do not find the same checkpoint in {output_dir}: {', '.join(found)}")
    return Run(args, accelerator, saved, write_card)


def on_main_process(method):
    """Call a method of Run on the main process while the others wait. Its UserError or OSError is
    raised on all processes."""

    @functools.wraps(method)
    def call(run, *args):
        run_on_main(run.accelerator, lambda: method(run, *args))

    return call


class Run:
    """A training run's folder. All processes call its methods, and the main process writes."""

    def __init__(self, args, accelerator, saved, write_card):
        self.args, self.accelerator = args, accelerator
        self.output_dir = Path(args.output_dir)
        self.result = "adapter" if args.use_peft else "model"  # delivered at the end, in result_dir
        self.result_dir = self.output_dir / self.result
        self.saved = saved  # the checkpoint to resume from, or None
        self.write_card = write_card

    @property
    def bad_rows_file(self):
        """The main process's file for the bad rows of a refused run. An earlier run in the folder
        keeps its list."""
        if self.accelerator.is_main_process:
            return self.output_dir / ("refused_rows.json" if holds_run(self.output_dir) else "dropped_rows.json")
        return None

    def is_finished(self, last_step):
        """Whether the last step's checkpoint exists, and adapter/ is of the step that the arguments
        ask for."""
        state = self.saved and self.saved.state
        if not state or not (state.global_step == last_step or state.stops_early(self.args.early_stopping_patience)):
            return False
        try:
            delivered = read_json(self.result_dir / "environment.json")
            return not state.evaluation_due and f"checkpoint-{delivered.get('global_step')}" == self.to_deliver(state)
        except UserError:
            return False

    @on_main_process
    def print_end(self, last_step):
        state = self.saved.state
        steps = self.describe_early_end(state) if state.global_step < last_step else f"all {last_step} steps are done"
        print(f"{self.output_dir} is finished: {steps}, the {self.result} is in {self.result_dir}")
        print_next("python", "evaluate.py", "--adapter", self.result_dir)

    def describe_early_end(self, state):
        stale = f"{state.stale_evaluations} evaluation{'s' * (state.stale_evaluations > 1)}"
        return f"stopped early after step {state.global_step}: {stale} without a better {self.args.best_metric}"

    def to_deliver(self, state):
        """The name of the checkpoint for adapter/: the last, or the best if one had a finite
        evaluation loss."""
        last = f"checkpoint-{state.global_step}"
        return (state.best_checkpoint or last) if self.args.final_adapter == "best" else last

    def last_checkpoint(self):
        return next(reversed(complete_checkpoints(self.output_dir)), None)

    def last_good(self):
        return f"last good checkpoint: {self.last_checkpoint() or 'none yet'}"

    def check_same_experiment(self, fresh, eval_fingerprint):
        """Raise UserError if the processes, or the checkpoint and this run, differ in arguments
        (except those with free_on_resume), rows, effective batch or precision. Needs no base model.

        fresh: the RunState of a new run. eval_fingerprint: of the held-out rows."""
        check_alike(
            {
                "their training rows": fresh.data_fingerprint,
                "their evaluation rows": eval_fingerprint,
                "their mixed precision (name a --dtype)": self.accelerator.mixed_precision,
            }
        )
        if self.saved:
            self.compare_with_saved(fresh)

    @on_main_process  # PLACES may differ on other processes
    def compare_with_saved(self, fresh):
        checkpoint, state = self.saved.path, self.saved.state
        check_arguments(self.args, self.saved)
        if state.effective_batch != fresh.effective_batch:
            raise UserError(
                f"the effective batch (processes x accumulation x batch size) is {fresh.effective_batch} but "
                f"{checkpoint} was trained with {state.effective_batch}: change --gradient_accumulation_steps, "
                "--per_device_train_batch_size or the number of processes"
            )
        # Checkpoints of older versions have no order_fingerprint.
        has_other_order = state.order_fingerprint not in ("", fresh.order_fingerprint)
        if state.data_fingerprint != fresh.data_fingerprint or has_other_order:
            raise UserError(
                f"the training rows, their order, tokens or loss weights are not those that {checkpoint} was trained on"
            )
        precision = self.saved.environment.get("mixed_precision")
        if self.accelerator.mixed_precision != precision:
            raise UserError(f"mixed_precision is {self.accelerator.mixed_precision} but {checkpoint} has {precision}")

    def resume(self, training, fresh, environment):
        """Load the checkpoint into `training` and return its RunState. Without a checkpoint return
        `fresh`, the RunState of a new run. Raises UserError if the base or a setting differs.

        environment: the origin of the run's results, for environment.json."""
        self.environment = environment
        if not self.saved:
            if self.args.resume_from_checkpoint:
                self.accelerator.print(f"No checkpoint in {self.output_dir} yet: a run from its start")
            return fresh
        checkpoint, state = self.saved.path, self.saved.state
        for name in ("base_fingerprint", "init_adapter_sha256"):  # only a warm start has the latter
            if (now := environment.get(name)) != (then := self.saved.environment.get(name)):
                raise UserError(f"{name} is {now} but {checkpoint} has {then}")
        load_checkpoint(self.saved, training, self.accelerator.unwrap_model(training.model))
        if state.best_checkpoint and not (self.output_dir / state.best_checkpoint).is_dir():
            # A better checkpoint replaced it, and that one is lost too.
            self.accelerator.print(
                f"{state.best_checkpoint}, the best so far, is gone: the best is chosen from here on"
            )
            by_loss = self.args.best_metric == "eval_loss" and state.eval_loss is not None
            state.best_value, state.best_checkpoint = (state.eval_loss, checkpoint.name) if by_loss else (None, None)
        self.accelerator.print(f"Resuming from {checkpoint}, after step {state.global_step}")
        self.saved = self.saved._replace(adapter=None, others=None)  # not kept for the whole run
        return state

    @on_main_process
    def start(self, state, training, records):
        """Begin to write: the origin of the run's results, and `records`, JSON by file name.
        Checkpoints beyond this run's step are set aside until there is a new one. An overwritten
        run is deleted."""
        self.check_disk(training)
        if self.args.overwrite_output_dir:
            clear_run(self.output_dir)
        delete_leftovers(self.output_dir, "incomplete")
        # The newest first: after a kill, the run only ends earlier.
        for path in [*reversed(complete_checkpoints(self.output_dir)), self.result_dir]:
            if path.is_dir() and (path == self.result_dir or checkpoint_step(path) > state.global_step):
                set_aside(path)
        write_text(self.output_dir / "args.yaml", as_yaml(self.args))
        for name, record in {"environment.json": self.environment, **records}.items():
            write_json(self.output_dir / name, record)

    @on_main_process
    def save(self, training, state):
        """Write `checkpoint-<step>` under a temporary name, rename it when complete, then delete
        the surplus. A kill or a full disk leaves the earlier checkpoints whole. If the checkpoint
        is already complete, only the card and the state are written: an evaluation may have been
        added. Raises UserError if it cannot be written, or if the weights are not finite."""
        if not all(weight.isfinite().all() for weight in training.trainable):
            raise UserError(
                f"after step {state.global_step} the {self.result}'s weights are not finite; {self.last_good()}"
            )
        final = self.output_dir / f"checkpoint-{state.global_step}"
        folder = self.output_dir / f"incomplete-{final.name}"
        if final.is_dir():
            self.write_card(final, vars(self.args), self.origin(state))
            self.write_state(final, state)
            return self.delete_surplus(state)  # the best may have changed
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            model = self.accelerator.unwrap_model(training.model)
            write_checkpoint(folder, training, model, self.output_dir / "split.json")
            self.write_card(folder, vars(self.args), self.origin(state))  # replaces PEFT's empty one
            write_text(folder / "args.yaml", as_yaml(self.args))
            self.write_state(folder, state)
            # Before the rename makes it complete: the machine itself may go down.
            flush_to_disk(folder)
            folder.rename(final)
        except UserError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        except WRITING_FAILS as error:
            shutil.rmtree(folder, ignore_errors=True)
            why = self.describe_disk(error, training.num_bytes())
            raise UserError(f"{final} could not be written: {why}; {self.last_good()}") from None
        delete_leftovers(self.output_dir, "incomplete", "superseded")
        self.delete_surplus(state)

    def delete_surplus(self, state):
        *older, _newest = complete_checkpoints(self.output_dir)
        surplus = max(0, len(older) + 1 - self.args.save_total_limit)
        for path in [path for path in older if path.name != state.best_checkpoint][:surplus]:
            # A file may be open elsewhere on a network disk: the next save tries again.
            with contextlib.suppress(OSError):
                delete_checkpoint(path)

    def origin(self, state):
        return self.environment | {"global_step": state.global_step, "eval_loss": state.eval_loss}

    def write_state(self, folder, state):
        write_json(folder / "environment.json", self.origin(state))
        write_state(folder, state)

    def check_disk(self, training):
        """Print a line if the disk cannot hold the kept checkpoints, the next one, and adapter/."""
        weights = training.num_bytes(with_states=False)
        # Adam keeps two moments of each weight, an average the weight itself.
        needed = (4 if training.average else 3) * weights * (self.args.save_total_limit + 1) + weights
        if shutil.disk_usage(self.output_dir).free < needed:
            self.accelerator.print(
                f"Warning: {self.args.save_total_limit} checkpoints and the next need "
                f"{describe_free(self.output_dir, needed)}: make room, or lower --save_total_limit"
            )

    def describe_disk(self, error, needed):
        """The reason if `needed` bytes could not be written."""
        if not self.output_dir.is_dir():
            return f"{self.output_dir} is gone"
        if shutil.disk_usage(self.output_dir).free < needed or is_full_disk(error):
            return f"it needs {describe_free(self.output_dir, needed)}"
        return one_line(error) or type(error).__name__

    @on_main_process
    def finish(self, training, state, last_step):
        """Make `adapter/` or `model/` from the last or best checkpoint."""
        chosen = self.to_deliver(state)
        in_bf16 = self.result == "model" and self.accelerator.mixed_precision == "bf16"
        try:
            deliver(self.output_dir / chosen, self.result_dir, in_bf16)
        except WRITING_FAILS as error:
            why = self.describe_disk(error, training.num_bytes(with_states=False))
            raise UserError(f"{self.result_dir} could not be written: {why}; {self.last_good()}") from None
        if state.global_step < last_step:
            print(self.describe_early_end(state).capitalize())
        if state.best_checkpoint:
            best = self.output_dir / state.best_checkpoint
            print(f"Best checkpoint: {best} ({self.args.best_metric} {state.best_value:.4f})")
        elif self.args.final_adapter == "best":
            print("No evaluation had a finite loss: none is the best")
        print(f"The {self.result} of {chosen}: {self.result_dir}")
        print(f"Curves: tensorboard --logdir {self.output_dir}")
        print_next("python", "evaluate.py", "--adapter", self.result_dir)
