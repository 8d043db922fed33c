"""Resuming: exact (after kills: test_soak.py), refused where it would be another experiment."""

import errno
import functools
import itertools
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import peft
import pytest
import torch
import transformers
from conftest import EXACT_TAGS, ROOT, curve, launch, launch_and_kill, values
from safetensors.torch import load_file, save_file
from transformers import Qwen3ForCausalLM

import evaluate
import train
from data_utils import batching
from data_utils.parts import LOSS_MASKS
from model_utils.adapters import add_lora, linear_layers
from model_utils.flops import count_flops
from run_utils import progress
from run_utils import run as run_folder
from run_utils.training import Training


@pytest.fixture
def finished(train_here, flags):
    """A finished run of four steps, with a checkpoint at each."""
    flags |= {"max_train_steps": 4, "save_steps": 1, "save_total_limit": 9}
    return train_here(flags)


def test_latest_on_a_finished_run_does_nothing(run_here, flags, finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    result = run_here(train, flags | {"resume_from_checkpoint": "latest"})
    assert result.code == 0 and "is finished" in result.out
    assert result.out.endswith(f"\nNext: python evaluate.py --adapter {finished / 'adapter'}\n")
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"learning_rate": 3e-3}, "--learning_rate is 0.003"),
        ({"lora_r": 3}, "--lora_r is 3"),
        ({"seed": 7}, "--seed is 7"),
        ({"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}, "the effective batch"),
    ],
)
def test_a_finished_run_is_not_that_of_other_settings(run_here, flags, finished, change, named):
    result = run_here(train, flags | change | {"resume_from_checkpoint": "latest"})
    (line,) = result.err.strip().splitlines()
    assert result.code == 1 and named in line and "is finished" not in result.out


def test_a_stopped_run_goes_on(run_here, train_here, flags, finished, tmp_path):
    part = flags | {"output_dir": tmp_path / "part"}
    train_here(part | {"stop_after_steps": 2})
    result = run_here(train, part | {"resume_from_checkpoint": "latest"})
    assert result.code == 0, result.err
    assert "valid rows: " in result.out and "One example; " not in result.out
    for tag in EXACT_TAGS:
        assert curve(tmp_path / "part", tag) == curve(finished, tag)


def test_an_incomplete_checkpoint_is_never_taken(run_here, flags, finished):
    (finished / "checkpoint-4").rename(finished / "incomplete-checkpoint-4")
    shutil.rmtree(finished / "adapter")
    result = run_here(train, flags | {"resume_from_checkpoint": "latest"})
    assert result.code == 0, result.err
    assert "after step 3" in result.out and (finished / "checkpoint-4").is_dir()
    assert not list(finished.glob("incomplete-*"))


def test_the_folder_of_a_run_leads_to_its_newest_checkpoint(run_here, flags, finished):
    result = run_here(train, flags | {"resume_from_checkpoint": finished})
    (line,) = result.err.strip().splitlines()
    assert result.code == 1 and line.endswith(f"no checkpoint there: did you mean {finished / 'checkpoint-4'}?")


def test_any_checkpoint_can_be_resumed_by_path(run_here, flags, finished):
    expected = (finished / "adapter" / "adapter_model.safetensors").read_bytes()
    result = run_here(train, flags | {"resume_from_checkpoint": finished / "checkpoint-2"})
    assert result.code == 0, result.err
    assert (finished / "adapter" / "adapter_model.safetensors").read_bytes() == expected
    assert [step for step, _ in curve(finished, "train/loss")] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"global_step": -5}, "state.json has step -5"),
        ({"global_step": "4"}, "state.json has step '4'"),
        ({"global_step": 3}, "state.json has step 3"),
        ({"loss_sum": float("nan")}, "not finite"),
        ({"unknown": 1}, "TypeError"),
    ],
)
def test_a_state_that_is_not_its_folder_s_is_passed_over(run_here, flags, finished, change, named):
    expected = (finished / "adapter" / "adapter_model.safetensors").read_bytes()
    path = finished / "checkpoint-4" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    before = sorted(finished.rglob("*"))
    result = run_here(train, flags | {"resume_from_checkpoint": finished / "checkpoint-4"})
    (line,) = result.err.strip().splitlines()
    assert result.code == 1 and named in line
    assert sorted(finished.rglob("*")) == before
    result = run_here(train, flags | {"resume_from_checkpoint": "latest"})
    (line,) = result.err.strip().splitlines()
    assert result.code == 0 and named in line and "trying the one before" in line
    assert "Resuming from" in result.out and "after step 3" in result.out
    assert (finished / "adapter" / "adapter_model.safetensors").read_bytes() == expected


