"""Checkpoints of a LoRA run: the adapter, the optimizer, where the run stands. Never the frozen base.

    output_dir/
      args.yaml environment.json    the resolved arguments (a valid --config) and where the result comes from
      split.json                    the rows trained on and those held out, as {id: fingerprint of the content}
      logs/                         TensorBoard
      checkpoint-100/               adapter_model.safetensors, adapter_config.json (PEFT's own format), args.yaml,
                                    environment.json (with the step), split.json; optimizer.pt, scheduler.pt, state.json
      adapter/                      once the run is done: a checkpoint without the last three files, the last or the best
      incomplete-*                  what a kill left half-written or half-deleted; the next start deletes it
      superseded-*                  what lay beyond the checkpoint resumed from, until the first new one is complete

Written by hand and not by `Accelerator.save_state`, which writes the base and reads back pickles. Random states need no
file: the loop seeds every step from (seed, step, process).
"""

import atexit
import contextlib
import dataclasses
import math
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from run_utils.arguments import UserError, as_yaml, read_yaml, say
from run_utils.files import describe_free, is_full_disk, lock_folder, no_pipe, read_json, write_json, write_text
from run_utils.launch import run_on_main

FILES = (
    *("adapter_model.safetensors", "adapter_config.json", "args.yaml", "environment.json", "split.json"),
    *("optimizer.pt", "scheduler.pt", "state.json"),
)
WRITING_FAILS = (OSError, RuntimeError, SafetensorError)  # what a full disk is to Python, torch and safetensors


class Training(NamedTuple):
    """What training moves: a PEFT model, prepared by Accelerate, and what steps it."""

    model: torch.nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler


@dataclasses.dataclass
class RunState:
    """Where a run stands after `global_step` optimizer steps; with the arguments, all that a resume needs to know."""

    global_step: int = 0
    data_fingerprint: str = ""
    effective_batch: int = 0  # examples an optimizer step
    loss_sum: float = 0.0  # since the last log entry
    completion_tokens: int = 0  # likewise
    eval_loss: float | None = None  # of this step, where it has been evaluated
    evaluation_due: bool = False  # a signal came before this step's evaluation was done
    best_value: float | None = None  # by --best_metric
    best_checkpoint: str | None = None  # its folder's name

    def add_evaluation(self, figures, best_metric):
        """Take note of an evaluation of this step, `{"loss": ..., metric: rate}`, the loss finite. The best is the one of the
        lowest eval_loss or of the highest rate, of equals the latest: it has seen more rows."""
        self.eval_loss, self.evaluation_due = figures["loss"], False
        by_loss = best_metric == "eval_loss"
        value = self.eval_loss if by_loss else figures[best_metric]
        if self.best_value is None or (value <= self.best_value if by_loss else value >= self.best_value):
            self.best_value, self.best_checkpoint = value, f"checkpoint-{self.global_step}"

    @property
    def is_best(self):
        return self.best_checkpoint == f"checkpoint-{self.global_step}"


def read_state(checkpoint):
    """The RunState of a checkpoint's folder; raises UserError, ValueError or TypeError if it is not one, or of another step."""
    saved = read_json(checkpoint / "state.json")
    if "best_eval_loss" in saved:  # what best_value was called when there was no --best_metric
        saved["best_value"] = saved.pop("best_eval_loss")
    state = RunState(**saved)
    whole = (state.global_step, state.effective_batch, state.completion_tokens)
    step = checkpoint_step(checkpoint)
    if not all(type(value) is int and value >= 0 for value in whole) or state.global_step != step:
        raise ValueError(f"state.json says step {state.global_step!r}")
    if not all(value is None or math.isfinite(value) for value in (state.loss_sum, state.eval_loss, state.best_value)):
        raise ValueError("state.json has a figure that is not finite")
    if state.best_checkpoint is not None and not re.fullmatch(r"checkpoint-\d+", state.best_checkpoint):
        raise ValueError(f"state.json names {state.best_checkpoint!r} as the best checkpoint")
    return state


class Saved(NamedTuple):
    """A checkpoint that has been read and found whole."""

    path: Path
    state: RunState
    args: dict
    environment: dict
    lora: dict
    adapter: dict
    optimizer: dict
    scheduler: dict


