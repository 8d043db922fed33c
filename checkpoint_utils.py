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
import os
import shutil
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file

from script_utils import UserError, write_json, write_yaml


@dataclasses.dataclass
class RunState:
    """Where a run stands after `global_step` optimizer steps; with the arguments, all that a resume needs to know."""

    global_step: int = 0
    data_fingerprint: str = ""
    effective_batch: int = 0  # examples an optimizer step
    loss_sum: float = 0.0  # since the last log entry
    completion_tokens: int = 0  # likewise
    eval_loss: float | None = None  # the newest
    best_eval_loss: float | None = None
    best_checkpoint: str | None = None  # its folder's name


def checkpoint_step(path):
    return int(path.name.removeprefix("checkpoint-"))


def complete_checkpoints(output_dir):
    """Complete checkpoints, oldest first: an incomplete one still has its temporary name."""
    return sorted(
        (path for path in Path(output_dir).glob("checkpoint-*") if path.name[11:].isdecimal()), key=checkpoint_step
    )


def prepare_output_dir(args, is_main):
    """The checkpoint to resume from, or None to start afresh. Refuses a folder that holds a run, unless told to resume
    or overwrite it. Leaves nothing written."""
    output_dir = Path(args.output_dir)
    if output_dir.is_file():
        raise UserError(f"--output_dir {output_dir} is a file")
    if is_main:
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


def save_checkpoint(accelerator, args, environment, model, optimizer, scheduler, state):
    """Write `checkpoint-<step>` beside its final name and rename it when complete, then delete the surplus: a kill at any
    instant leaves the checkpoints before it whole. On the main process; the others wait."""
    if accelerator.is_main_process:
        output_dir = Path(args.output_dir)
        final = output_dir / f"checkpoint-{state.global_step}"
        folder = output_dir / f"incomplete-{final.name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        accelerator.unwrap_model(model).save_pretrained(folder, save_embedding_layers=False)
        write_yaml(folder / "args.yaml", args)
        write_json(
            folder / "environment.json",
            environment | {"global_step": state.global_step, "eval_loss": state.eval_loss},
        )
        shutil.copy(output_dir / "split.json", folder)
        torch.save(optimizer.state_dict(), folder / "optimizer.pt")
        torch.save(scheduler.state_dict(), folder / "scheduler.pt")
        write_json(folder / "state.json", dataclasses.asdict(state))
        for file in folder.iterdir():  # on the disk before the name says complete, should the machine itself go down
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        folder.rename(final)
        *older, _newest = complete_checkpoints(output_dir)
        surplus = max(0, len(older) + 1 - args.save_total_limit)
        for path in [path for path in older if path.name != state.best_checkpoint][:surplus]:
            delete_checkpoint(path)
    accelerator.wait_for_everyone()


def to_deliver(state, final_adapter):
    """The name of the checkpoint that adapter/ is to be: the last, or the best where one had a finite evaluation loss."""
    last = f"checkpoint-{state.global_step}"
    return (state.best_checkpoint or last) if final_adapter == "best" else last


def is_delivered(checkpoint, final_adapter):
    """Whether adapter/ is there, of the step that a run which ends with this checkpoint is asked for."""
    try:
        state = RunState(**json.loads((checkpoint / "state.json").read_text()))
        delivered = json.loads((checkpoint.parent / "adapter" / "environment.json").read_text(encoding="utf-8"))
        return f"checkpoint-{delivered['global_step']}" == to_deliver(state, final_adapter)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def deliver_adapter(output_dir, checkpoint):
    """Make `adapter/` from a checkpoint, without what only a resume needs."""
    unfinished, adapter = output_dir / "incomplete-adapter", output_dir / "adapter"
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(checkpoint, unfinished, ignore=shutil.ignore_patterns("optimizer.pt", "scheduler.pt", "state.json"))
    shutil.rmtree(adapter, ignore_errors=True)
    unfinished.rename(adapter)


def load_checkpoint(checkpoint, accelerator, args, environment, model, optimizer, scheduler, fresh, may_change):
    """Put adapter, optimizer and scheduler where the checkpoint left them; returns its RunState.

    `fresh` is the RunState that this invocation would start with. An argument outside `may_change`, the data or the
    effective batch that differs from the checkpoint's raises UserError by name: it would be another experiment.
    """
    from peft import set_peft_model_state_dict  # late, as in model_utils

    try:
        state = RunState(**json.loads((checkpoint / "state.json").read_text()))
        saved_args = dict(yaml.safe_load((checkpoint / "args.yaml").read_text(encoding="utf-8")))
        saved_environment = dict(json.loads((checkpoint / "environment.json").read_text(encoding="utf-8")))
        adapter = load_file(checkpoint / "adapter_model.safetensors")
        optimizer_state = torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)
        scheduler_state = torch.load(checkpoint / "scheduler.pt", map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken file makes json, yaml, safetensors and torch raise
        raise UserError(
            f"{checkpoint} cannot be read ({type(error).__name__}): remove it to resume from the one before"
        ) from None
    now = dataclasses.asdict(args)
    for name in sorted(set(now) - set(may_change)):
        if now[name] != saved_args.get(name):
            raise UserError(f"--{name} is {now[name]} but {checkpoint} was trained with {saved_args.get(name)}")
    if state.effective_batch != fresh.effective_batch:
        raise UserError(
            f"the effective batch (processes x accumulation x batch size) is {fresh.effective_batch} but {checkpoint} was "
            f"trained with {state.effective_batch}: change --gradient_accumulation_steps"
        )
    for name in ("base_fingerprint", "mixed_precision", "prompt_version"):
        if environment[name] != saved_environment.get(name):
            raise UserError(f"{name} is {environment[name]} but {checkpoint} has {saved_environment.get(name)}")
    if state.data_fingerprint != fresh.data_fingerprint:
        raise UserError(f"the training rows are not those that {checkpoint} was trained on")
    try:
        set_peft_model_state_dict(accelerator.unwrap_model(model), adapter)
        optimizer.load_state_dict(optimizer_state)
        scheduler.load_state_dict(scheduler_state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{checkpoint} does not fit this model ({type(error).__name__})") from None
    if state.best_checkpoint and not (checkpoint.parent / state.best_checkpoint).is_dir():
        # It went when a better one came, which is not there any more either.
        accelerator.print(f"{state.best_checkpoint}, the best so far, is gone: {checkpoint.name} takes its place")
        state.best_eval_loss, state.best_checkpoint = state.eval_loss, checkpoint.name
    return state
