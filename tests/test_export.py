"""export.py: the exported model is the evaluated model."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import ROOT, TAGS, curve, leave_out
from peft import AutoPeftModelForCausalLM
from peft.tuners.lora import Linear as LoraLayer
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import evaluate
import export
from data_utils.chat import chat_template
from data_utils.sources import load_rows
from data_utils.tokens import encode_prompts
from data_utils.tool_formats import openai_tools
from demo.rows import generate_rows
from model_utils.adapter_files import read_adapter
from model_utils.adapters import load_adapter
from model_utils.loading import ModelSource, load_base_model
from run_utils.errors import UserError
from run_utils.redaction import published_name

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def adapter(tiny_model, rows_file, tmp_path_factory):
    """An adapter trained by the real script in its own process."""
    folder = tmp_path_factory.mktemp("run") / "run"
    flags = (
        f"--model_name_or_path={tiny_model} --dataset_name={rows_file} --output_dir={folder} --quantization=none "
        "--lora_r=4 --learning_rate=1e-2 --max_train_steps=20 --eval_steps=5 --save_steps=10 --max_seq_length=2048 "
        "--gradient_checkpointing=false --lora_target_modules q_proj v_proj down_proj"
    )
    subprocess.run([sys.executable, "train.py", *flags.split()], check=True, capture_output=True, cwd=ROOT)
    return folder / "adapter"


@pytest.fixture
def exported(run_here, adapter, tmp_path):
    result = run_here(export, {"adapter": adapter, "output_dir": tmp_path / "export", "dtype": "fp32"})
    assert result.code == 0, result.err
    assert "8 of 8 are the unmerged adapter's to the last token" in result.out
    return tmp_path / "export"


def test_transformers_alone_reads_the_export(run_here, exported, adapter, rows_file):
    """Its logits equal the adapter's, and its chat template gives the token ids of training."""
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    peer = AutoPeftModelForCausalLM.from_pretrained(adapter, dtype=torch.float32)
    rows = load_rows(str(rows_file))[0][:10]
    for row in rows:
        messages = [{"role": "user", "content": row.query}]
        tools = openai_tools(json.loads(row.tools))
        ids = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, return_dict=False)
        (expected,) = encode_prompts(tokenizer, [TAGS.render(row.query, row.tools)])
        assert ids == expected.tolist()
        inputs = torch.tensor([ids])
        with torch.no_grad():
            torch.testing.assert_close(model(inputs).logits, peer(inputs).logits, rtol=1e-4, atol=1e-4)
    generation = model.generation_config
    assert generation.do_sample is False and tokenizer.eos_token_id in generation.eos_token_id


def test_the_export_and_the_adapter_generate_the_same_texts(run_here, exported, adapter, tmp_path):
    flags = {
        "adapter": adapter,
        "systems": "adapter",
        "num_examples": 4,
        "output_dir": tmp_path / "of_adapter",
        "max_new_tokens": 40,
    }
    assert run_here(evaluate, flags).code == 0
    of_export = {
        "model_name_or_path": exported, "dataset_name": read_adapter(adapter).args["dataset_name"],
        "systems": "prompted", "num_examples": 4, "output_dir": tmp_path / "of_export", "max_new_tokens": 40,
    }  # fmt: skip
    assert run_here(evaluate, of_export).code == 0
    texts = [
        [json.loads(line)["text"] for line in (tmp_path / name / "predictions.jsonl").read_text().splitlines()]
        for name in ("of_adapter", "of_export")
    ]
    assert texts[0] == texts[1]


def card_lines(folder):
    """`{step: [training loss, held-out loss]}` in the order of the card's table."""
    rows = re.findall(r"^\| (\d+) \| ([\d.]*) ?\| ([\d.]*) ?\|$", (folder / "README.md").read_text(), re.MULTILINE)
    return {int(step): losses for step, *losses in rows}