def read_checkpoint(path):
    """Raises UserError where a file is missing, cannot be read, or holds what is not finite."""
    from peft import PeftConfig  # late: importing peft imports bitsandbytes, and takes seconds

    try:
        state = read_state(path)
        if missing := [name for name in FILES if not (path / name).is_file()]:  # a pipe would be waited for
            raise ValueError(f"no {missing[0]}")
        saved = Saved(
            path,
            state,
            read_yaml(path / "args.yaml"),
            read_json(path / "environment.json"),
            PeftConfig.from_pretrained(path).to_dict(),
            load_file(path / "adapter_model.safetensors"),
            torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True),
            torch.load(path / "scheduler.pt", map_location="cpu", weights_only=True),
        )
        if not all(tensor.isfinite().all() for tensor in saved.adapter.values()):
            raise ValueError("weights that are not finite")
        return saved
    except Exception as error:  # whatever a broken file makes json, yaml, safetensors and torch raise
        reason = str(error) if isinstance(error, ValueError | UserError) else type(error).__name__
        raise UserError(f"{path} cannot be read ({' '.join(reason.split())})") from None


def open_run(args, accelerator):
    """The Run in --output_dir, new or to be resumed, and locked. Refuses a folder that holds a run, unless told to resume or
    overwrite it, one that another process trains in, and one of something else. Leaves nothing written."""
    output_dir = Path(args.output_dir)
    run_on_main(accelerator, lambda: claim(output_dir))  # alone: it holds the lock
    saved = find_checkpoint(args, output_dir)
    found = gather_object([saved.path.name if saved else "none"])  # all have looked before anyone writes to the folder
    if len(set(found)) > 1:
        raise UserError(f"the processes do not find the same checkpoint in {output_dir}: {', '.join(found)}")
    return Run(args, accelerator, saved)


def claim(output_dir):
    """Make the folder this run's; UserError where it cannot be."""
    make_writable(output_dir)
    others = {path.name for path in output_dir.iterdir()} - {
        "args.yaml.incomplete",
        "dropped_rows.json",
    }  # a kill, and bad rows, at a run's start
    if others and not holds_run(output_dir):
        raise UserError(f"{output_dir} is not empty and holds no run of train.py: choose another --output_dir")
    if (output_dir / "logs").exists() and not (output_dir / "logs").is_dir():
        raise UserError(f"{output_dir / 'logs'} is a file where TensorBoard's folder is to be: move it away")


def file_of_bad_rows(output_dir):
    """The file for the bad rows of a run that is refused for them. A run that the folder holds keeps its own list."""
    return Path(output_dir) / ("refused_rows.json" if holds_run(Path(output_dir)) else "dropped_rows.json")


def holds_run(output_dir):
    try:
        return "lora_r" in read_yaml(no_pipe(output_dir / "args.yaml"))
    except UserError:
        return False


