"""One checkpoint's folder: read, compared, found, deleted."""

import dataclasses
import math
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from run_utils.arguments import read_yaml
from run_utils.errors import UserError, say
from run_utils.files import read_json

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
    weight_sum: float = 0.0  # likewise: the loss is loss_sum / weight_sum
    completion_tokens: int = 0  # likewise: those with a weight
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
    if not all(
        value is None or math.isfinite(value)
        for value in (state.loss_sum, state.weight_sum, state.eval_loss, state.best_value)
    ):
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
        saved = Saved(
            path,
            read_state(path),
            read_yaml(path / "args.yaml"),
            read_json(path / "environment.json"),
            PeftConfig.from_pretrained(path).to_dict(),
            load_file(path / "adapter_model.safetensors"),
            torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True),
            torch.load(path / "scheduler.pt", map_location="cpu", weights_only=True),
        )
        if not all(tensor.isfinite().all() for tensor in saved.adapter.values()):
            raise ValueError("weights that are not finite")
        if not (path / "split.json").is_file():
            raise ValueError("no split.json")
        return saved
    except Exception as error:  # whatever a broken file makes json, yaml, safetensors and torch raise
        reason = str(error) if isinstance(error, ValueError | UserError) else type(error).__name__
        raise UserError(f"{path} cannot be read ({' '.join(reason.split())})") from None


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