def test_a_card_ends_with_the_adapters_step(run_here, adapter, tmp_path):
    """The curves continue after the checkpoint: evaluations at 5, 10, 15, 20, logs at 10 and 20."""
    run = tmp_path / "run"
    shutil.copytree(adapter.parent, run)
    held_out, train = dict(curve(run, "eval/loss")), dict(curve(run, "train/loss"))
    assert list(held_out) == [5, 10, 15, 20] and list(train) == [10, 20]
    middle = run / "checkpoint-10"
    assert run_here(export, {"adapter": middle, "output_dir": tmp_path / "middle", "dtype": "fp32"}).code == 0
    assert card_lines(tmp_path / "middle") == {
        5: ["", f"{held_out[5]:.4f}"], 10: [f"{train[10]:.4f}", f"{held_out[10]:.4f}"]
    }  # fmt: skip
    assert run_here(export, {"adapter": adapter, "output_dir": tmp_path / "last", "dtype": "fp32"}).code == 0
    lines = card_lines(tmp_path / "last")
    assert list(lines) == [5, 10, 15, 20] and lines[15][0] == f"{train[10]:.4f}"
    assert lines[20] == [f"{train[20]:.4f}", f"{held_out[20]:.4f}"]
    # The checkpoint's evaluation replaces the curves' value of its step.
    environment = json.loads((middle / "environment.json").read_text())
    (middle / "environment.json").write_text(json.dumps(environment | {"eval_loss": 1.2345}))
    assert run_here(export, {"adapter": middle, "output_dir": tmp_path / "own", "dtype": "fp32"}).code == 0
    assert card_lines(tmp_path / "own")[10][1] == "1.2345"


def test_the_cards_have_the_prompt_and_no_local_folder(exported, adapter):
    for folder in (exported, adapter, adapter.parent / "checkpoint-20"):
        card = (folder / "README.md").read_text()
        assert "/tmp" not in card and str(ROOT) not in card and "More Information Needed" not in card
        assert "Only use the tools provided and get the args from the query." in card and "| lora_r | 4 |" in card
    assert "| 20 | " in (exported / "README.md").read_text()  # the curve's last point


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"quantization": "nf4"}, 2, "weights in 4 or 8 bits cannot take an adapter in"),
        ({"output_dir": None}, 1, "is there already"),
        ({"adapter": "absent"}, 1, "no adapter in absent"),
    ],
)
def test_wrong_use_is_one_line(run_here, adapter, tmp_path, change, code, message):
    flags = {"adapter": adapter, "output_dir": tmp_path / "export"} | change
    flags["output_dir"] = flags["output_dir"] or tmp_path
    result = run_here(export, flags)
    (line,) = result.err.strip().splitlines()
    assert result.code == code and message in line
    assert not (tmp_path / "export").exists()


@pytest.fixture(scope="module")
def early_adapter(tiny_model, rows_file, tmp_path_factory):
    """LoRA on all seven projections after a few steps at a usual learning rate: a small effect."""
    folder = tmp_path_factory.mktemp("early") / "run"
    flags = (
        f"--model_name_or_path={tiny_model} --dataset_name={rows_file} --output_dir={folder} --quantization=none "
        "--lora_r=4 --learning_rate=1e-4 --max_train_steps=6 --max_seq_length=2048 --gradient_checkpointing=false"
    )
    subprocess.run([sys.executable, "train.py", *flags.split()], check=True, capture_output=True, cwd=ROOT)
    return folder / "adapter"


