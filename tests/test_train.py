"""What a training run does and leaves behind, through the real `main`."""

import gzip
import json
import math
import os
import re
import shutil
import stat

import pytest
import torch
from conftest import TAGS, curve, launch, read_args, values
from peft import PeftModel
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer, get_scheduler
from transformers.utils import is_liger_kernel_available

import evaluate
import train
from data_utils.batching import collate, tokenize_rows
from data_utils.parts import COMPLETION
from data_utils.sources import load_rows
from data_utils.split import split_rows
from run_utils.metrics_file import read_metrics
from train import completion_loss, step_seed


def test_only_the_adapter_moves_and_plain_peft_reads_it(train_here, flags, tiny_model, rows_file):
    base_before = load_file(tiny_model / "model.safetensors")
    output_dir = train_here(flags | {"max_train_steps": 3, "warmup_ratio": 0, "eval_fraction": 0.1})
    assert {path.name for path in output_dir.iterdir()} == {
        "args.yaml", "environment.json", "dropped_rows.json", "split.json", "logs", "metrics.jsonl", "checkpoint-3", "adapter",
    }  # fmt: skip
    adapter = load_file(output_dir / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
    moved = [name for name in adapter if "lora_B" in name and adapter[name].any()]
    assert len(moved) == 2 * 7  # layers times projections: B starts at zero
    assert not [name for name in adapter if "lora_" not in name]

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), output_dir / "adapter").eval()
    for name, weight in load_file(tiny_model / "model.safetensors").items():
        assert torch.equal(weight, base_before[name])
    _, eval_rows, _ = split_rows(load_rows(str(rows_file))[0], 0.1, seed=42)
    examples = tokenize_rows(AutoTokenizer.from_pretrained(tiny_model), TAGS, eval_rows, 2048).examples
    with torch.no_grad():
        loss = completion_loss(model, collate(examples), model.device).item()
    loss /= sum(example.num_supervised for example in examples)
    assert curve(output_dir, "eval/loss") == [(3, pytest.approx(loss, rel=1e-5))]


def test_a_checkpoint_holds_the_run_and_not_the_base(train_here, flags):
    output_dir = train_here(flags | {"max_train_steps": 2})
    checkpoint = output_dir / "checkpoint-2"
    assert {path.name for path in checkpoint.iterdir()} == {
        "adapter_model.safetensors", "adapter_config.json", "README.md", "args.yaml", "environment.json", "split.json",
        "optimizer.pt", "scheduler.pt", "state.json",
    }  # fmt: skip
    adapter_bytes = (checkpoint / "adapter_model.safetensors").stat().st_size
    # Adam: two moments
    assert sum(path.stat().st_size for path in checkpoint.iterdir()) < 3 * adapter_bytes + 50_000
    environment = json.loads((checkpoint / "environment.json").read_text())
    assert environment["prompt_format"] == "tags-1" and environment["torch"] == torch.__version__
    assert "after 2 optimizer steps of `train.py`" in (checkpoint / "README.md").read_text()
    assert read_args(checkpoint)["lora_r"] == flags["lora_r"] and "resume_from_checkpoint" not in read_args(checkpoint)


