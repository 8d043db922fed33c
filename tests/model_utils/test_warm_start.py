"""--init_adapter: a training starts from an adapter's weights, ours or another PEFT LoRA's."""

import json
import shutil

import peft
import pytest
import torch
from conftest import curve, read_args
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import evaluate
import train
from data_utils.held_out import read_split

NO_STEP = {"learning_rate": 1e-30, "max_train_steps": 1}  # below float32's resolution


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture
def first(train_here, flags, tmp_path):
    """An adapter after three steps."""
    changed = {"lora_r": 3, "lora_alpha": 5, "lora_target_modules": ["v_proj", "q_proj"], "max_train_steps": 3}
    return train_here(flags | changed | {"output_dir": tmp_path / "first"}) / "adapter"


@pytest.fixture
def warm(flags, first, tmp_path):
    for name in ("lora_r", "lora_alpha"):
        del flags[name]
    return flags | {"init_adapter": first, "output_dir": tmp_path / "warm"}


@pytest.fixture
def foreign(tiny_model, tmp_path):
    """A LoRA of another library's training: PEFT's two files alone."""
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, target_modules=["o_proj"], use_rslora=False)
    model = peft.get_peft_model(base, config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    model.save_pretrained(tmp_path / "foreign")
    return tmp_path / "foreign"


def test_training_starts_where_the_adapter_ended(train_here, warm, first):
    run = train_here(warm | {"max_train_steps": 2, "eval_on_start": "true", "eval_steps": 1})
    (before,) = curve(first.parent, "eval/loss")
    (start, *rest) = curve(run, "eval/loss")
    assert start == (0, before[1]) and rest[-1][1] != before[1]
    assert {name: read_args(run)[name] for name in ("lora_r", "lora_alpha", "lora_target_modules")} == {
        "lora_r": 3, "lora_alpha": 5, "lora_target_modules": ["q_proj", "v_proj"],
    }  # fmt: skip
    known = set(read_split(first)["trained"].values())
    assert set(read_split(run / "adapter")["trained_before"]) == known


def test_any_lora_of_the_base_is_a_start(run_here, warm, foreign):
    result = run_here(train, warm | NO_STEP | {"init_adapter": foreign})
    assert result.code == 0, result.err
    assert f"The adapter starts from {foreign}: nothing verifies its base, which it names tiny_model" in result.out
    assert same(weights(warm["output_dir"] / "adapter"), weights(foreign))


def test_a_resume_is_exact_and_of_the_same_start(run_here, train_here, warm, first, tmp_path):
    whole = train_here(warm | {"max_train_steps": 4})
    part = warm | {"max_train_steps": 4, "output_dir": tmp_path / "part"}
    train_here(part | {"stop_after_steps": 2})
    other = shutil.copytree(first, tmp_path / "other")
    save_file({name: 2 * weight for name, weight in weights(first).items()}, other / "adapter_model.safetensors")
    result = run_here(train, part | {"resume_from_checkpoint": "latest", "init_adapter": other})
    assert result.code == 1 and "--init_adapter is " in result.err
    del part["init_adapter"]
    result = run_here(train, part | {"resume_from_checkpoint": "latest"})
    assert result.code == 1 and "was trained with" in result.err
    shutil.move(first, tmp_path / "kept")
    shutil.move(other, first)  # the same path, other weights
    part["init_adapter"] = first
    result = run_here(train, part | {"resume_from_checkpoint": "latest"})
    assert result.code == 1 and "init_adapter_sha256 is " in result.err
    shutil.rmtree(first)
    shutil.move(tmp_path / "kept", first)
    part = train_here(part | {"resume_from_checkpoint": "latest"})
    assert same(weights(part / "adapter"), weights(whole / "adapter"))


@pytest.mark.parametrize(
    ("flag", "code", "named"),
    [
        ({"lora_r": 4}, 2, "--lora_r is 4, but --init_adapter"),
        ({"lora_alpha": 8}, 2, "--lora_alpha is 8, but --init_adapter"),
        ({"lora_target_modules": ["q_proj"]}, 2, "--lora_target_modules is q_proj, but --init_adapter"),
        ({"init_adapter": "absent"}, 1, "--init_adapter absent is no adapter"),
    ],
)
def test_contradictions_are_refused_before_anything_loads(run_here, warm, flag, code, named):
    result = run_here(train, warm | flag)
    (line,) = result.err.strip().splitlines()
    assert result.code == code and named in line and not warm["output_dir"].exists()


def edit(folder, name, **change):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("environment.json", {"base_fingerprint": "0"}, "was trained on another base model than tiny_model"),
        ("adapter_config.json", {"lora_bias": True}, "has lora_bias True, but this training None"),
        ("adapter_config.json", {"modules_to_save": ["lm_head"]}, "modules_to_save is no part of LoRA"),
        ("adapter_config.json", {"target_modules": ["q_proj"]}, "are not those of its adapter_config.json"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(run_here, warm, first, name, change, named):
    edit(first, name, **change)
    result = run_here(train, warm)
    line = result.err.strip().splitlines()[-1]
    assert result.code == 1 and named in line and not list(warm["output_dir"].glob("*"))


def test_other_prompts_and_rows_trained_on_are_named(run_here, warm, first):
    edit(first, "environment.json", prompt_format="other-1")
    result = run_here(train, warm | {"seed": 7, "max_train_steps": 1})
    assert result.code == 0, result.err
    assert "Warning: it was trained on the prompt format other-1, this run has tags-1" in result.out
    held_out = set(read_split(warm["output_dir"] / "adapter")["held_out"].values())
    count = len(held_out & set(read_split(first)["trained"].values()))
    assert count and f"Warning: --init_adapter was trained on {count} of the 4 held-out rows" in result.out
    result = run_here(evaluate, {"adapter": warm["output_dir"] / "adapter", "systems": "adapter", "max_new_tokens": 1})
    assert result.code == 0 and f"adapter was trained on {count} of the 4 rows" in result.err


def test_a_warm_start_takes_the_adapter_s_variant(train_here, run_here, warm, tmp_path):
    flags = {key: value for key, value in warm.items() if key != "init_adapter"}
    variant = {"init_lora_weights": "pissa", "use_rslora": "true", "rank_pattern": "q_proj=8", "lora_r": 4}
    first = train_here(flags | variant | {"max_train_steps": 1, "output_dir": tmp_path / "pissa"}) / "adapter"
    run = train_here(warm | NO_STEP | {"init_adapter": first})
    assert same(weights(run / "adapter"), weights(first))
    args = read_args(run)
    assert (args["lora_r"], args["use_rslora"], args["rank_pattern"]) == (8, True, ["q_proj=16"])
    result = run_here(train, warm | {"init_adapter": first, "init_lora_weights": "olora"})
    assert result.code == 2 and "leave out --init_lora_weights olora" in result.err
    (first / "args.yaml").write_text("init_lora_weights: loftq\n")
    result = run_here(train, warm | {"init_adapter": first})
    assert result.code == 1 and "started by LoftQ" in result.err
