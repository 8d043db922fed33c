"""One checkpoint's folder: written, read, compared, found, deleted."""

import dataclasses
import math
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from torch.optim.lr_scheduler import LambdaLR

from run_utils.arguments import as_written, read_yaml
from run_utils.errors import UserError, one_line
from run_utils.files import ADAPTER_FILES, is_whole_model, read_json, write_json
from run_utils.weights import load_whole_model, read_weights, write_weights

FILES = ("args.yaml", "environment.json", "split.json", "optimizer.pt", "scheduler.pt", "state.json")
# On a full disk, Python, torch and safetensors raise these.
WRITING_FAILS = (OSError, RuntimeError, SafetensorError)


@dataclasses.dataclass
class LogEntry:
    """Sums over the optimizer steps since the last entry of the log."""

    loss_sum: float = 0.0
    weight_sum: float = 0.0  # of the supervised tokens: the loss is loss_sum / weight_sum
    completion_tokens: int = 0  # supervised tokens
    # For speeds, of this process's steps only. Checkpoints don't have them.
    num_steps: int = 0
    num_tokens: int = 0
    num_supervised: int = 0
    seconds: float = 0.0
    data_seconds: float = 0.0


@dataclasses.dataclass
class RunState:
    """A run's state after `global_step` optimizer steps: all a resume needs, with the arguments."""

    global_step: int = 0
    data_fingerprint: str = ""
    order_fingerprint: str = ""
    effective_batch: int = 0  # examples per optimizer step
    entry: LogEntry = dataclasses.field(default_factory=LogEntry)  # the log's next entry
    eval_loss: float | None = None  # of this step, if evaluated
    # This step's evaluation is still to do: after a signal, or for --eval_on_start.
    evaluation_due: bool = False
    # Trained on so far, prompts included. A resume of an older checkpoint counts from 0.
    num_tokens: int = 0
    best_value: float | None = None  # by --best_metric
    best_checkpoint: str | None = None  # its folder's name
    stale_evaluations: int = 0  # in a row, none of them better than the best by --best_metric
    # For TensorBoard's table of runs, whatever --best_metric is.
    best_loss: float | None = None
    best_exact_match: float | None = None

    def add_evaluation(self, figures, best_metric):
        """Record an evaluation of this step, `{"loss": ..., metric: rate}`, with a finite loss. The
        best has the lowest eval_loss or the highest rate; of equal ones it is the latest, which has
        seen more rows. The untouched base, at step 0, is no candidate."""
        self.eval_loss, self.evaluation_due = figures["loss"], False
        if self.global_step == 0:
            return
        by_loss = best_metric == "eval_loss"
        losses = [self.eval_loss, self.best_loss, self.best_value if by_loss else None]  # older states: no best_loss
        self.best_loss = min(loss for loss in losses if loss is not None)
        if "exact_match" in figures:
            self.best_exact_match = max(figures["exact_match"], self.best_exact_match or 0.0)
        value = self.eval_loss if by_loss else figures[best_metric]
        best = self.best_value if self.best_value is not None else math.inf if by_loss else -math.inf
        gain = best - value if by_loss else value - best
        self.stale_evaluations = 0 if gain > 0 else self.stale_evaluations + 1
        if gain >= 0:
            self.best_value, self.best_checkpoint = value, f"checkpoint-{self.global_step}"

    def stops_early(self, patience):
        """Whether `--early_stopping_patience` (None: off) ends the run after this step."""
        return patience is not None and self.stale_evaluations >= patience

    @property
    def is_best(self):
        return self.best_checkpoint == f"checkpoint-{self.global_step}"


def write_state(checkpoint, state):
    record = dataclasses.asdict(state)
    entry = record.pop("entry")
    record |= {name: entry[name] for name in ("loss_sum", "weight_sum", "completion_tokens")}
    write_json(checkpoint / "state.json", record)


