"""export.py's checks, by its real `main` on a model that ends at once: an export is what was
measured, or nothing. test_export.py has the rest, of an adapter that train.py made."""

import errno
import fcntl
import json
import os
import re
import shutil
import stat

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import leave_out
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import export
from data_utils.example_rows import example_rows
from model_utils.adapters import adapter_record
from model_utils.loading import ModelSource, base_fingerprint, load_base_model

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def base(tiny_model, tmp_path_factory):
    """The tiny model with a head of its own, whose first token is always the end: one number of
    each state is constant, and the head's row of the end token reads it."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.model.embed_tokens.weight.detach().clone())
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 3
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0
        model.lm_head.weight[:, 0] = 0
        model.lm_head.weight[tokenizer.eos_token_id, 0] = 10
    folder = tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_adapter(base, folder, modules=MODULES, args=None):
    """An adapter with random weights, as train.py leaves one."""
    AcceleratorState._reset_state(reset_partial_state=True)
    model = load_base_model(ModelSource(str(base)), Accelerator(cpu=True))
    environment = {"base_fingerprint": base_fingerprint(model), "global_step": 7}
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=modules))
    environment["adapter"] = adapter_record(model)
    for name, weight in model.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:
            torch.nn.init.normal_(weight, std=0.02)
    model.save_pretrained(folder, save_embedding_layers=False)
    args = {"model_name_or_path": str(base), "dataset_name": "demo", "prompt_format": "tags-1", **(args or {})}
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "args.yaml").write_text(yaml.safe_dump(args))
    return folder


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    return save_adapter(base, tmp_path_factory.mktemp("run") / "adapter")


@pytest.fixture
def export_here(run_here, adapter, tmp_path, monkeypatch):
    """`export_here(**changes)`: export to tmp_path/"out"/"export"; the Result, and the names of
    what is left in tmp_path/"out"."""
    two_rows = example_rows()[:2]
    monkeypatch.setattr(export, "example_rows", lambda: two_rows)

    def run(**changes):
        (tmp_path / "out").mkdir(exist_ok=True)
        flags = {"adapter": adapter, "output_dir": tmp_path / "out" / "export", "dtype": "fp32"} | changes
        result = run_here(export, flags)
        return result, sorted(path.name for path in (tmp_path / "out").iterdir())

    return run


def one_line(result):
    """The error's line, behind the loading bars of transformers."""
    assert result.code == 1 and "Traceback" not in result.err, result.err
    return result.err.strip().splitlines()[-1]


def test_a_whole_merge_is_exported(export_here, base, adapter, tmp_path):
    result, left = export_here()
    assert result.code == 0 and left == ["export"], result.err
    *_, answers, path, command = result.out.splitlines()
    assert answers == "Greedy answers: 2 of 2 are the unmerged adapter's to the last token"
    assert path == f"The merged model: {tmp_path / 'out' / 'export'}"
    assert command == f"Next: transformers serve {tmp_path / 'out' / 'export'} --dtype float32"
    name = "model.layers.0.self_attn.q_proj"
    merged = load_file(tmp_path / "out" / "export" / "model.safetensors")[f"{name}.weight"]
    lora = load_file(adapter / "adapter_model.safetensors")
    added = lora[f"base_model.model.{name}.lora_B.weight"] @ lora[f"base_model.model.{name}.lora_A.weight"] * 8 / 4
    torch.testing.assert_close(merged, load_file(base / "model.safetensors")[f"{name}.weight"] + added)
    card = (tmp_path / "out" / "export" / "README.md").read_text()
    assert "The adapter of step 7, merged into its base in fp32." in card


@pytest.mark.parametrize("projection", ["k_proj", "down_proj"])
def test_a_merge_that_leaves_out_a_projection_is_refused(export_here, monkeypatch, projection):
    leave_out(projection, monkeypatch)
    result, left = export_here()
    assert one_line(result).endswith("nothing is exported") and "merging the adapter moves logits by" in result.err
    assert left == []


@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight"])
def test_weights_that_change_on_their_way_to_the_disk_are_refused(export_here, monkeypatch, name):
    save_pretrained = PreTrainedModel.save_pretrained

    def save_changed(model, folder, **options):
        save_pretrained(model, folder, **options)
        weights = load_file(folder / "model.safetensors")
        weights[name].view(-1)[0] += 1e-3
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save_changed)
    result, left = export_here()
    assert f"read back, 1 weights are not those merged, {name} first: nothing is exported" in one_line(result)
    assert left == []