@pytest.mark.parametrize(
    "name", ["state.json", "args.yaml", "environment.json", "split.json", "adapter_config.json",
             "adapter_model.safetensors", "optimizer.pt", "scheduler.pt"]
)  # fmt: skip
def test_a_checkpoint_that_lacks_a_file_is_passed_over(run_here, flags, finished, name):
    (finished / "checkpoint-4" / name).unlink()
    result = run_here(train, flags | {"resume_from_checkpoint": "latest"})
    assert result.code == 0 and "checkpoint-4 cannot be read" in result.err and "after step 3" in result.out


def test_no_checkpoint_that_can_be_read_is_no_new_run(run_here, flags, finished):
    for path in finished.glob("checkpoint-*/optimizer.pt"):
        path.write_bytes(b"")
    before = sorted(finished.rglob("*"))
    result = run_here(train, flags | {"resume_from_checkpoint": "latest"})
    assert result.code == 1 and "no checkpoint in" in result.err.splitlines()[-1]
    assert sorted(finished.rglob("*")) == before


def test_what_lies_beyond_the_checkpoint_resumed_is_kept_until_there_is_a_new_one(
    run_here, flags, finished, monkeypatch
):
    later = {name: (finished / name / "adapter_model.safetensors").read_bytes() for name in ("checkpoint-4", "adapter")}
    (finished / "incomplete-checkpoint-3").mkdir()  # as a kill leaves it
    (finished / "incomplete-notes").mkdir()
    monkeypatch.setattr(torch, "save", functools.partial(raise_full_disk, torch.save))
    result = run_here(train, flags | {"resume_from_checkpoint": finished / "checkpoint-2"})
    (line,) = result.err.strip().splitlines()
    assert result.code == 1 and "checkpoint-3 could not be written: it needs about" in line
    assert line.endswith("checkpoint-2")  # the last good one
    for name, content in later.items():
        assert (finished / f"superseded-{name}" / "adapter_model.safetensors").read_bytes() == content
    assert {path.name for path in finished.glob("incomplete-*")} == {"incomplete-notes"}
    monkeypatch.undo()
    result = run_here(train, flags | {"resume_from_checkpoint": "latest"})
    assert result.code == 0 and "after step 2" in result.out, result.err
    assert not list(finished.glob("superseded-*"))
    assert (finished / "adapter" / "adapter_model.safetensors").read_bytes() == later["adapter"]


def test_going_back_without_a_step_keeps_what_lies_beyond(run_here, flags, finished):
    result = run_here(train, flags | {"resume_from_checkpoint": finished / "checkpoint-2", "stop_after_steps": 2})
    assert result.code == 0, result.err
    mine, its = (finished / name / "adapter_model.safetensors" for name in ("adapter", "checkpoint-2"))
    assert mine.read_bytes() == its.read_bytes()
    assert {path.name for path in finished.glob("superseded-*")} == {
        "superseded-checkpoint-3",
        "superseded-checkpoint-4",
    }


def test_a_last_step_before_the_checkpoint_is_refused_in_one_line(run_here, flags, finished):
    before = sorted(path.name for path in finished.iterdir())
    result = run_here(train, flags | {"resume_from_checkpoint": "latest", "stop_after_steps": 2})
    (line,) = result.err.strip().splitlines()
    assert result.code == 1 and f"--stop_after_steps 2 is before the step of {finished / 'checkpoint-4'}" in line
    assert sorted(path.name for path in finished.iterdir()) == before