def read_state(checkpoint):
    """The RunState of a checkpoint's folder. Raises UserError, ValueError or TypeError if it is
    invalid or of another step."""
    saved = read_json(checkpoint / "state.json")
    if "best_eval_loss" in saved:  # best_value's name before --best_metric existed
        saved["best_value"] = saved.pop("best_eval_loss")
    loss_sum, tokens = saved.pop("loss_sum", 0.0), saved.pop("completion_tokens", 0)
    entry = LogEntry(loss_sum, saved.pop("weight_sum", tokens), tokens)  # before loss masks, all weights were 1
    state = RunState(entry=entry, **saved)
    whole = (state.global_step, state.effective_batch, entry.completion_tokens)
    whole += (state.num_tokens, state.stale_evaluations)
    step = checkpoint_step(checkpoint)
    if not all(type(value) is int and value >= 0 for value in whole) or state.global_step != step:
        raise ValueError(f"state.json has step {state.global_step!r}")
    best = state.best_value, state.best_loss, state.best_exact_match
    if not all(value is None or math.isfinite(value) for value in (*vars(entry).values(), state.eval_loss, *best)):
        raise ValueError("state.json has a figure that is not finite")
    if state.best_checkpoint is not None and not re.fullmatch(r"checkpoint-\d+", state.best_checkpoint):
        raise ValueError(f"state.json names {state.best_checkpoint!r} as the best checkpoint")
    return state


class Saved(NamedTuple):
    """A checkpoint, read completely."""

    path: Path
    state: RunState
    args: dict
    environment: dict
    lora: dict | None  # None: a whole model, not an adapter
    adapter: dict
    others: dict  # contents of NAME.pt by name, such as the optimizer's


def read_checkpoint(path):
    """The Saved checkpoint in a folder. Raises UserError if a file is missing, unreadable, or has
    NaN or infinite weights."""
    try:
        state = read_state(path)
        weights = () if is_whole_model(path) else ADAPTER_FILES
        # A pipe is not a file: reading it would wait.
        if missing := [name for name in (*weights, *FILES) if not (path / name).is_file()]:
            raise ValueError(f"no {missing[0]}")
        return Saved(
            path,
            state,
            read_yaml(path / "args.yaml"),
            read_json(path / "environment.json"),
            *read_weights(path),
            {file.stem: torch.load(file, map_location="cpu", weights_only=True) for file in sorted(path.glob("*.pt"))},
        )
    # Broken files make json, yaml, safetensors and torch raise anything.
    except Exception as error:
        reason = str(error) if isinstance(error, ValueError | UserError) else type(error).__name__
        raise UserError(f"{path} cannot be read ({one_line(reason)})") from None


def write_checkpoint(folder, training, model, split):
    """Write weights, states and split to a new folder. Raises UserError if a resume could not read
    a state.

    model: of `training`, unwrapped. split: the file to copy."""
    with training.as_delivered():
        write_weights(folder, training, model)
        write_states(folder, training.others)
    shutil.copyfile(split, folder / split.name)


def write_states(folder, others):
    """others: objects with a `state_dict`, by name."""
    for name, value in others.items():
        torch.save(value.state_dict(), folder / f"{name}.pt")
        try:
            torch.load(folder / f"{name}.pt", map_location="meta", weights_only=True)
        except pickle.UnpicklingError:
            raise UserError(
                f"a resume could not read the state_dict() of {name}: it may have tensors, numbers, texts, lists and "
                "dicts, and no NumPy values or other objects"
            ) from None


