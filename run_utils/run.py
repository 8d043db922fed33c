"""Checkpoints of a LoRA run: the adapter, the optimizer, where the run stands. Never the frozen base.

    output_dir/
      args.yaml environment.json    the resolved arguments (a valid --config) and where the result comes from
      split.json                    the rows trained on and those held out, as {id: fingerprint of the content}
      logs/ metrics.jsonl           TensorBoard's files, and the same figures as JSON lines
      checkpoint-100/               adapter_model.safetensors, adapter_config.json (PEFT's own format), args.yaml,
                                    environment.json (with the step), split.json; state.json, optimizer.pt, scheduler.pt,
                                    and a NAME.pt of whatever else is given to Training
      adapter/                      once the run is done: a checkpoint without what a resume needs, the last or the best
      incomplete-*                  what a kill left half-written or half-deleted; the next start deletes it
      superseded-*                  what lay beyond the checkpoint resumed from, until the first new one is complete

Written by hand and not by `Accelerator.save_state`, which writes the base and reads back pickles. Random states need no
file: the loop seeds every step from (seed, step, process).
"""

import contextlib
import functools
import shutil
from pathlib import Path

import torch
from accelerate.utils import gather_object

from run_utils.arguments import as_yaml
from run_utils.checkpoint import (
    WRITING_FAILS,
    check_arguments,
    checkpoint_step,
    complete_checkpoints,
    delete_checkpoint,
    delete_leftovers,
    find_checkpoint,
    flush_to_disk,
    load_checkpoint,
    set_aside,
    write_checkpoint,
    write_state,
)
from run_utils.errors import UserError
from run_utils.files import describe_free, is_full_disk, read_json, write_json, write_text
from run_utils.launch import check_alike, run_on_main
from run_utils.output_folder import claim, clear_run, holds_run

# Each machine may have its own of these; the base and the rows are compared by content.
PLACES = ("config", "output_dir", "model_name_or_path", "dataset_name", "eval_dataset_name")


def open_run(args, accelerator, write_card):
    """The Run in --output_dir, new or to be resumed, and locked. Refuses a folder that holds a run, unless asked to resume or
    overwrite it, one that another process trains in, and one of something else. Leaves nothing written.

    write_card: `(folder, args, environment)`, two dicts: writes the README.md of a checkpoint.
    """
    check_alike({f"--{name}": value for name, value in vars(args).items() if name not in PLACES})
    output_dir = Path(args.output_dir)
    run_on_main(accelerator, lambda: claim(output_dir))  # alone: it holds the lock
    saved = find_checkpoint(args, output_dir)
    found = gather_object([saved.path.name if saved else "none"])  # all have looked before anyone writes to the folder
    if len(set(found)) > 1:
        raise UserError(f"the processes do not find the same checkpoint in {output_dir}: {', '.join(found)}")
    return Run(args, accelerator, saved, write_card)


def on_main_process(method):
    """Call a method of Run on the main process while the others wait; its UserError or OSError is raised on all of them."""

    @functools.wraps(method)
    def call(run, *args):
        run_on_main(run.accelerator, lambda: method(run, *args))

    return call