def test_a_kill_while_later_checkpoints_are_set_aside_leaves_a_run_that_ends_earlier(
    run_here, flags, finished, monkeypatch
):
    one = run_folder.set_aside
    monkeypatch.setattr(
        run_folder, "set_aside", lambda path: one(path) if path.name.endswith("4") else raise_full_disk(one)
    )
    result = run_here(train, flags | {"resume_from_checkpoint": finished / "checkpoint-1"})
    assert result.code == 1 and "No space left on device" in result.err
    assert sorted(path.name for path in finished.glob("*checkpoint-*")) == [
        "checkpoint-1", "checkpoint-2", "checkpoint-3", "superseded-checkpoint-4",
    ]  # fmt: skip


def raise_full_disk(save, *args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_curves_that_cannot_be_written_do_not_end_the_run(train_here, flags, capsys, monkeypatch):
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.flush", functools.partial(raise_full_disk, None))
    output_dir = train_here(flags | {"max_train_steps": 3, "profile_steps": "1:1"})
    assert (output_dir / "adapter" / "adapter_model.safetensors").is_file()


def test_a_file_where_the_curves_are_to_be_is_named_before_the_model_loads(run_here, flags, finished, monkeypatch):
    shutil.rmtree(finished / "logs")
    (finished / "logs").write_text("mine")
    monkeypatch.setattr(train, "load_model", None)
    result = run_here(train, flags | {"resume_from_checkpoint": finished / "checkpoint-2"})
    assert result.code == 1 and "logs is a file where TensorBoard's folder is to be" in result.err


def test_a_folder_that_is_removed_while_a_run_writes_to_it_ends_in_one_line(run_here, flags, monkeypatch):
    monkeypatch.setattr(train, "evaluate", lambda *args, **kwargs: shutil.rmtree(flags["output_dir"]))
    result = run_here(train, flags | {"max_train_steps": 1})
    (line,) = result.err.strip().splitlines()
    assert result.code == 1 and "run is gone; last good checkpoint: none yet" in line


def test_a_folder_that_another_process_trains_or_evaluates_in_is_refused(run_here, flags, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    holds_it = (
        f"from run_utils.files import lock_folder; lock_folder({str(folder)!r}); print('locked', flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", holds_it], cwd=ROOT, stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        for script in (train, evaluate):
            mine = flags if script is train else {"model_name_or_path": flags["model_name_or_path"], "systems": "raw"}
            mine |= {"dataset_name": flags["dataset_name"], "output_dir": folder}
            result = run_here(script, mine)
            (line,) = result.err.strip().splitlines()
            assert result.code == 1 and "another process is working in" in line
        assert not list(folder.iterdir())
        other.kill()  # and the lock is gone
    assert run_here(train, flags | {"max_train_steps": 1}).code == 0


@pytest.mark.slow
def test_a_run_that_fails_before_its_first_step_leaves_no_folder(flags, tmp_path):
    result = launch("train.py", flags | {"output_dir": tmp_path / "a" / "run", "dataset_name": tmp_path / "none.jsonl"})
    assert result.code == 1 and not (tmp_path / "a" / "run").exists()
    (tmp_path / "mine").mkdir()
    result = launch("train.py", flags | {"output_dir": tmp_path / "mine", "dataset_name": tmp_path / "none.jsonl"})
    assert result.code == 1 and (tmp_path / "mine").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_what_the_main_process_alone_meets_ends_all_of_them_in_its_line(flags, tmp_path, script):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "rows.jsonl").write_text("mine")
    if script == "evaluate.py":
        flags = {name: flags[name] for name in ("model_name_or_path", "dataset_name")} | {"systems": "raw"}
    result = launch(script, flags | {"output_dir": tmp_path / "mine"}, processes=2)
    assert result.code == 1 and result.err.count(f"{script}: error: {tmp_path / 'mine'} ") == 1
    assert "closed by peer" not in result.err and "RuntimeError" not in result.err


def test_weights_that_are_not_finite_are_neither_saved_nor_resumed(run_here, flags, finished, tmp_path):
    weights = load_file(finished / "checkpoint-4" / "adapter_model.safetensors")
    last = max(weights)
    save_file(weights | {last: weights[last] * float("nan")}, finished / "checkpoint-4" / "adapter_model.safetensors")
    shutil.rmtree(finished / "adapter")
    result = run_here(train, flags | {"resume_from_checkpoint": finished / "checkpoint-4"})
    assert result.code == 1 and "checkpoint-4 cannot be read (weights that are not finite)" in result.err
    result = run_here(train, flags | {"resume_from_checkpoint": "latest"})
    assert result.code == 0 and "weights that are not finite): trying the one before" in result.err
    change = {"learning_rate": 1e39, "warmup_ratio": 0, "max_train_steps": 1, "output_dir": tmp_path / "spoiled"}
    for held_out, found in (
        (0.05, "the evaluation after step 1 has loss"),
        (0, "after step 1 the adapter's weights are not"),
    ):
        result = run_here(train, flags | change | {"eval_fraction": held_out, "overwrite_output_dir": True})
        (line,) = result.err.strip().splitlines()
        assert result.code == 1 and found in line and "last good checkpoint: none yet" in line
        assert not list((tmp_path / "spoiled").glob("checkpoint-*")) and not (tmp_path / "spoiled" / "adapter").exists()


@pytest.mark.parametrize(
    "args_yaml", [None, "lr: 1", "- lora_r", "model_name_or_path: demo"]
)  # evaluate.py writes one too
@pytest.mark.parametrize("change", [{}, {"overwrite_output_dir": True}, {"resume_from_checkpoint": "latest"}])
def test_a_folder_that_no_run_has_made_is_left_alone(run_here, flags, tmp_path, change, args_yaml):
    folder = tmp_path / "mine"
    for name in ("checkpoint-500", "adapter", "logs"):
        (folder / name).mkdir(parents=True)
        (folder / name / "file").write_text("mine")
    if args_yaml:
        (folder / "args.yaml").write_text(args_yaml)
    result = run_here(train, flags | {"output_dir": folder} | change)
    assert result.code == 1 and "is not empty and holds no run of train.py" in result.err
    assert len(list(folder.rglob("file"))) == 3


def test_a_best_checkpoint_that_is_gone_is_not_waited_for(run_here, flags, finished):
    """As where a better one replaced it and was removed by hand: the checkpoint that is resumed
    takes its place."""
    for step in (2, 3):
        state = json.loads((finished / f"checkpoint-{step}" / "state.json").read_text())
        state |= {"best_checkpoint": "checkpoint-1", "best_value": -1.0}
        (finished / f"checkpoint-{step}" / "state.json").write_text(json.dumps(state))
    shutil.rmtree(finished / "checkpoint-1")
    change = {"resume_from_checkpoint": finished / "checkpoint-2", "final_adapter": "best", "save_steps": 9}
    result = run_here(train, flags | change)
    assert result.code == 0, result.err
    assert "checkpoint-1, the best so far, is gone" in result.out
    assert (finished / "adapter" / "adapter_config.json").is_file()


def test_a_finished_run_delivers_another_adapter_when_asked(run_here, flags, finished):
    for step in (1, 4):
        path = finished / f"checkpoint-{step}" / "state.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"best_checkpoint": "checkpoint-1"}))
    step_of = lambda: json.loads((finished / "adapter" / "environment.json").read_text())["global_step"]  # noqa: E731
    for final, step, words in (
        ("best", 1, "adapter of checkpoint-1"),
        ("best", 1, "is finished"),
        ("last", 4, "of checkpoint-4"),
    ):
        result = run_here(train, flags | {"resume_from_checkpoint": "latest", "final_adapter": final})
        assert result.code == 0 and words in result.out and step_of() == step


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 43}, "--seed is 43 but"),
        ({"lora_r": 8}, "--lora_r is 8 but"),
        ({"lora_target_modules": ["q_proj"]}, "--lora_target_modules"),
        ({"learning_rate": 1e-3}, "--learning_rate"),
        ({"max_seq_length": 300}, "--max_seq_length"),
        ({"max_train_steps": 9}, "--max_train_steps"),
        ({"gradient_accumulation_steps": 3}, "the effective batch"),
    ],
)
def test_another_experiment_is_refused_by_name(run_here, flags, finished, monkeypatch, change, named):
    """And before a base is loaded, which takes minutes where it is large."""
    monkeypatch.setattr(train, "load_model", None)
    result = run_here(train, flags | change | {"resume_from_checkpoint": finished / "checkpoint-2"})
    (line,) = result.err.strip().splitlines()
    assert result.code == 1 and named in line