def flush_to_disk(folder):
    for file in folder.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def load_checkpoint(saved, training, model):
    """Load the saved states into model, optimizer, scheduler and other objects. Raises UserError,
    before any change, if the Saved checkpoint has other objects or settings.

    model: of `training`, unwrapped."""
    from peft import set_peft_model_state_dict  # late, as in read_checkpoint

    if saved.others.keys() != training.others.keys():
        found, wanted = (", ".join(f"{name}.pt" for name in names) for names in (saved.others, training.others))
        raise UserError(f"{saved.path} has {found}, and this training needs {wanted}: another experiment")
    if saved.lora:
        check_unchanged("LoRA's", model.peft_config["default"].to_dict(), saved.lora, saved.path)
    groups, saved_groups = training.optimizer.param_groups, saved.others["optimizer"]["param_groups"]
    check_unchanged("the optimizer's", {"groups": len(groups)}, {"groups": len(saved_groups)}, saved.path)
    for index, (group, saved_group) in enumerate(zip(groups, saved_groups, strict=True)):
        owner = f"the optimizer's group {index}'s" if len(groups) > 1 else "the optimizer's"
        check_unchanged(owner, group, saved_group, saved.path)
    check_schedule(training.others["scheduler"], saved)
    try:
        if saved.lora:
            set_peft_model_state_dict(model, saved.adapter)
        else:
            load_whole_model(model, saved.path)
        for name, value in training.others.items():
            value.load_state_dict(saved.others[name])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{saved.path} does not fit this model ({type(error).__name__})") from None


def check_schedule(scheduler, saved):
    """Raises UserError if the schedule has other learning rates at the checkpoint's step than the
    saved one. Schedules other than LambdaLR, the class of transformers' own, are not compared."""
    rates, step = saved.others["scheduler"].get("_last_lr"), saved.others["scheduler"].get("last_epoch")
    if isinstance(scheduler, LambdaLR) and isinstance(step, int) and isinstance(rates, list):
        now = [base * rate(step) for base, rate in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
        if now != rates:
            raise UserError(f"the schedule's rate at step {step} is {now} but {saved.path} was trained with {rates}")


def check_arguments(args, saved):
    """Raise UserError if the Saved checkpoint is of another experiment: an argument differs and
    isn't free_on_resume."""
    checkpoint, state, saved_args = saved.path, saved.state, saved.args
    if args.stop_after_steps and args.stop_after_steps < state.global_step:
        raise UserError(
            f"--stop_after_steps {args.stop_after_steps} is before the step of {checkpoint}: raise it, or name an "
            "earlier checkpoint with --resume_from_checkpoint"
        )
    for field in dataclasses.fields(args):
        now, then = getattr(args, field.name), saved_args.get(field.name, field.default)
        if now != then and not field.metadata["free_on_resume"]:
            raise UserError(f"--{field.name} is {as_written(now)} but {checkpoint} was trained with {as_written(then)}")
    rows_now, rows_then = args.eval_generate_examples, saved_args.get("eval_generate_examples", 0)
    if args.best_metric != "eval_loss" and rows_now != rows_then:
        raise UserError(
            f"--eval_generate_examples is {rows_now} but {checkpoint} has the best of {rows_then} rows' "
            f"{args.best_metric}"
        )


# The base's path and the step's learning rate don't make another experiment. The schedule's
# learning rate, initial_lr, does.
NOT_SETTINGS = ("base_model_name_or_path", "revision", "inference_mode", "peft_version", "params", "lr")


def check_unchanged(owner, now, then, checkpoint):
    """Raise UserError if a setting differs between two dicts. An edit of the code makes another
    experiment, as another argument does."""
    for name in sorted((now.keys() | then.keys()) - set(NOT_SETTINGS)):
        setting, saved = now.get(name), then.get(name)
        if isinstance(setting, set) and isinstance(saved, list):  # JSON has no sets
            saved = set(saved)
        if setting != saved:
            raise UserError(f"{owner} {name} is {setting} but {checkpoint} was trained with {saved}")


def checkpoint_step(path):
    return int(path.name.removeprefix("checkpoint-"))


def complete_checkpoints(output_dir):
    """Complete checkpoints, oldest first: an incomplete one still has its temporary name."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.name[11:].isdecimal() and path.is_dir()]
    return sorted(folders, key=checkpoint_step)


def delete_checkpoint(path):
    """Delete a checkpoint. It is renamed first, so that a kill leaves nothing half-deleted under a
    complete checkpoint's name."""
    doomed = path.with_name(f"incomplete-{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    shutil.rmtree(path.rename(doomed))