class Run:
    """A training run's folder. All processes call its methods, and the main process writes."""

    def __init__(self, args, accelerator, saved, write_card):
        self.args, self.accelerator = args, accelerator
        self.output_dir = Path(args.output_dir)
        self.adapter_dir = self.output_dir / "adapter"
        self.saved = saved  # the checkpoint to resume from, or None
        self.write_card = write_card

    @property
    def bad_rows_file(self):
        """The main process's file for the bad rows of a run that is refused for them. A run in the folder keeps its own list."""
        if self.accelerator.is_main_process:
            return self.output_dir / ("refused_rows.json" if holds_run(self.output_dir) else "dropped_rows.json")
        return None

    def is_finished(self, last_step):
        """Whether the last step's checkpoint is there, and adapter/ of the step that is asked for."""
        if not self.saved or self.saved.state.global_step != last_step:
            return False
        state = self.saved.state
        try:
            delivered = read_json(self.adapter_dir / "environment.json")
            return not state.evaluation_due and f"checkpoint-{delivered.get('global_step')}" == self.to_deliver(state)
        except UserError:
            return False

    def describe_end(self, last_step):
        return f"{self.output_dir} is finished: all {last_step} steps are done, the adapter is in {self.adapter_dir}"

    def to_deliver(self, state):
        """The name of the checkpoint that adapter/ is to be: the last, or the best where one had a finite evaluation loss."""
        last = f"checkpoint-{state.global_step}"
        return (state.best_checkpoint or last) if self.args.final_adapter == "best" else last

    def last_checkpoint(self):
        return next(reversed(complete_checkpoints(self.output_dir)), None)

    def last_good(self):
        return f"last good checkpoint: {self.last_checkpoint() or 'none yet'}"

    def check_same_experiment(self, fresh, eval_fingerprint):
        """UserError by name if the processes, or the checkpoint and this run, differ in arguments (but for those marked
        free_on_resume), rows, effective batch or precision. Needs no base model.

        fresh: the RunState of a run from its start. eval_fingerprint: of the held-out rows.
        """
        check_alike(
            {
                "their training rows": fresh.data_fingerprint,
                "their evaluation rows": eval_fingerprint,
                "their mixed precision (name a --dtype)": self.accelerator.mixed_precision,
            }
        )
        if self.saved:
            self.compare_with_saved(fresh)

    @on_main_process  # PLACES may differ elsewhere
    def compare_with_saved(self, fresh):
        checkpoint, state = self.saved.path, self.saved.state
        check_arguments(self.args, self.saved)
        if state.effective_batch != fresh.effective_batch:
            raise UserError(
                f"the effective batch (processes x accumulation x batch size) is {fresh.effective_batch} but {checkpoint} was "
                f"trained with {state.effective_batch}: change --gradient_accumulation_steps, --per_device_train_batch_size or "
                "the number of processes"
            )
        if state.data_fingerprint != fresh.data_fingerprint:
            raise UserError(
                f"the training rows, their tokens or what the loss is on are not those that {checkpoint} was trained on"
            )
        precision = self.saved.environment.get("mixed_precision")
        if self.accelerator.mixed_precision != precision:
            raise UserError(f"mixed_precision is {self.accelerator.mixed_precision} but {checkpoint} has {precision}")

    def resume(self, training, fresh, environment):
        """Load the checkpoint into `training` and return its RunState; without a checkpoint return `fresh`, the RunState of a run
        from its start. UserError by name if the base or a setting is not what it was.

        environment: where the run's results come from, for environment.json.
        """
        self.environment = environment
        if not self.saved:
            if self.args.resume_from_checkpoint:
                self.accelerator.print(f"No checkpoint in {self.output_dir} yet: a run from its start")
            return fresh
        checkpoint, state = self.saved.path, self.saved.state
        base, saved_base = environment["base_fingerprint"], self.saved.environment.get("base_fingerprint")
        if base != saved_base:
            raise UserError(f"base_fingerprint is {base} but {checkpoint} has {saved_base}")
        load_checkpoint(self.saved, training, self.accelerator.unwrap_model(training.model))
        if state.best_checkpoint and not (self.output_dir / state.best_checkpoint).is_dir():
            # It was deleted when a better one was saved, and that one has been lost too.
            self.accelerator.print(
                f"{state.best_checkpoint}, the best so far, is gone: the best is looked for from here on"
            )
            by_loss = self.args.best_metric == "eval_loss" and state.eval_loss is not None
            state.best_value, state.best_checkpoint = (state.eval_loss, checkpoint.name) if by_loss else (None, None)
        self.accelerator.print(f"Resuming from {checkpoint}, after step {state.global_step}")
        self.saved = self.saved._replace(adapter=None, others=None)  # not kept for the whole run
        return state

    @on_main_process
    def start(self, state, training, records):
        """Begin to write: where the run's results come from, and `records`, JSON by file name. Checkpoints beyond this run's step
        are set aside until there is a new one; all of an earlier run is deleted if it is to be overwritten."""
        self.check_disk(training)
        if self.args.overwrite_output_dir:
            clear_run(self.output_dir)
        delete_leftovers(self.output_dir, "incomplete")
        # The newest first: whatever a kill leaves is then a run that ends earlier.
        for path in [*reversed(complete_checkpoints(self.output_dir)), self.adapter_dir]:
            if path.is_dir() and (path == self.adapter_dir or checkpoint_step(path) > state.global_step):
                set_aside(path)
        write_text(self.output_dir / "args.yaml", as_yaml(self.args))
        for name, record in {"environment.json": self.environment, **records}.items():
            write_json(self.output_dir / name, record)

    @on_main_process
    def save(self, training, state):
        """Write `checkpoint-<step>` beside its final name and rename it when complete, then delete the surplus: a kill at any
        instant, or a full disk, leaves the checkpoints before it whole. Of a checkpoint that is complete already, only the state
        is written: an evaluation may have been added. UserError if it cannot be written, or if the weights are not finite."""
        if not all(weight.isfinite().all() for weight in training.adapter_weights):
            raise UserError(f"after step {state.global_step} the adapter's weights are not finite; {self.last_good()}")
        final = self.output_dir / f"checkpoint-{state.global_step}"
        folder = self.output_dir / f"incomplete-{final.name}"
        if final.is_dir():
            self.write_state(final, state)
            return self.delete_surplus(state)  # the best may be another one now
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            model = self.accelerator.unwrap_model(training.model)
            write_checkpoint(folder, model, training.others, self.output_dir / "split.json")
            self.write_card(folder, vars(self.args), self.origin(state))  # in place of PEFT's empty template
            write_text(folder / "args.yaml", as_yaml(self.args))
            self.write_state(folder, state)
            flush_to_disk(folder)  # before the name makes it complete, should the machine itself go down
            folder.rename(final)
        except WRITING_FAILS as error:
            shutil.rmtree(folder, ignore_errors=True)
            why = self.describe_disk(error, num_bytes(training))
            raise UserError(f"{final} could not be written: {why}; {self.last_good()}") from None
        delete_leftovers(self.output_dir, "incomplete", "superseded")
        self.delete_surplus(state)

    def delete_surplus(self, state):
        *older, _newest = complete_checkpoints(self.output_dir)
        surplus = max(0, len(older) + 1 - self.args.save_total_limit)
        for path in [path for path in older if path.name != state.best_checkpoint][:surplus]:
            with contextlib.suppress(OSError):  # open elsewhere, on a network's disk: the next save tries again
                delete_checkpoint(path)

    def origin(self, state):
        return self.environment | {"global_step": state.global_step, "eval_loss": state.eval_loss}

    def write_state(self, folder, state):
        write_json(folder / "environment.json", self.origin(state))
        write_state(folder, state)

    def check_disk(self, training):
        """Print a line if the disk cannot hold the checkpoints that are kept, the next one, and adapter/."""
        adapter = num_bytes(training, with_states=False)
        needed = 3 * adapter * (self.args.save_total_limit + 1) + adapter  # Adam keeps two moments of each weight
        if shutil.disk_usage(self.output_dir).free < needed:
            self.accelerator.print(
                f"Warning: {self.args.save_total_limit} checkpoints and the next need {describe_free(self.output_dir, needed)}: "
                "make room, or lower --save_total_limit"
            )

    def describe_disk(self, error, needed):
        """Why nothing could be written, where `needed` bytes were to be."""
        if not self.output_dir.is_dir():
            return f"{self.output_dir} is gone"
        if shutil.disk_usage(self.output_dir).free < needed or is_full_disk(error):
            return f"it needs {describe_free(self.output_dir, needed)}"
        return " ".join(str(error).split()) or type(error).__name__

    @on_main_process
    def finish(self, training, state):
        """Make `adapter/` of the last or the best checkpoint, without the files of a resume, and print its place."""
        chosen = self.to_deliver(state)
        unfinished = self.output_dir / "incomplete-adapter"
        left_out = shutil.ignore_patterns("*.pt", "state.json", "*.incomplete")
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.copytree(self.output_dir / chosen, unfinished, ignore=left_out)
            shutil.rmtree(self.output_dir / "superseded-adapter", ignore_errors=True)
            shutil.rmtree(self.adapter_dir, ignore_errors=True)
            unfinished.rename(self.adapter_dir)
        except OSError as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            why = self.describe_disk(error, num_bytes(training, with_states=False))
            raise UserError(f"{self.adapter_dir} could not be written: {why}; {self.last_good()}") from None
        if state.best_checkpoint:
            print(
                f"Best checkpoint: {self.output_dir / state.best_checkpoint} ({self.args.best_metric} {state.best_value:.4f})"
            )
        elif self.args.final_adapter == "best":
            print("No evaluation had a finite loss: none is the best")
        print(f"The adapter of {chosen}: {self.adapter_dir}")
        print(f"Curves: tensorboard --logdir {self.output_dir}")


def num_bytes(training, with_states=True):
    """About what a checkpoint takes: the adapter's weights, and the optimizer's tensors for each."""
    states = training.optimizer.state.values() if with_states else ()
    moments = [value for state in states for value in state.values()]
    tensors = [tensor for tensor in (*training.adapter_weights, *moments) if torch.is_tensor(tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