def test_layers_that_were_named_and_now_are_not_are_another_experiment(run_here, train_here, flags, monkeypatch):
    train_here(flags | {"lora_target_modules": ["q_proj"], "max_train_steps": 2, "save_steps": 1})
    resumed = flags | {"max_train_steps": 2, "resume_from_checkpoint": flags["output_dir"] / "checkpoint-1"}
    monkeypatch.setattr(train, "load_model", None)
    result = run_here(train, resumed)
    assert result.code == 1 and "--lora_target_modules is q_proj k_proj" in result.err


@pytest.mark.parametrize(
    ("module", "name", "edited", "named"),
    [
        (peft, "LoraConfig", functools.partial(peft.LoraConfig, lora_bias=True), "LoRA's lora_bias is True but"),
        (torch.optim, "AdamW", functools.partial(torch.optim.AdamW, betas=(0.8, 0.9)), "the optimizer's betas"),
        (torch.optim, "AdamW", lambda p, lr, weight_decay, fused: torch.optim.SGD(p, lr, 0.9), "the optimizer's "),
        (
            transformers,
            "get_scheduler",
            lambda name, optimizer, **steps: transformers.get_constant_schedule(optimizer),
            "the schedule's rate at step 2 is",
        ),
        (batching, "epoch_order", lambda examples, seed, epoch: range(len(examples)), "the training rows, their order"),
    ],
)
def test_an_edit_of_the_code_that_makes_another_experiment_is_refused_by_name(
    run_here, flags, finished, monkeypatch, module, name, edited, named
):
    monkeypatch.setattr(module, name, edited)
    result = run_here(train, flags | {"resume_from_checkpoint": finished / "checkpoint-2"})
    (line,) = result.err.strip().splitlines()
    assert result.code == 1 and named in line and "checkpoint-2 was trained " in line