class Run:
    """A training run's folder. Only the main process writes; where the others must not go on without it, they wait."""

    def __init__(self, args, accelerator, saved):
        self.args, self.accelerator = args, accelerator
        self.output_dir = Path(args.output_dir)
        self.adapter_dir = self.output_dir / "adapter"
        self.saved = saved  # the checkpoint to resume from, or None
        self.environment = {}  # where the run's results come from: set before `resume`

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

    def to_deliver(self, state):
        """The name of the checkpoint that adapter/ is to be: the last, or the best where one had a finite evaluation loss."""
        last = f"checkpoint-{state.global_step}"
        return (state.best_checkpoint or last) if self.args.final_adapter == "best" else last

    def last_checkpoint(self):
        return next(reversed(complete_checkpoints(self.output_dir)), None)

    def last_good(self):
        return f"last good checkpoint: {self.last_checkpoint() or 'none yet'}"

    def check_experiment(self, fresh):
        """UserError by name where the checkpoint is of other arguments (but for those marked free_on_resume), rows, effective batch
        or precision than `fresh`, the RunState of a run from its start: it would be another experiment. Needs no base model."""
        if not self.saved:
            return
        checkpoint, state, saved_args = self.saved.path, self.saved.state, self.saved.args
        if self.args.stop_after_steps and self.args.stop_after_steps < state.global_step:
            raise UserError(
                f"--stop_after_steps {self.args.stop_after_steps} is before the step of {checkpoint}: raise it, or name an earlier "
                "checkpoint with --resume_from_checkpoint"
            )
        for field in dataclasses.fields(self.args):
            now, then = getattr(self.args, field.name), saved_args.get(field.name, field.default)
            if field.name == "lora_target_modules" and now is None:
                continue  # the base decides: `resume` compares
            if now != then and not field.metadata["free_on_resume"]:
                raise UserError(f"--{field.name} is {now} but {checkpoint} was trained with {then}")
        rows_now, rows_then = self.args.eval_generate_examples, saved_args.get("eval_generate_examples", 0)
        if self.args.best_metric != "eval_loss" and rows_now != rows_then:
            raise UserError(
                f"--eval_generate_examples is {rows_now} but {checkpoint} has the best of {rows_then} rows' {self.args.best_metric}"
            )
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

    def resume(self, training, fresh):
        """Put adapter, optimizer and scheduler where the checkpoint left them, and return its RunState; or `fresh`, the RunState
        of a run from its start, where there is no checkpoint. UserError by name where the base or a setting is not what it was.
        """
        if not self.saved:
            if self.args.resume_from_checkpoint:
                self.accelerator.print(f"No checkpoint in {self.output_dir} yet: a run from its start")
            return fresh
        from peft import set_peft_model_state_dict  # late, as above

        checkpoint, state, _, saved_environment, saved_lora, adapter, optimizer, scheduler = self.saved
        base, saved_base = self.environment["base_fingerprint"], saved_environment.get("base_fingerprint")
        if base != saved_base:
            raise UserError(f"base_fingerprint is {base} but {checkpoint} has {saved_base}")
        model = self.accelerator.unwrap_model(training.model)
        check_unchanged("LoRA's", model.peft_config["default"].to_dict(), saved_lora, checkpoint)
        groups, saved_groups = training.optimizer.param_groups, optimizer["param_groups"]
        check_unchanged("the optimizer's", {"groups": len(groups)}, {"groups": len(saved_groups)}, checkpoint)
        for index, (group, saved_group) in enumerate(zip(groups, saved_groups, strict=True)):
            whose = f"the optimizer's group {index}'s" if len(groups) > 1 else "the optimizer's"
            check_unchanged(whose, group, saved_group, checkpoint)
        try:
            set_peft_model_state_dict(model, adapter)
            training.optimizer.load_state_dict(optimizer)
            training.scheduler.load_state_dict(scheduler)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{checkpoint} does not fit this model ({type(error).__name__})") from None
        if state.best_checkpoint and not (self.output_dir / state.best_checkpoint).is_dir():
            # It went when a better one came, which is not there any more either.
            self.accelerator.print(
                f"{state.best_checkpoint}, the best so far, is gone: the best is looked for from here on"
            )
            by_loss = self.args.best_metric == "eval_loss" and state.eval_loss is not None
            state.best_value, state.best_checkpoint = (state.eval_loss, checkpoint.name) if by_loss else (None, None)
        self.accelerator.print(f"Resuming from {checkpoint}, after step {state.global_step}")
        self.saved = self.saved._replace(adapter=None, optimizer=None, scheduler=None)  # not kept for the whole run
        return state

    def start(self, state, records):
        """Begin to write: what the run comes from, and `records`, JSON by file name. What an earlier run left beyond this one's
        step is set aside until there is a new checkpoint; all of it is deleted if it is to be overwritten."""
        run_on_main(self.accelerator, lambda: self.begin(state, records))

    def begin(self, state, records):
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

    def save(self, training, state):
        """Write `checkpoint-<step>` beside its final name and rename it when complete, then delete the surplus: a kill at any
        instant, or a full disk, leaves the checkpoints before it whole. UserError where it cannot be written, or where the
        weights are not finite."""
        run_on_main(self.accelerator, lambda: self.save_alone(training, state))

    def save_alone(self, training, state):
        weights = weights_of(training)
        if not all(weight.isfinite().all() for weight in weights):
            raise UserError(f"after step {state.global_step} the adapter's weights are not finite; {self.last_good()}")
        final = self.output_dir / f"checkpoint-{state.global_step}"
        folder = self.output_dir / f"incomplete-{final.name}"
        try:
            self.write_checkpoint(folder, training, state)
            folder.rename(final)
        except WRITING_FAILS as error:
            shutil.rmtree(folder, ignore_errors=True)
            why = self.describe_disk(error, num_bytes(weights, training.optimizer))
            raise UserError(f"{final} could not be written: {why}; {self.last_good()}") from None
        delete_leftovers(self.output_dir, "incomplete", "superseded")
        self.delete_surplus(state)

    def delete_surplus(self, state):
        *older, _newest = complete_checkpoints(self.output_dir)
        surplus = max(0, len(older) + 1 - self.args.save_total_limit)
        for path in [path for path in older if path.name != state.best_checkpoint][:surplus]:
            with contextlib.suppress(OSError):  # open elsewhere, on a network's disk: the next save tries again
                delete_checkpoint(path)

    def write_checkpoint(self, folder, training, state):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        model = self.accelerator.unwrap_model(training.model)
        # The adapter's weights alone are asked for: under FSDP2, asking for the base's moves them on this process and no other.
        weights = {
            name: weight for name, weight in model.named_parameters(remove_duplicate=False) if weight.requires_grad
        }
        model.save_pretrained(folder, save_embedding_layers=False, state_dict=weights)
        self.write_card(folder, state)
        write_text(folder / "args.yaml", as_yaml(self.args))
        self.write_state(folder, state)
        shutil.copy(self.output_dir / "split.json", folder)
        torch.save(training.optimizer.state_dict(), folder / "optimizer.pt")
        torch.save(training.scheduler.state_dict(), folder / "scheduler.pt")
        # On the disk before the name says complete, should the machine itself go down.
        for file in folder.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())

    def write_card(self, folder, state, curves=()):
        """In place of PEFT's empty template, which names the base by its path on this machine."""
        from model_utils.model_card import HOW_TO_LOAD_ADAPTER, write_card  # late, as above

        what = f"A LoRA adapter in PEFT's format, after {state.global_step} optimizer steps of `train.py`."
        write_card(folder, what, HOW_TO_LOAD_ADAPTER, vars(self.args), self.origin(state), curves)

    def origin(self, state):
        return self.environment | {"global_step": state.global_step, "eval_loss": state.eval_loss}

    def write_state(self, folder, state):
        write_json(folder / "environment.json", self.origin(state))
        write_json(folder / "state.json", dataclasses.asdict(state))

    def update(self, state):
        """Write into the step's checkpoint what an evaluation after a resume has found."""
        run_on_main(self.accelerator, lambda: self.update_alone(state))

    def update_alone(self, state):
        self.write_state(self.output_dir / f"checkpoint-{state.global_step}", state)
        self.delete_surplus(state)  # the best may be another one now

    def check_disk(self, training):
        """Print a line if the disk cannot hold the checkpoints that are kept, the next one, and adapter/."""
        adapter = num_bytes(weights_of(training))
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

    def finish(self, training, state):
        """Make `adapter/` of the last or the best checkpoint, without what only a resume needs, and say what there is."""
        if not self.accelerator.is_main_process:
            return
        chosen = self.to_deliver(state)
        unfinished = self.output_dir / "incomplete-adapter"
        left_out = shutil.ignore_patterns("optimizer.pt", "scheduler.pt", "state.json", "*.incomplete")
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.copytree(self.output_dir / chosen, unfinished, ignore=left_out)
            shutil.rmtree(self.output_dir / "superseded-adapter", ignore_errors=True)
            shutil.rmtree(self.adapter_dir, ignore_errors=True)
            unfinished.rename(self.adapter_dir)
        except OSError as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            why = self.describe_disk(error, num_bytes(weights_of(training)))
            raise UserError(f"{self.adapter_dir} could not be written: {why}; {self.last_good()}") from None
        if state.best_checkpoint:
            print(
                f"Best checkpoint: {self.output_dir / state.best_checkpoint} ({self.args.best_metric} {state.best_value:.4f})"
            )
        elif self.args.final_adapter == "best":
            print("No evaluation had a finite loss: none is the best")
        print(f"The adapter of {chosen}: {self.adapter_dir}")
        print(f"Curves: tensorboard --logdir {self.output_dir}")


