"""Checkpoints of a LoRA run: the adapter, the optimizer, where the run stands. Never the frozen base.

    output_dir/
      args.yaml environment.json    the resolved arguments (a valid --config) and where the result comes from
      split.json                    the rows trained on and those held out, as {id: fingerprint of the content}
      logs/                         TensorBoard
      checkpoint-100/               adapter_model.safetensors, adapter_config.json (PEFT's own format), args.yaml,
                                    environment.json (with the step), split.json; optimizer.pt, scheduler.pt, state.json
      adapter/                      once the run is done: a checkpoint without the last three files, the last or the best

Written by hand and not by `Accelerator.save_state`, which writes the base and reads back pickles. Random states need no
file: the loop seeds every step from (seed, step, process).
"""

import dataclasses
import json
import math
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from safetensors.torch import load_file
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from run_utils.arguments import UserError, write_yaml
from run_utils.environment import write_json


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
    eval_loss: float | None = None  # the newest
    best_value: float | None = None  # by --best_metric
    best_checkpoint: str | None = None  # its folder's name

    def add_evaluation(self, figures, best_metric):
        """Take note of an evaluation, `{"loss": ..., metric: rate}`; returns whether it is the best so far by best_metric: the
        lowest eval_loss or the highest rate. A loss that is not finite counts as none."""
        self.eval_loss = figures["loss"] if math.isfinite(figures["loss"]) else None
        by_loss = best_metric == "eval_loss"
        value = self.eval_loss if by_loss else figures[best_metric]
        if self.eval_loss is None or (self.best_value is not None and not better(value, self.best_value, by_loss)):
            return False
        self.best_value, self.best_checkpoint = value, f"checkpoint-{self.global_step}"
        return True


def read_state(checkpoint):
    """The RunState of a checkpoint's folder; raises ValueError, OSError or TypeError where it is not one, or of another step."""
    saved = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    if "best_eval_loss" in saved:  # what best_value was called when there was no --best_metric
        saved["best_value"] = saved.pop("best_eval_loss")
    state = RunState(**saved)
    whole = (state.global_step, state.effective_batch, state.completion_tokens)
    if not all(type(value) is int and value >= 0 for value in whole) or state.global_step != checkpoint_step(
        checkpoint
    ):
        raise ValueError(f"state.json says step {state.global_step!r}")
    if not all(value is None or math.isfinite(value) for value in (state.loss_sum, state.eval_loss, state.best_value)):
        raise ValueError("state.json has a figure that is not finite")
    return state


def better(value, than, lower_is_better):
    return value < than if lower_is_better else value > than


def open_run(args, accelerator):
    """The Run in --output_dir, new or to be resumed. Refuses a folder that holds a run, unless told to resume or overwrite it.
    Leaves nothing written."""
    checkpoint = find_checkpoint(args, accelerator.is_main_process)
    accelerator.wait_for_everyone()  # all have looked at the folder before anyone writes to it
    return Run(args, accelerator, checkpoint)