class Counter:
    """As an average of the weights would be: an object of the training with a state of its own."""

    def __init__(self):
        self.loaded = None

    def state_dict(self):
        return {"count": torch.tensor(7), "loaded": self.loaded}

    def load_state_dict(self, state):
        self.loaded = state["count"].item()


def test_whatever_is_given_to_training_is_saved_and_resumed(run_here, train_here, flags, monkeypatch):
    flags |= {"max_train_steps": 2, "save_steps": 1}
    ema, resumed = Counter(), Counter()
    monkeypatch.setattr(train, "Training", functools.partial(Training, ema=ema))
    run = train_here(flags)
    saved = torch.load(run / "checkpoint-1" / "ema.pt", weights_only=True)
    assert saved == {"count": 7, "loaded": None}
    assert not list((run / "adapter").glob("*.pt"))
    flags |= {"resume_from_checkpoint": run / "checkpoint-1"}
    monkeypatch.setattr(train, "Training", Training)
    result = run_here(train, flags)
    (line,) = result.err.strip().splitlines()
    assert result.code == 1 and "checkpoint-1 has ema.pt, optimizer.pt, scheduler.pt, and this training needs" in line
    monkeypatch.setattr(train, "Training", functools.partial(Training, ema=resumed))
    train_here(flags)
    assert resumed.loaded == 7