@pytest.mark.parametrize("projection", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
def test_a_merge_in_bf16_that_leaves_out_a_projection_is_refused(
    run_here, tiny_model, early_adapter, tmp_path, monkeypatch, projection
):
    leave_out(projection, monkeypatch)
    result = run_here(export, {"adapter": early_adapter, "output_dir": tmp_path / "export", "dtype": "bf16"})
    assert result.code == 1 and "nothing is exported" in result.err
    assert list(tmp_path.iterdir()) == []
    AcceleratorState._reset_state(reset_partial_state=True)
    base = load_base_model(ModelSource(tiny_model), Accelerator(cpu=True, mixed_precision="bf16"))
    with pytest.raises(UserError, match=r"moves logits by .*--merge_adapter false"):
        load_adapter(base, read_adapter(early_adapter), merge_checked_on=[np.arange(30, dtype=np.int32)])


def test_a_whole_merge_in_bf16_is_exported_with_the_adapters_own_effect(run_here, early_adapter, tmp_path):
    result = run_here(export, {"adapter": early_adapter, "output_dir": tmp_path / "export", "dtype": "bf16"})
    assert result.code == 0, result.err
    figures = r"adapter moves them by (\S+) of their spread, merging it by (\S+) .*rounding the weights by (\S+);"
    effect, distance, rounding = map(float, re.search(figures, result.out).groups())
    assert distance < effect / 1000 and rounding < effect / 2
    assert {str(weight.dtype) for weight in load_file(tmp_path / "export" / "model.safetensors").values()} == {
        "torch.bfloat16"
    }


def test_weights_that_change_during_the_save_are_not_exported(run_here, adapter, tmp_path, monkeypatch):
    save_pretrained = PreTrainedModel.save_pretrained

    def save_changed(model, folder, **options):
        save_pretrained(model, folder, **options)
        weights = load_file(folder / "model.safetensors")
        weights["model.norm.weight"][0] += 1e-3
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save_changed)
    result = run_here(export, {"adapter": adapter, "output_dir": tmp_path / "export", "dtype": "fp32"})
    assert (
        result.code == 1
        and "1 weights are not those merged, model.norm.weight first: nothing is exported" in result.err
    )
    assert list(tmp_path.iterdir()) == []


def test_a_merge_that_skips_a_layer_is_not_exported(run_here, adapter, tmp_path, monkeypatch):
    merge = LoraLayer.merge
    skips = iter([True])
    monkeypatch.setattr(LoraLayer, "merge", lambda *args, **options: next(skips, False) or merge(*args, **options))
    result = run_here(export, {"adapter": adapter, "output_dir": tmp_path / "export", "dtype": "fp32"})
    assert result.code == 1 and "nothing is exported" in result.err
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_without_its_base_has_the_bases_hub_name(run_here, adapter, tmp_path):
    flags = {"adapter": tmp_path / "adapter", "output_dir": tmp_path / "export", "merge": False}
    shutil.copytree(adapter, tmp_path / "adapter")
    result = run_here(export, flags)
    assert result.code == 1 and "is not on the hub: nobody else could load the adapter on it" in result.err
    assert not (tmp_path / "export").exists()
    args = yaml.safe_load((tmp_path / "adapter" / "args.yaml").read_text())
    (tmp_path / "adapter" / "args.yaml").write_text(yaml.safe_dump(args | {"model_name_or_path": "some/model"}))
    # No hub model is recorded for the training: the base was a local folder.
    result = run_here(export, flags)
    assert result.code == 1 and "is not on the hub" in result.err
    environment = json.loads((tmp_path / "adapter" / "environment.json").read_text())
    (tmp_path / "adapter" / "environment.json").write_text(json.dumps(environment | {"base": "some/model"}))
    result = run_here(export, flags)
    assert result.code == 0, result.err
    texts = {path.name: path.read_bytes() for path in (tmp_path / "export").iterdir()}
    assert set(texts) == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert all(str(tmp_path.parent).encode() not in text for text in texts.values())
    assert json.loads(texts["adapter_config.json"])["base_model_name_or_path"] == "some/model"
    assert "base_model: some/model" in texts["README.md"].decode()


def test_figures_of_other_rows_are_not_published(run_here, adapter, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(adapter.parent, run)
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in generate_rows(4, seed=77)))
    flags = {"adapter": run / "adapter", "systems": "adapter", "num_examples": 2, "max_new_tokens": 4}
    for folder, more, published in (
        ("of_others", {"dataset_name": tmp_path / "other.jsonl", "eval_fraction": 1}, False),
        ("of_its_own", {}, True),
    ):
        shutil.rmtree(run / "evaluation", ignore_errors=True)
        assert run_here(evaluate, flags | more).code == 0
        assert (
            run_here(export, {"adapter": run / "adapter", "output_dir": tmp_path / folder, "dtype": "fp32"}).code == 0
        )
        card = (tmp_path / folder / "README.md").read_text()
        assert ("| adapter, 2 rows |" in card) == published and ("exact_match" in card) == published