def test_token_ids_that_change_on_their_way_to_the_disk_are_refused(export_here, monkeypatch):
    save_pretrained = PreTrainedTokenizerBase.save_pretrained

    def save_changed(tokenizer, folder, **options):
        save_pretrained(tokenizer, folder, **options)
        file = folder / "tokenizer.json"
        content = json.loads(file.read_text())
        file.write_text(json.dumps(content | {"normalizer": {"type": "Lowercase"}}))

    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", save_changed)
    result, left = export_here()
    assert "the tokenizer differs in the token ids of 200 of 200 prompts" in one_line(result)
    assert "Nothing is exported" in one_line(result) and left == []


def test_decoding_is_greedy_for_all_servers_and_the_card_has_the_line_to_save_it_again(export_here, tmp_path):
    result, _ = export_here()
    assert result.code == 0 and "Token ids of 200 prompts" in result.out, result.err
    folder, again = tmp_path / "out" / "export", tmp_path / "again"
    config = json.loads((folder / "generation_config.json").read_text())
    assert config["do_sample"] is False and config["temperature"] == 0.0
    model = AutoModelForCausalLM.from_pretrained(folder)
    input_ids = torch.tensor([[5, 6, 7]])
    texts = [model.generate(input_ids, max_new_tokens=8).tolist() for _ in range(2)]
    assert texts[0] == texts[1]
    model.save_pretrained(again)  # unchanged
    model.generation_config.max_new_tokens = 8
    with pytest.raises(ValueError, match="temperature"):
        model.save_pretrained(again)
    (line,) = re.findall(r"cures it: `(.*)`", (folder / "README.md").read_text())
    exec(line, {"model": model})
    model.save_pretrained(again)
    config = json.loads((again / "generation_config.json").read_text())
    assert config["max_new_tokens"] == 8 and "temperature" not in config


@pytest.mark.parametrize(("umask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750)])
@pytest.mark.parametrize("merge", [True, False])
def test_a_server_under_another_user_may_read_the_export(
    export_here, adapter, tmp_path, umask, file_mode, folder_mode, merge
):
    """safetensors writes mode 0600, and adapters of older versions have it."""
    copy = tmp_path / "adapter"
    shutil.copytree(adapter, copy)
    (copy / "adapter_model.safetensors").chmod(0o600)
    if not merge:  # an adapter alone needs a base on the hub
        args, environment = (copy / "args.yaml"), (copy / "environment.json")
        args.write_text(yaml.safe_dump(yaml.safe_load(args.read_text()) | {"model_name_or_path": "some/model"}))
        environment.write_text(json.dumps(json.loads(environment.read_text()) | {"base": "some/model"}))
    before = os.umask(umask)
    try:
        result, left = export_here(adapter=copy, merge=merge)
    finally:
        os.umask(before)
    assert result.code == 0 and left == ["export"], result.err
    folder = tmp_path / "out" / "export"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert stat.S_IMODE(folder.stat().st_mode) == folder_mode and set(modes.values()) == {file_mode}, modes
    assert any(name.endswith(".safetensors") for name in modes)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantised_export_is_wrong_use(export_here, quantization):
    result, left = export_here(quantization=quantization)
    assert result.code == 2 and "weights in 4 or 8 bits cannot take an adapter in" in result.err and left == []


def test_an_adapter_of_shared_weights_is_refused(export_here, tiny_model, tmp_path):
    adapter = save_adapter(tiny_model, tmp_path / "adapter", ["embed_tokens", "q_proj"])
    result, left = export_here(adapter=adapter)
    assert "the head or the input embedding, which share their weights" in one_line(result) and left == []


def test_a_prompt_format_without_a_chat_template_is_refused(export_here, base, tmp_path):
    adapter = save_adapter(base, tmp_path / "adapter", args={"prompt_format": "raw"})
    result, left = export_here(adapter=adapter)
    assert "the prompt format raw has no chat template" in one_line(result) and left == []


def test_a_full_disk_is_one_line_and_the_same_command_exports_after_it(export_here, monkeypatch):
    def save_to_a_full_disk(model, folder, **options):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(PreTrainedModel, "save_pretrained", save_to_a_full_disk)
        result, left = export_here()
    assert one_line(result).endswith("MiB free; make room, and the same command exports it") and left == []
    result, left = export_here()
    assert result.code == 0 and left == ["export"], result.err


def test_an_export_that_is_still_at_work_keeps_its_folder_and_a_killed_one_loses_it(export_here, tmp_path):
    left_over = tmp_path / "out" / "incomplete-export"
    left_over.mkdir(parents=True)
    (left_over / ".unfinished_export").touch()
    (left_over / "model.safetensors").write_bytes(b"half")
    handle = os.open(left_over, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    result, left = export_here()
    assert "another process is working in" in one_line(result) and left == ["incomplete-export"]
    os.close(handle)
    result, left = export_here()
    assert result.code == 0 and left == ["export"], result.err