def test_a_state_that_no_resume_could_read_is_refused_when_it_is_saved(run_here, flags, monkeypatch):
    ema = Counter()
    ema.loaded = np.float64(7)
    monkeypatch.setattr(train, "Training", functools.partial(Training, ema=ema))
    result = run_here(train, flags | {"max_train_steps": 2, "save_steps": 1})
    assert result.code == 1 and "a resume could not read the state_dict() of ema" in result.err
    assert not list(flags["output_dir"].glob("*checkpoint*"))


ONE_GROUP = "    groups = parameter_groups(model, args.learning_rate, args.loraplus_lr_ratio)\n"
TWO_GROUPS = """    groups = [
        {"params": [p for name, p in model.named_parameters() if "lora_A" in name]},
        {"params": [p for name, p in model.named_parameters() if "lora_B" in name], "lr": 16 * args.learning_rate},
    ]
"""


@pytest.mark.slow
def test_an_edited_optimizer_of_two_groups_is_killed_and_goes_on(flags, tmp_path, monkeypatch):
    """LoRA+ by hand, in a copy of train.py with other parameter groups: B learns 16 times as fast
    as A."""
    source = (ROOT / "train.py").read_text()
    assert source.count(ONE_GROUP) == 1
    edited, other_rate = tmp_path / "train_lora_plus.py", tmp_path / "other_rate.py"
    edited.write_text(source.replace(ONE_GROUP, TWO_GROUPS))
    other_rate.write_text(source.replace(ONE_GROUP, TWO_GROUPS.replace("16 *", "8 *")))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    flags |= {"max_train_steps": 6, "save_steps": 2, "warmup_ratio": 0}
    run, whole = flags["output_dir"], tmp_path / "whole"
    assert launch(str(edited), flags | {"output_dir": whole}).code == 0
    assert launch_and_kill(str(edited), flags, (run / "checkpoint-2").is_dir, tmp_path / "log")
    resumed = flags | {"resume_from_checkpoint": "latest"}
    for script, named in ((other_rate, "the optimizer's group 1's initial_lr is 0.08 but"), (ROOT / "train.py", "the optimizer's groups is 1 but")):  # fmt: skip
        result = launch(str(script), resumed)
        assert result.code == 1 and named in result.err, result.err
    result = launch(str(edited), resumed)
    assert result.code == 0, result.err
    first, second = values(run, "train/learning_rate"), values(run, "train/learning_rate_1")
    torch.testing.assert_close(second, 16 * first)
    for tag in ("train/loss", "train/learning_rate_1"):
        assert torch.equal(values(run, tag), values(whole, tag))


def test_speed_and_time_left_after_a_resume_are_of_the_steps_since_then(
    run_here, train_here, flags, tiny_model, tmp_path, monkeypatch
):
    """By a clock that goes on by a minute when it is read: a step takes one, reading its loss
    another. The two evaluations to come are known from the log and take no time here; the two saves
    are not known. MFU by the FLOP of the one step since the resume, whose completion tokens another
    run logs by themselves."""
    flags |= {"max_train_steps": 20, "save_steps": 9, "logging_steps": 10}
    stopped = train_here(flags | {"stop_after_steps": 10})
    losses = {tag: values(stopped, tag)[-1].item() for tag in ("train/loss", "train/completion_tokens")}
    every = train_here(flags | {"stop_after_steps": 10, "logging_steps": 1, "output_dir": tmp_path / "every"})
    minutes = itertools.count()
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: 60.0 * next(minutes)))
    monkeypatch.setattr(train, "peak_flops", lambda accelerator: 1e12)
    change = {"resume_from_checkpoint": flags["output_dir"] / "checkpoint-9", "gradient_checkpointing": "true"}
    result = run_here(train, flags | change)
    assert result.code == 0, result.err
    entry = {tag: dict(curve(flags["output_dir"], f"train/{tag}"))[10] for tag in ("mfu", "hfu", "tokens_per_second")}
    assert re.search(r"step 10/20 .* over 20\.0 min left", result.out)
    model = Qwen3ForCausalLM.from_pretrained(tiny_model).requires_grad_(False)
    flops = count_flops(add_lora(model, 4, 8, 0.0, linear_layers(model)), gradient_checkpointing=True)
    seconds, completion_tokens = 120, values(every, "train/completion_tokens")[-1].item()
    num_tokens = entry["tokens_per_second"] * seconds
    needed = flops.per_token * num_tokens + flops.per_completion_token * completion_tokens
    assert entry["mfu"] == pytest.approx(needed / seconds / 1e12, rel=1e-4)
    assert entry["hfu"] == pytest.approx((needed + flops.recomputed_per_token * num_tokens) / seconds / 1e12, rel=1e-4)
    # The loss is the mean over all ten steps, as if there had been no resume, and so are its
    # tokens.
    for tag, value in losses.items():
        assert dict(curve(flags["output_dir"], tag))[10] == pytest.approx(value, rel=1e-5)