@pytest.mark.parametrize(("umask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750)])
def test_another_user_may_read_the_run_if_the_umask_allows_it(train_here, flags, umask, file_mode, folder_mode):
    before = os.umask(umask)
    try:
        output_dir = train_here(flags | {"max_train_steps": 1})
    finally:
        os.umask(before)
    paths = [output_dir, *output_dir.rglob("*")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_dir()} == {folder_mode}
    modes = {str(path.relative_to(output_dir)): stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_file()}
    assert set(modes.values()) == {file_mode}, modes
    assert {"adapter/adapter_model.safetensors", "checkpoint-1/adapter_model.safetensors"} <= modes.keys()


def test_args_yaml_repeats_the_run(run_here, train_here, flags, tmp_path):
    first = train_here(flags | {"max_train_steps": 2})
    again = run_here(train, ["--config", str(first / "args.yaml"), "--output_dir", str(tmp_path / "again")])
    assert again.code == 0, again.err
    for name in ("adapter/adapter_model.safetensors",):
        assert (first / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_learning_rate_is_cosine_with_warmup_and_stops_without_bending(train_here, flags):
    output_dir = train_here(flags | {"max_train_steps": 20, "stop_after_steps": 12, "warmup_ratio": 0.12})
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=flags["learning_rate"])
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=3, num_training_steps=20)
    expected = []
    for step in range(1, 13):
        expected.append((step, pytest.approx(schedule.get_last_lr()[0], rel=1e-6)))
        optimizer.step()
        schedule.step()
    assert curve(output_dir, "train/learning_rate") == expected
    assert (output_dir / "checkpoint-12").is_dir() and (output_dir / "adapter").is_dir()


def test_loss_falls_and_curves_are_complete(train_here, flags):
    output_dir = train_here(flags | {"max_train_steps": 12, "logging_steps": 5, "eval_steps": 6})
    tags = "loss learning_rate grad_norm tokens_per_second completion_tokens data_wait_fraction peak_memory_gib epoch"
    for tag in tags.split():
        assert [step for step, _ in curve(output_dir, f"train/{tag}")] == [5, 10, 12], tag
    losses = values(output_dir, "train/loss")
    assert losses[-1] < losses[0] - 0.5
    assert [step for step, _ in curve(output_dir, "eval/loss")] == [6, 12]
    assert values(output_dir, "train/epoch")[-1] == pytest.approx(12 / 10)
    assert 0 <= values(output_dir, "train/data_wait_fraction").max() < 0.5


def test_a_logged_loss_is_the_mean_over_the_tokens_since_the_last(train_here, flags, tmp_path):
    every = train_here(flags | {"max_train_steps": 6, "output_dir": tmp_path / "every"})
    third = train_here(flags | {"max_train_steps": 6, "output_dir": tmp_path / "third", "logging_steps": 3})
    losses, tokens = values(every, "train/loss"), values(every, "train/completion_tokens")
    expected = (losses * tokens).view(2, 3).sum(1) / tokens.view(2, 3).sum(1)
    torch.testing.assert_close(values(third, "train/loss"), expected, rtol=1e-6, atol=0)
    assert values(third, "train/completion_tokens").tolist() == tokens.view(2, 3).sum(1).tolist()


def test_the_loss_is_a_weighted_mean_and_tokens_stay_counts(train_here, flags, tmp_path):
    """Weights of a half all over leave losses, gradients and counts as they are."""
    flags |= {"max_train_steps": 2, "warmup_ratio": 0}
    ones = train_here(flags | {"output_dir": tmp_path / "ones"})
    weights = [f"{part}=0.5" for part in COMPLETION]
    halves = train_here(flags | {"output_dir": tmp_path / "halves", "loss_weights": weights})
    for tag in ("train/loss", "train/grad_norm", "eval/loss"):
        torch.testing.assert_close(values(halves, tag), values(ones, tag), rtol=2e-6, atol=0)
    assert curve(halves, "train/completion_tokens") == curve(ones, "train/completion_tokens")


def test_the_loss_of_the_end_token_shows_a_training_without_it(train_here, flags, tmp_path):
    """The fault of masks where pad == eos: eval/loss looks good, and no generation would stop."""
    flags |= {"max_train_steps": 30, "eval_steps": 30, "eval_on_start": True, "learning_rate": 3e-2}
    good = train_here(flags | {"output_dir": tmp_path / "good"})
    bad = train_here(flags | {"output_dir": tmp_path / "bad", "loss_weights": "end=0"})
    for run in (good, bad):
        before, after = values(run, "eval/loss")
        assert after < before - 1.5
    assert values(good, "eval/loss_end")[-1] < 3 and values(good, "eval/accuracy_end")[-1] == 1
    assert values(bad, "eval/loss_end")[-1] > 6 and values(bad, "eval/accuracy_end")[-1] == 0


def test_gradients_are_clipped_once_a_step_by_their_global_norm(train_here, flags, tmp_path):
    flags |= {"max_train_steps": 1, "warmup_ratio": 0}
    norms = []
    for max_grad_norm in (0, 0.01):
        output_dir = train_here(flags | {"max_grad_norm": max_grad_norm, "output_dir": tmp_path / str(max_grad_norm)})
        state = torch.load(output_dir / "checkpoint-1" / "optimizer.pt", weights_only=True)["state"]
        norms.append(math.sqrt(sum((10 * moments["exp_avg"]).square().sum().item() for moments in state.values())))
        logged = values(output_dir, "train/grad_norm").item()
    assert norms[0] == pytest.approx(logged, rel=1e-4) and norms[1] == pytest.approx(0.01, rel=1e-3)


def test_a_loss_that_is_not_finite_stops_the_run(run_here, flags, tmp_path):
    """With the same step and rows, whether each step's loss is read at once or one step later."""
    flags |= {"learning_rate": 1e30, "warmup_ratio": 0, "max_train_steps": 9, "eval_fraction": 0}
    lines = []
    for every, last_good in ((1, tmp_path / "1" / "checkpoint-1"), (9, "none yet")):
        result = run_here(
            train, flags | {"output_dir": tmp_path / str(every), "save_steps": every, "logging_steps": every}
        )
        assert result.code == 1
        (line,) = result.err.strip().splitlines()
        assert "step 2 has loss nan" in line and "demo-0000" in line and line.endswith(f"checkpoint: {last_good}")
        lines.append(line.removesuffix(str(last_good)))
    assert lines[0] == lines[1]


def test_a_run_that_is_refused_for_its_rows_names_the_file_with_all_of_them_and_is_no_run(run_here, flags, tmp_path):
    rows = [json.loads(line) for line in flags["dataset_name"].read_text().splitlines()]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row | {"answers": "[{"} if i < 9 else row) + "\n" for i, row in enumerate(rows)))
    report = tmp_path / "run" / "dropped_rows.json"
    result = run_here(train, flags | {"dataset_name": path, "max_train_steps": 1})
    assert result.code == 1 and f"--max_bad_rows allows 0; all of them are in {report}\n" in result.err
    ((reason, names),) = json.loads(report.read_text()).items()
    assert "broken JSON in field 'answers'" in reason and names == [f"{row['id']} (column 3)" for row in rows[:9]]
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["dropped_rows.json"]
    # The same folder takes the run, which then keeps its own list if another is refused.
    assert run_here(train, flags | {"dataset_name": path, "max_train_steps": 1, "max_bad_rows": 9}).code == 0
    kept = report.read_text()
    result = run_here(train, flags | {"dataset_name": path, "max_train_steps": 1, "resume_from_checkpoint": "latest"})
    assert result.code == 1 and "refused_rows.json" in result.err and report.read_text() == kept