def weights_of(training):
    return [parameter for parameter in training.model.parameters() if parameter.requires_grad]


def num_bytes(weights, optimizer=None):
    """About what a checkpoint takes: the adapter's weights, and what the optimizer keeps of each."""
    moments = [value for state in optimizer.state.values() for value in state.values()] if optimizer else []
    return sum(tensor.numel() * tensor.element_size() for tensor in (*weights, *moments) if torch.is_tensor(tensor))


# The adapter's place, and the rate of the step: no settings that make another experiment. The schedule's own rate, initial_lr, is one.
NOT_SETTINGS = ("base_model_name_or_path", "revision", "inference_mode", "peft_version", "params", "lr")


def check_unchanged(what, now, then, checkpoint):
    """Raises UserError by name where a setting (of two dicts) is not what it was: an edit of the code makes another experiment as
    much as another argument does."""
    for name in sorted((now.keys() | then.keys()) - set(NOT_SETTINGS)):
        setting, saved = now.get(name), then.get(name)
        if isinstance(setting, set) and isinstance(saved, list):  # JSON has no sets
            saved = set(saved)
        if setting != saved:
            raise UserError(f"{what} {name} is {setting} but {checkpoint} was trained with {saved}")


def find_checkpoint(args, output_dir):
    """The checkpoint to resume from, read and found whole, or None to start afresh (see open_run)."""
    if args.resume_from_checkpoint == "latest":
        return newest_whole(output_dir)
    if args.resume_from_checkpoint:
        checkpoint = Path(args.resume_from_checkpoint)
        if not (checkpoint / "state.json").is_file():
            raise UserError(f"--resume_from_checkpoint {checkpoint}: no checkpoint there")
        if checkpoint.resolve().parent != output_dir.resolve():
            raise UserError(f"{checkpoint} is of another run: resume it with --output_dir {checkpoint.parent}")
        return read_checkpoint(checkpoint)
    if (output_dir / "args.yaml").exists() and not args.overwrite_output_dir:
        raise UserError(
            f"{output_dir} holds a run: continue it with --resume_from_checkpoint latest, "
            "replace it with --overwrite_output_dir, or choose another --output_dir"
        )
    return None