def test_the_same_effective_batch_cut_otherwise_is_not(run_here, flags, finished):
    change = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "gradient_checkpointing": "true"}
    before = values(finished, "train/loss")
    result = run_here(train, flags | change | {"resume_from_checkpoint": finished / "checkpoint-2"})
    assert result.code == 0, result.err
    torch.testing.assert_close(values(finished, "train/loss"), before, rtol=1e-4, atol=0)


def test_changed_rows_are_noticed(run_here, flags, finished, rows_file, monkeypatch):
    monkeypatch.setattr(train, "load_model", None)
    lines = rows_file.read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        record["query"] += " Thanks!"
    original = rows_file.read_text()
    rows_file.write_text("".join(json.dumps(record) + "\n" for record in records))
    try:
        result = run_here(train, flags | {"resume_from_checkpoint": finished / "checkpoint-2"})
    finally:
        rows_file.write_text(original)
    assert result.code == 1 and "the training rows, their order, tokens or loss weights are not those" in result.err


@pytest.mark.parametrize(("flag", "value"), [("loss_mask", "values_only"), ("loss_weights", ["names=2", "end=1"])])
def test_another_loss_mask_is_refused_by_name(run_here, flags, finished, monkeypatch, flag, value):
    monkeypatch.setattr(train, "load_model", None)
    result = run_here(train, flags | {flag: value, "resume_from_checkpoint": finished / "checkpoint-2"})
    shown = " ".join(value) if isinstance(value, list) else value
    assert result.code == 1 and f"--{flag} is {shown} but" in result.err


def test_an_edited_loss_mask_is_noticed(run_here, flags, finished, monkeypatch):
    monkeypatch.setattr(train, "load_model", None)
    monkeypatch.setitem(LOSS_MASKS, "completion_only", LOSS_MASKS["values_only"])
    result = run_here(train, flags | {"resume_from_checkpoint": finished / "checkpoint-2"})
    assert result.code == 1 and "loss weights are not those" in result.err


def test_a_checkpoint_cannot_run_code(run_here, flags, finished, tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "planted"), "w"))

    with (finished / "checkpoint-2" / "optimizer.pt").open("wb") as file:
        pickle.dump(Payload(), file)
    result = run_here(train, flags | {"resume_from_checkpoint": finished / "checkpoint-2"})
    assert result.code == 1 and "cannot be read" in result.err and len(result.err.strip().splitlines()) == 1
    assert not (tmp_path / "planted").exists()


def test_an_output_folder_that_holds_a_run_is_refused(run_here, flags, finished):
    (finished / "notes.txt").write_text("mine")
    result = run_here(train, flags)
    assert result.code == 1 and "--resume_from_checkpoint latest" in result.err
    result = run_here(train, flags | {"overwrite_output_dir": True, "max_train_steps": 1})
    assert result.code == 0, result.err
    assert [path.name for path in finished.glob("checkpoint-*")] == ["checkpoint-1"]
    assert [step for step, _ in curve(finished, "train/loss")] == [1]
    assert (finished / "notes.txt").read_text() == "mine"