def test_rows_dropped_for_length_are_counted(run_here, flags, tmp_path):
    result = run_here(train, flags | {"max_train_steps": 1, "max_seq_length": 400})
    assert result.code == 0, result.err
    dropped = json.loads((tmp_path / "run" / "dropped_rows.json").read_text())
    too_long = dropped["longer than 400 tokens"]
    assert 0 < len(too_long) < 84
    kept, evaluated, long_training, long_held_out = map(
        int, re.search(r"rows: (\d+) to train on, (\d+) to evaluate, (\d+) \+ (\d+) longer", result.out).groups()
    )
    assert (kept + long_training, evaluated + long_held_out) == (80, 4)
    assert long_training + long_held_out == len(too_long)
    nothing = run_here(train, flags | {"max_seq_length": 5, "output_dir": tmp_path / "nothing"})
    assert nothing.code == 1 and "no training rows left" in nothing.err and not list((tmp_path / "nothing").glob("*"))


def test_the_supervised_span_is_shown(run_here, flags):
    out = run_here(train, flags | {"max_train_steps": 1}).out
    assert out.count("⟦[") == 1 and out.count("<|endoftext|>⟧") == 1


def test_checkpoints_beyond_the_limit_go_but_never_the_newest_or_the_best(train_here, flags):
    flags |= {"max_train_steps": 5, "save_steps": 1, "save_total_limit": 2}
    output_dir = train_here(flags | {"stop_after_steps": 1})
    state_file = output_dir / "checkpoint-1" / "state.json"
    state = json.loads(state_file.read_text())
    assert state["best_checkpoint"] == "checkpoint-1"
    assert state["best_value"] == pytest.approx(values(output_dir, "eval/loss").item())
    state_file.write_text(json.dumps(state | {"best_value": -1}))  # not to be beaten
    train_here(flags | {"resume_from_checkpoint": "latest"})
    assert {path.name for path in output_dir.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-5"}


def test_step_seeds_differ_by_step_process_and_seed():
    seeds = {step_seed(seed, step, process) for seed in range(3) for step in range(50) for process in range(4)}
    assert len(seeds) == 600


@pytest.mark.parametrize("free", [10, 10**6])
def test_too_little_space_for_the_checkpoints_is_told_before_the_first_step(run_here, flags, monkeypatch, free):
    """8,192 weights are 96 KiB with Adam's moments: two checkpoints are kept, a third is written,
    and adapter/."""
    full = type(shutil.disk_usage("/"))(2**40, 2**40 - free * 1024, free * 1024)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    result = run_here(train, flags | {"max_train_steps": 1, "save_total_limit": 2})
    assert result.code == 0, result.err
    warning = "Warning: 2 checkpoints and the next need about 0.3 MiB and the disk has 0.0 MiB free: make room, or lower --save_total_limit"
    assert (warning in result.out) == (free == 10)
    assert free != 10 or result.out.index(warning) < result.out.index("step 1/1")


def test_no_flags_at_all_trains_the_embedded_demo(tmp_path):
    result = launch("train.py", {"output_dir": tmp_path / "run", "max_train_steps": 2})
    assert result.code == 0, result.err
    assert "recipes/demo.yaml" in result.err and "eval loss" in result.out and "One example; " in result.out
    assert result.out.endswith(f"\nNext: python evaluate.py --adapter {tmp_path / 'run' / 'adapter'}\n")
    assert read_args(tmp_path / "run" / "adapter")["model_name_or_path"] == "demo"


def test_a_profile_is_a_trace_of_the_steps_asked_for(train_here, flags):
    output_dir = train_here(flags | {"max_train_steps": 4, "profile_steps": "2:3"})
    with gzip.open(output_dir / "profile" / "steps-2-3.json.gz") as file:
        names = [event.get("name", "") for event in json.load(file)["traceEvents"]]
    assert len([name for name in names if name.startswith("ProfilerStep#")]) == 2
    assert "LoraProjection" in names
    assert "LoraProjection" in (output_dir / "profile" / "steps-2-3.txt").read_text()
    assert [step for step, _ in curve(output_dir, "train/loss")] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("speed", "message"),
    [
        ({"cuda_graphs": True}, "--cuda_graphs is for GPUs"),
        pytest.param(
            {"liger_kernel": True},
            "pip install liger-kernel",
            marks=pytest.mark.skipif(is_liger_kernel_available(), reason="it is here"),
        ),
    ],
)
def test_what_this_machine_cannot_do_is_one_line(run_here, flags, speed, message):
    result = run_here(train, flags | speed)
    assert result.code == 1 and message in result.err and len(result.err.strip().splitlines()) == 1
    assert not list(flags["output_dir"].glob("*"))