def newest_whole(output_dir):
    """The newest checkpoint that can be read; None where there is none at all. Says which it passes over."""
    problem = None
    for path in reversed(complete_checkpoints(output_dir)):
        try:
            return read_checkpoint(path)
        except UserError as error:
            problem = error
            say(f"{error}: going back to the one before")
    if problem:
        raise UserError(f"no checkpoint in {output_dir} can be read: start anew with --overwrite_output_dir")
    return None


def make_writable(output_dir):
    """Make the folder and lock it; UserError where that cannot be. If it is still empty when the process ends, it goes."""
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"--output_dir {output_dir} is a file")
    try:
        if not output_dir.exists():
            output_dir.mkdir(parents=True)
            atexit.register(remove_empty, output_dir)
        lock_folder(output_dir)
        tempfile.TemporaryFile(dir=output_dir).close()  # on Linux without a name: a kill leaves nothing
    except OSError as error:
        raise UserError(f"--output_dir {output_dir} cannot be written: {error.strerror}") from None


def remove_empty(folder):
    with contextlib.suppress(OSError):  # it is not empty: a run has started
        folder.rmdir()


def checkpoint_step(path):
    return int(path.name.removeprefix("checkpoint-"))


def complete_checkpoints(output_dir):
    """Complete checkpoints, oldest first: an incomplete one still has its temporary name."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.name[11:].isdecimal() and path.is_dir()]
    return sorted(folders, key=checkpoint_step)


def delete_checkpoint(path):
    """Renamed first, so that a kill in between leaves nothing half-deleted under a complete checkpoint's name."""
    doomed = path.with_name(f"incomplete-{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    shutil.rmtree(path.rename(doomed))


def set_aside(path):
    """Out of the way of what a run that goes on from an earlier step will make again."""
    aside = path.with_name(f"superseded-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)


def delete_leftovers(output_dir, *kinds):
    """What a kill left half-written or half-deleted ("incomplete"), and what was set aside ("superseded")."""
    for kind in kinds:
        for path in output_dir.glob(f"{kind}-*"):
            if re.fullmatch(r"adapter|checkpoint-\d+", path.name.removeprefix(f"{kind}-")):
                shutil.rmtree(path, ignore_errors=True)


def clear_run(output_dir):
    """Delete the checkpoints, the adapter and the logs of an earlier run, and nothing else that lies in the folder."""
    for path in reversed(complete_checkpoints(output_dir)):  # a kill in between leaves the beginning of a run
        delete_checkpoint(path)
    delete_leftovers(output_dir, "incomplete", "superseded")
    for name in ("adapter", "logs"):
        shutil.rmtree(output_dir / name, ignore_errors=True)