class Run:
    """A training run's folder. Only the main process writes; where the others must not go on without it, they wait."""

    def __init__(self, args, accelerator, checkpoint):
        self.args, self.accelerator = args, accelerator
        self.output_dir = Path(args.output_dir)
        self.adapter_dir = self.output_dir / "adapter"
        self.checkpoint = checkpoint  # to resume from, or None
        self.environment = {}  # where the run's results come from: set before `resume`

    def is_finished(self, last_step):
        """Whether the last step's checkpoint is there, and adapter/ of the step that is asked for."""
        if self.checkpoint != self.output_dir / f"checkpoint-{last_step}":
            return False
        try:
            state = read_state(self.checkpoint)
            delivered = json.loads((self.adapter_dir / "environment.json").read_text(encoding="utf-8"))
            return f"checkpoint-{delivered['global_step']}" == self.to_deliver(state)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def to_deliver(self, state):
        """The name of the checkpoint that adapter/ is to be: the last, or the best where one had a finite evaluation loss."""
        last = f"checkpoint-{state.global_step}"
        return (state.best_checkpoint or last) if self.args.final_adapter == "best" else last

    def last_checkpoint(self):
        return next(reversed(complete_checkpoints(self.output_dir)), None)

    def last_good(self):
        return f"last good checkpoint: {self.last_checkpoint() or 'none yet'}"

    def resume(self, training, fresh):
        """Put adapter, optimizer and scheduler where the checkpoint left them, and return its RunState; or `fresh`, the RunState
        of a run from its start, where there is no checkpoint.

        A checkpoint of other arguments (but for those marked free_on_resume), data or effective batch raises UserError by
        name: it would be another experiment.
        """
        if not self.checkpoint:
            return fresh
        from peft import (
            PeftConfig,
            set_peft_model_state_dict,
        )  # late: importing peft imports bitsandbytes, and takes seconds

        checkpoint = self.checkpoint
        try:
            state = read_state(checkpoint)
            saved_args = dict(yaml.safe_load((checkpoint / "args.yaml").read_text(encoding="utf-8")))
            saved_lora = PeftConfig.from_pretrained(checkpoint).to_dict()
            saved_environment = dict(json.loads((checkpoint / "environment.json").read_text(encoding="utf-8")))
            adapter = load_file(checkpoint / "adapter_model.safetensors")
            if not all(tensor.isfinite().all() for tensor in adapter.values()):
                raise ValueError("weights that are not finite")
            optimizer_state = torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)
            scheduler_state = torch.load(checkpoint / "scheduler.pt", map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a broken file makes json, yaml, safetensors and torch raise
            reason = str(error) if isinstance(error, ValueError) else type(error).__name__
            raise UserError(
                f"{checkpoint} cannot be read ({' '.join(reason.split())}): remove it to resume from the one before"
            ) from None
        for field in dataclasses.fields(self.args):
            now, then = getattr(self.args, field.name), saved_args.get(field.name, field.default)
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
                f"trained with {state.effective_batch}: change --gradient_accumulation_steps"
            )
        for name in ("base_fingerprint", "mixed_precision"):
            if self.environment[name] != saved_environment.get(name):
                raise UserError(
                    f"{name} is {self.environment[name]} but {checkpoint} has {saved_environment.get(name)}"
                )
        if state.data_fingerprint != fresh.data_fingerprint:
            raise UserError(
                f"the training rows, or what the loss is on, are not those that {checkpoint} was trained on"
            )
        model = self.accelerator.unwrap_model(training.model)
        check_unchanged("LoRA's", model.peft_config["default"].to_dict(), saved_lora, checkpoint)
        (saved_group,) = optimizer_state["param_groups"]
        check_unchanged("the optimizer's", training.optimizer.param_groups[0], saved_group, checkpoint)
        try:
            set_peft_model_state_dict(model, adapter)
            training.optimizer.load_state_dict(optimizer_state)
            training.scheduler.load_state_dict(scheduler_state)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{checkpoint} does not fit this model ({type(error).__name__})") from None
        if state.best_checkpoint and not (self.output_dir / state.best_checkpoint).is_dir():
            # It went when a better one came, which is not there any more either.
            self.accelerator.print(
                f"{state.best_checkpoint}, the best so far, is gone: the best is looked for from here on"
            )
            by_loss = self.args.best_metric == "eval_loss"
            state.best_value, state.best_checkpoint = (state.eval_loss, checkpoint.name) if by_loss else (None, None)
        self.accelerator.print(f"Resuming from {checkpoint}, after step {state.global_step}")
        return state

    def start(self, state, records):
        """Begin to write: what the run comes from, and `records`, JSON by file name. What an earlier run left beyond this one's
        step, or all of it if it is to be overwritten, is deleted."""
        if self.accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            if self.args.overwrite_output_dir:
                clear_run(self.output_dir)
            abandon_later_steps(self.output_dir, state.global_step)
            write_yaml(self.output_dir / "args.yaml", self.args)
            for name, record in {"environment.json": self.environment, **records}.items():
                write_json(self.output_dir / name, record)
        self.accelerator.wait_for_everyone()

    def save(self, training, state):
        """Write `checkpoint-<step>` beside its final name and rename it when complete, then delete the surplus: a kill at any
        instant leaves the checkpoints before it whole. UserError where weights or the evaluation loss are not finite."""
        weights = [parameter for parameter in training.model.parameters() if parameter.requires_grad]
        if not all(weight.isfinite().all() for weight in weights):
            raise UserError(f"after step {state.global_step} the adapter's weights are not finite; {self.last_good()}")
        if self.accelerator.is_main_process:
            final = self.output_dir / f"checkpoint-{state.global_step}"
            folder = self.output_dir / f"incomplete-{final.name}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            model = self.accelerator.unwrap_model(training.model)
            model.save_pretrained(folder, save_embedding_layers=False)
            write_yaml(folder / "args.yaml", self.args)
            where = {"global_step": state.global_step, "eval_loss": state.eval_loss}
            write_json(folder / "environment.json", self.environment | where)
            shutil.copy(self.output_dir / "split.json", folder)
            torch.save(training.optimizer.state_dict(), folder / "optimizer.pt")
            torch.save(training.scheduler.state_dict(), folder / "scheduler.pt")
            write_json(folder / "state.json", dataclasses.asdict(state))
            # On the disk before the name says complete, should the machine itself go down.
            for file in folder.iterdir():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
            folder.rename(final)
            *older, _newest = complete_checkpoints(self.output_dir)
            surplus = max(0, len(older) + 1 - self.args.save_total_limit)
            for path in [path for path in older if path.name != state.best_checkpoint][:surplus]:
                delete_checkpoint(path)
        self.accelerator.wait_for_everyone()

    def finish(self, state):
        """Make `adapter/` of the last or the best checkpoint, without what only a resume needs, and say what there is."""
        if not self.accelerator.is_main_process:
            return
        chosen = self.to_deliver(state)
        unfinished = self.output_dir / "incomplete-adapter"
        shutil.rmtree(unfinished, ignore_errors=True)
        only_for_resume = shutil.ignore_patterns("optimizer.pt", "scheduler.pt", "state.json")
        shutil.copytree(self.output_dir / chosen, unfinished, ignore=only_for_resume)
        shutil.rmtree(self.adapter_dir, ignore_errors=True)
        unfinished.rename(self.adapter_dir)
        if state.best_checkpoint:
            print(
                f"Best checkpoint: {self.output_dir / state.best_checkpoint} ({self.args.best_metric} {state.best_value:.4f})"
            )
        elif self.args.final_adapter == "best":
            print("No evaluation had a finite loss: none is the best")
        print(f"The adapter of {chosen}: {self.adapter_dir}")
        print(f"Curves: tensorboard --logdir {self.output_dir}")