def test_the_best_evaluation_is_saved_and_delivered_where_asked_for(train_here, flags, tmp_path):
    """The learning rate makes the loss rise again between two save steps."""
    flags |= {
        "max_train_steps": 8,
        "eval_steps": 1,
        "warmup_ratio": 0,
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
    }
    for final in ("last", "best"):
        output_dir = train_here(flags | {"final_adapter": final, "output_dir": tmp_path / final})
        losses = dict(curve(output_dir, "eval/loss"))
        best = min(losses, key=losses.get)
        environment = json.loads((output_dir / "adapter" / "environment.json").read_text())
        assert environment["global_step"] == (best if final == "best" else 8)
        assert environment["eval_loss"] == pytest.approx(losses[environment["global_step"]])
        assert (output_dir / f"checkpoint-{best}").is_dir()


def test_people_s_own_validation_rows_and_the_best_by_a_metric(run_here, train_here, flags, rows_file, tmp_path):
    records = [json.loads(line) for line in rows_file.read_text().splitlines()]
    mine = tmp_path / "mine.jsonl"
    mine.write_text("".join(json.dumps({**record, "id": i}) + "\n" for i, record in enumerate(records[:6])))
    flags |= {
        "eval_dataset_name": mine, "max_train_steps": 4, "eval_steps": 2, "save_steps": 2, "eval_generate_examples": 3,
        "best_metric": "json_valid",
    }  # fmt: skip
    output_dir = train_here(flags)
    split = json.loads((output_dir / "adapter" / "split.json").read_text())
    assert set(split["held_out"]) == {str(i) for i in range(6)} and len(split["trained"]) == 78
    rates = dict(curve(output_dir, "eval/json_valid"))
    state = json.loads((output_dir / "checkpoint-4" / "state.json").read_text())
    best = max(rates, key=lambda step: (rates[step], step))  # of equals the latest
    assert state["best_value"] == pytest.approx(rates[best]) and state["best_checkpoint"] == f"checkpoint-{best}"
    for name in ("exact_match", "tools_exist", "no_hallucination"):
        assert [step for step, _ in curve(output_dir, f"eval/{name}")] == [2, 4]
    result = run_here(evaluate, {"adapter": output_dir / "adapter", "systems": ["raw"], "max_new_tokens": 1})
    assert result.code == 0, result.err
    rows = [json.loads(line) for line in (output_dir / "evaluation" / "rows.jsonl").read_text().splitlines()]
    assert {row["id"] for row in rows if not row.get("set")} == {str(i) for i in range(6)}
    result = run_here(train, flags | {"eval_generate_examples": 0, "output_dir": tmp_path / "other"})
    assert result.code == 2 and "needs --eval_generate_examples" in result.err