def test_another_programs_incomplete_export_is_not_deleted(run_here, adapter, tmp_path):
    (tmp_path / "incomplete-export").mkdir()
    (tmp_path / "incomplete-export" / "notes.txt").write_text("mine")
    result = run_here(export, {"adapter": adapter, "output_dir": tmp_path / "export"})
    assert result.code == 1 and "incomplete-export is there, and no export has left it" in result.err
    assert (tmp_path / "incomplete-export" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("Qwen/Qwen3-4B-Base", "Qwen/Qwen3-4B-Base"),
        ("data/rows.jsonl", "rows.jsonl"),
        ("../rows", "rows"),
        ("./rows", "rows"),
        ("~/rows", "rows"),
        ("/home/me/rows", "rows"),
        ("demo", "demo"),
    ],
)
def test_a_name_is_published_without_its_folder(name, published):
    assert published_name(name) == published


def test_a_failed_upload_keeps_the_folder(run_here, adapter, tmp_path):
    """The upload really fails: the tests are offline."""
    flags = {"adapter": adapter, "output_dir": tmp_path / "export", "dtype": "fp32", "push_to_hub": "some/model"}
    result = run_here(export, flags)
    line = result.err.strip().splitlines()[-1]
    assert result.code == 1 and "is complete, but could not be uploaded to some/model" in line
    assert (tmp_path / "export" / "model.safetensors").is_file()


def test_a_bos_that_the_tokenizer_adds_is_in_the_template(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = chat_template(tokenizer, "tags-1")
    messages = [{"role": "user", "content": "hi"}]
    ids = tokenizer.apply_chat_template(messages, tools=[], add_generation_prompt=True, return_dict=False)
    (expected,) = encode_prompts(tokenizer, [TAGS.render("hi", "[]")])
    assert ids == expected.tolist() and ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id


def test_the_adapter_follows_vllms_rules(adapter):
    """vllm/lora/peft_helper.py, utils.py: plain LoRA, PEFT's weight names, the config's modules."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["r"] > 0 and config["lora_alpha"] > 0
    assert config["bias"] == "none" and not config["modules_to_save"] and not config["use_dora"]
    assert not config["rank_pattern"] and not config["alpha_pattern"]
    for name in load_file(adapter / "adapter_model.safetensors"):
        prefix, _, rest = name.partition("base_model.model.")
        module, matrix = re.fullmatch(r"model\.layers\.\d+\.(.+)\.lora_([AB])\.weight", rest).groups()
        assert prefix == "" and module.split(".")[-1] in config["target_modules"], (name, matrix)


def test_plain_peft_loads_the_adapter_in_an_empty_folder_without_our_code(adapter, tmp_path):
    shutil.copytree(adapter, tmp_path / "adapter")
    script = (
        "from peft import AutoPeftModelForCausalLM as M; m = M.from_pretrained('adapter'); "
        "print(sum(p.abs().sum() for n, p in m.named_parameters() if 'lora_B' in n) > 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}
    )
    assert "True" in done.stdout, done.stderr


@pytest.mark.parametrize("content", ["{}", "[]", "[" * 100_000, '{"systems": {"adapter": {}}}'])
def test_a_damaged_evaluation_or_a_pipe_for_the_curves_stops_no_export(run_here, adapter, tmp_path, content):
    shutil.copytree(adapter.parent, tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    os.mkfifo(tmp_path / "run" / "metrics.jsonl")
    (tmp_path / "run" / "evaluation").mkdir()
    for name, text in (("environment.json", "{}"), ("args.yaml", "{}"), ("metrics.json", content)):
        (tmp_path / "run" / "evaluation" / name).write_text(text)
    result = run_here(
        export, {"adapter": tmp_path / "run" / "adapter", "output_dir": tmp_path / "export", "dtype": "fp32"}
    )
    assert result.code == 0, result.err
    assert "The card has no evaluation: " in result.err and "metrics.json cannot be read" in result.err
    assert "The card has no curves: " in result.err
    assert "Not evaluated on the rows" in (tmp_path / "export" / "README.md").read_text()