# Where it lies, and what steps and schedule move: no setting that makes another experiment.
NOT_SETTINGS = ("base_model_name_or_path", "revision", "inference_mode", "peft_version", "params", "lr", "initial_lr")


def check_unchanged(what, now, then, checkpoint):
    """Raises UserError by name where a setting (of two dicts) is not what it was: an edit of the code makes another experiment as
    much as another argument does."""
    for name in sorted((now.keys() | then.keys()) - set(NOT_SETTINGS)):
        if now.get(name) != then.get(name):
            raise UserError(f"{what} {name} is {now.get(name)} but {checkpoint} was trained with {then.get(name)}")


def find_checkpoint(args, is_main):
    """The checkpoint to resume from, or None to start afresh (see open_run)."""
    output_dir = Path(args.output_dir)
    if output_dir.is_file():
        raise UserError(f"--output_dir {output_dir} is a file")
    if is_main:  # alone: another process could take the file that try_writing makes for somebody's
        if output_dir.is_dir() and any(output_dir.iterdir()) and not (output_dir / "args.yaml").exists():
            raise UserError(f"{output_dir} is not empty and holds no run of train.py: choose another --output_dir")
        try_writing(output_dir)
    if args.resume_from_checkpoint == "latest":
        return next(reversed(complete_checkpoints(output_dir)), None)
    if args.resume_from_checkpoint:
        checkpoint = Path(args.resume_from_checkpoint)
        if not (checkpoint / "state.json").is_file():
            raise UserError(f"--resume_from_checkpoint {checkpoint}: no checkpoint there")
        if checkpoint.resolve().parent != output_dir.resolve():
            raise UserError(f"{checkpoint} is of another run: resume it with --output_dir {checkpoint.parent}")
        return checkpoint
    if (output_dir / "args.yaml").exists() and not args.overwrite_output_dir:
        raise UserError(
            f"{output_dir} holds a run: continue it with --resume_from_checkpoint latest, "
            "replace it with --overwrite_output_dir, or choose another --output_dir"
        )
    return None


def try_writing(output_dir):
    existed = output_dir.exists()
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / ".writable").touch()
        (output_dir / ".writable").unlink()
    except OSError as error:
        raise UserError(f"--output_dir {output_dir} cannot be written: {error.strerror}") from None
    if not existed:
        output_dir.rmdir()  # nothing is left behind by a run that fails before it starts


def checkpoint_step(path):
    return int(path.name.removeprefix("checkpoint-"))


def complete_checkpoints(output_dir):
    """Complete checkpoints, oldest first: an incomplete one still has its temporary name."""
    return sorted(
        (path for path in Path(output_dir).glob("checkpoint-*") if path.name[11:].isdecimal()), key=checkpoint_step
    )


def abandon_later_steps(output_dir, step):
    """Delete what a run that goes on from `step` will make again: later checkpoints and the final adapter."""
    for path in complete_checkpoints(output_dir):
        if checkpoint_step(path) > step:
            delete_checkpoint(path)
    shutil.rmtree(Path(output_dir) / "adapter", ignore_errors=True)


def delete_checkpoint(path):
    """Renamed first, so that a kill in between leaves nothing half-deleted under a complete checkpoint's name."""
    doomed = path.with_name(f"incomplete-{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    shutil.rmtree(path.rename(doomed))


def clear_run(output_dir):
    """Delete the checkpoints, the adapter and the logs of an earlier run, and nothing else that lies in the folder."""
    output_dir = Path(output_dir)
    for path in (
        *output_dir.glob("checkpoint-*"),
        *output_dir.glob("incomplete-*"),
        output_dir / "adapter",
        output_dir / "logs",
    ):
        shutil.rmtree(path, ignore_errors=True)