def test_tensorboard_and_metrics_jsonl_have_the_same_figures_and_no_groups_but_train_and_eval(train_here, flags):
    flags |= {"max_train_steps": 3, "eval_steps": 2, "eval_generate_examples": 2, "eval_on_start": "true"}
    output_dir = train_here(flags)
    entries, recorded = read_metrics(output_dir / "metrics.jsonl"), {}
    for group, folder in (("train", "logs"), ("eval", "logs/eval")):
        events = EventAccumulator(str(output_dir / folder))
        events.Reload()
        tags = events.Tags()["scalars"]
        assert {tag.split("/")[0] for tag in tags} == {group}
        recorded |= {tag: [(event.step, pytest.approx(event.value)) for event in events.Scalars(tag)] for tag in tags}
    assert recorded.keys() == {tag for entry in entries for tag in entry} - {"step", "eval/samples"}
    for tag, expected in recorded.items():
        assert curve(output_dir, tag) == expected
    texts = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("eval/samples/text_summary")]
    assert [text for _, text in curve(output_dir, "eval/samples")] == texts and len(texts) == 3


def test_an_evaluation_at_step_0_is_of_the_base_and_changes_nothing_else(train_here, flags, tiny_model, tmp_path):
    flags |= {"max_train_steps": 4, "eval_steps": 2, "eval_generate_examples": 2, "lora_dropout": 0.1}
    plain = train_here(flags | {"output_dir": tmp_path / "plain"})
    output_dir = train_here(flags | {"eval_on_start": "true", "output_dir": tmp_path / "from_0"})
    for name in ("checkpoint-4", "adapter"):
        weights = [folder / name / "adapter_model.safetensors" for folder in (plain, output_dir)]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    states = [json.loads((folder / "checkpoint-4" / "state.json").read_text()) for folder in (plain, output_dir)]
    assert states[0] == states[1]
    assert {path.name for path in output_dir.iterdir()} == {path.name for path in plain.iterdir()}  # no checkpoint-0
    (step, before), *after = curve(output_dir, "eval/loss")
    assert step == 0 and after == curve(plain, "eval/loss")
    assert [step for step, _ in curve(output_dir, "eval/seconds")] == [0, 2, 4]
    assert [step for step, _ in curve(output_dir, "eval/best_loss")] == [2, 4]  # no candidate
    _, eval_rows, _ = split_rows(load_rows(str(flags["dataset_name"]))[0], 0.05, seed=42)
    examples = tokenize_rows(AutoTokenizer.from_pretrained(tiny_model), TAGS, eval_rows, 2048).examples
    base = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    with torch.no_grad():
        loss = completion_loss(base, collate(examples), base.device).item()
    assert before == pytest.approx(loss / sum(example.num_supervised for example in examples), rel=1e-5)


RISING = {  # the loss of the held-out rows rises after the first steps
    "max_train_steps": 12, "eval_steps": 1, "warmup_ratio": 0, "learning_rate": 0.05, "lr_scheduler_type": "constant",
    "logging_steps": 50, "early_stopping_patience": 2,
}  # fmt: skip


def test_early_stopping_ends_a_run_as_finished(run_here, flags):
    result = run_here(train, flags | RISING | {"final_adapter": "best"})
    assert result.code == 0, result.err
    output_dir = flags["output_dir"]
    losses = [value for _, value in curve(output_dir, "eval/loss")]
    stop = next(step for step in range(3, 13) if min(losses[: step - 2]) <= min(losses[step - 2 : step]))
    assert 3 <= stop < 12 and len(losses) == stop
    line = f"Stopped early after step {stop}: 2 evaluations without a better eval_loss"
    assert result.out.count(line) == 1
    delivered = json.loads((output_dir / "adapter" / "environment.json").read_text())["global_step"]
    assert delivered == losses.index(min(losses)) + 1 == stop - 2
    assert (output_dir / f"checkpoint-{stop}").is_dir()
    # An entry for the steps since the last.
    assert [step for step, _ in curve(output_dir, "train/loss")] == [stop]
    again = run_here(train, flags | RISING | {"final_adapter": "best", "resume_from_checkpoint": "latest"})
    assert again.code == 0 and f"is finished: {line.lower()}, the adapter is in " in again.out
    # The last checkpoint instead of the best, without more steps.
    last = run_here(train, flags | RISING | {"resume_from_checkpoint": "latest"})
    assert last.code == 0 and len(curve(output_dir, "eval/loss")) == stop
    assert json.loads((output_dir / "adapter" / "environment.json").read_text())["global_step"] == stop


@pytest.mark.slow
def test_a_resume_goes_on_counting_and_with_more_patience_goes_on_training(train_here, flags, tmp_path):
    straight = train_here(flags | RISING | {"output_dir": tmp_path / "straight"})
    stop = curve(straight, "eval/loss")[-1][0]
    stopped = flags | RISING | {"output_dir": tmp_path / "stopped"}
    train_here(stopped | {"stop_after_steps": stop - 1})  # one evaluation is no better, the next ends the run
    resumed = train_here(stopped | {"resume_from_checkpoint": "latest"})
    ends = [folder / f"checkpoint-{stop}" for folder in (straight, resumed)]
    weights = [(end / "adapter_model.safetensors").read_bytes() for end in ends]
    counts = [json.loads((end / "state.json").read_text())["stale_evaluations"] for end in ends]
    assert weights[0] == weights[1] and counts == [2, 2]
    assert curve(resumed, "eval/loss") == curve(straight, "eval/loss")
    assert not (resumed / f"checkpoint-{stop + 1}").exists()
    patient = {"early_stopping_patience": 100, "resume_from_checkpoint": "latest"}
    train_here(stopped | patient)
    plain = flags | RISING | {"output_dir": tmp_path / "plain", "early_stopping_patience": 100}
    weights = [train_here(run) / "adapter" / "adapter_model.safetensors" for run in (stopped | patient, plain)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_early_stopping_without_held_out_rows_is_refused_by_name(run_here, flags):
    result = run_here(train, flags | {"early_stopping_patience": 2, "eval_fraction": 0})
    assert result.code == 1 and "--early_stopping_patience needs rows to evaluate" in result.err
    assert len(result.err.strip().splitlines()) == 1 and not list(flags["output_dir"].glob("*"))


def test_a_cpu_is_told_what_is_faster_there(run_here, flags):
    slow, fast = (flags | {"max_train_steps": 1, "gradient_checkpointing": slow} for slow in (True, False))
    hint = "On a CPU, --quantization none --gradient_checkpointing false"
    assert hint in run_here(train, slow).out
    assert hint not in run_here(train, fast | {"overwrite_output_dir": True}).out


def test_a_share_of_rows_too_long_is_a_warning_with_what_would_do(run_here, flags):
    result = run_here(train, flags | {"max_train_steps": 1, "max_seq_length": 400})
    enough = int(re.search(r"Warning: \d+% of the rows .*--max_seq_length (\d+) would keep 99 %", result.out)[1])
    again = run_here(train, flags | {"max_train_steps": 1, "max_seq_length": enough, "overwrite_output_dir": True})
    assert again.code == 0 and "Warning" not in again.out
