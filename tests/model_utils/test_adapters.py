"""An adapter's folder is compared with the model and the training before it is used."""

import json

import pytest
import torch
import yaml
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from data_utils.held_out import read_split
from model_utils.adapter_files import read_adapter
from model_utils.adapters import adapter_record, add_lora, load_adapter
from model_utils.loading import ModelSource, base_fingerprint, load_base_model
from run_utils.errors import UsageError, UserError

MODULES = ["q_proj", "v_proj", "down_proj"]


def tiny_base(tiny_model):
    return load_base_model(ModelSource(str(tiny_model)), Accelerator(cpu=True))


PLAIN = {"r": 4, "lora_alpha": 8, "target_modules": MODULES}


@pytest.fixture
def save_adapter(tiny_model, tmp_path):
    """`save_adapter(recorded, saving, **config)`: train.py's folder, with random float32 weights.

    recorded: if False, a folder of an older train.py. saving: with the embedding layers. config:
    arguments of LoraConfig.
    """

    def save(recorded=True, saving=False, **config):
        base = tiny_base(tiny_model)
        environment = {"base_fingerprint": base_fingerprint(base)}
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **PLAIN | config))
        if recorded:
            environment["adapter"] = adapter_record(model)
        torch.manual_seed(0)
        for weight in model.parameters():
            if weight.requires_grad:
                torch.nn.init.normal_(weight, std=0.1)
        folder = tmp_path / "adapter"
        model.save_pretrained(folder, save_embedding_layers=saving)
        args = {f"lora_{name.removeprefix('lora_')}": value for name, value in (PLAIN | config).items()}
        args |= {"model_name_or_path": str(tiny_model), "prompt_format": "tags-1"}
        (folder / "environment.json").write_text(json.dumps(environment))
        (folder / "args.yaml").write_text(yaml.safe_dump(args))
        return folder

    return save


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *(("args.yaml", {name: value}) for name in ("model_name_or_path", "prompt_format", "quantization") for value in (5, ["a"], {"a": 1})),
        *(("args.yaml", change) for change in ({"model_name_or_path": None}, {"quantization": "int3"}, {"model_revision": 5})),
        *(("args.yaml", {name: value}) for name in ("dataset_name", "eval_dataset_name", "max_bad_rows", "seed") for value in (["a"], {})),
        *(("args.yaml", change) for change in ({"max_bad_rows": "x"}, {"eval_fraction": float("nan")}, {"dataset_name": 5})),
        *(("args.yaml", change) for change in ({"lora_r": "x"}, {"lora_target_modules": [["a"]]}, {"lora_target_modules": 5})),
        *(("environment.json", change) for change in ({"base_fingerprint": None}, {"eval_loss": "x"}, {"adapter": 5}, {"adapter": {"tensors": 5}})),
    ],
)  # fmt: skip
def test_a_saved_field_of_another_type_is_refused_in_a_line(save_adapter, name, change):
    folder = save_adapter()
    saved = yaml.safe_load((folder / name).read_text()) | change
    if change == {"base_fingerprint": None}:
        del saved["base_fingerprint"]
    (folder / name).write_text(json.dumps(saved))
    with pytest.raises(UserError, match=f"{name} cannot be read: [^\n]*$") as caught:
        read_adapter(folder)
    assert not isinstance(caught.value, UsageError)


@pytest.mark.parametrize("name", ["args.yaml", "environment.json"])
@pytest.mark.parametrize("content", ["[" * 5000, "[]", "5", "", "{", "\x00"])
def test_a_saved_file_that_is_damaged_is_refused_in_a_line(save_adapter, name, content):
    folder = save_adapter()
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=f"{name} [^\n]*$") as caught:
        read_adapter(folder)
    assert not isinstance(caught.value, UsageError)


def test_aliases_of_yaml_are_never_written_out(save_adapter):
    folder = save_adapter()
    levels = [f"x{level}: &x{level} [{', '.join([f'*x{level - 1}'] * 9)}]" for level in range(1, 20)]
    lines = ["x0: &x0 [1]", *levels, "seed: *x19", *(folder / "args.yaml").read_text().splitlines()]
    (folder / "args.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match="its aliases make more than 100,000 values"):
        read_adapter(folder)


@pytest.mark.parametrize(
    "content",
    ['{"trained": {"a": 5}, "held_out": {"b": [1]}}', '{"trained": {"a": [1]}, "held_out": {"b": "x"}}', '{"trained": []}', "[]",
     '{"trained": {}, "held_out": {}, "near_repeats": [[]]}', '{"trained": {}, "held_out": {}, "near_repeats": 5}', "[" * 100_000],
)  # fmt: skip
def test_a_damaged_split_is_refused_in_a_line(tmp_path, content):
    (tmp_path / "split.json").write_text(content)
    with pytest.raises(UserError, match=r"split.json cannot be read: [^\n]*$"):
        read_split(tmp_path)


def refusal(tiny_model, folder):
    with pytest.raises(UserError) as caught:
        load_adapter(tiny_base(tiny_model), read_adapter(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def without(tensors, name):
    return {key: tensor for key, tensor in tensors.items() if key != name}


FIRST = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
TENSORS = {
    "renamed": (
        lambda tensors: {name.replace("mlp", "ffn"): tensor for name, tensor in tensors.items()},
        f"does not have: 4, {FIRST} first; it has unknown tensors: 4, {FIRST.replace('mlp', 'ffn')} first",
    ),
    "one missing": (lambda tensors: without(tensors, FIRST), f"does not have: 1, {FIRST} first"),
    "none": (lambda tensors: {}, f"does not have: 12, {FIRST} first"),
    "one more": (lambda tensors: tensors | {"x": torch.ones(2)}, "has unknown tensors: 1, x first"),
    "the base's embedding": (
        lambda tensors: tensors | {"base_model.model.model.embed_tokens.weight": torch.ones(3, 64)},
        "has unknown tensors: 1, base_model.model.model.embed_tokens.weight first",
    ),
    "another shape": (lambda tensors: tensors | {FIRST: torch.ones(4, 99)}, f"has of another shape: 1, {FIRST} first"),
    "another rank": (lambda tensors: tensors | {FIRST: torch.ones(2, 128)}, f"has of another shape: 1, {FIRST} first"),
    "another number of dimensions": (
        lambda tensors: tensors | {FIRST: torch.ones(4, 128, 1)},
        f"has of another shape: 1, {FIRST} first",
    ),
    "integers": (
        lambda tensors: tensors | {FIRST: torch.ones(4, 128, dtype=torch.int32)},
        f"does not hold floating-point numbers in {FIRST}",
    ),
    "not a number": (
        lambda tensors: tensors | {FIRST: torch.full((4, 128), torch.nan)},
        f"1 tensors whose numbers are not finite, {FIRST} first",
    ),
}


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("case", TENSORS)
def test_an_adapter_whose_tensors_do_not_fit_is_refused_by_name(tiny_model, save_adapter, case, recorded):
    folder = save_adapter(recorded)
    edit, reason = TENSORS[case]
    path = folder / "adapter_model.safetensors"
    save_file(edit(load_file(path)), path)
    assert reason in refusal(tiny_model, folder)


ON_EMBEDDING = [["embed_tokens", "q_proj"], ["embed_tokens", "lm_head"]]


@pytest.mark.parametrize(
    ("modules", "saving"), [(MODULES, False), *((names, saving) for names in ON_EMBEDDING for saving in (False, True))]
)
def test_an_adapter_that_fits_moves_the_logits(tiny_model, save_adapter, modules, saving):
    """saving: with the base's embedding in the file, as PEFT saves it by default."""
    folder = save_adapter(not saving, saving, target_modules=modules)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        logits = tiny_base(tiny_model)(ids).logits
        assert (
            load_adapter(tiny_base(tiny_model), read_adapter(folder))(ids).logits - logits
        ).std() > 0.01 * logits.std()


def edit_json(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


EDITS = [
    {"target_modules": ["q_proj"]}, {"lora_alpha": 80}, {"r": 8}, {"use_rslora": True}, {"use_dora": True},
    {"fan_in_fan_out": True}, {"alpha_pattern": {"q_proj": 99}}, {"layers_to_transform": [0]},
    {"exclude_modules": ["v_proj"]}, {"a_field_of_the_future": 1},
]  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_a_configuration_edited_after_the_training_is_refused(save_adapter, edit):
    folder = save_adapter()
    edit_json(folder / "adapter_config.json", **edit)
    with pytest.raises(UserError, match="adapter_config.json has been edited since the training"):
        read_adapter(folder)


@pytest.mark.parametrize(
    "config", [{"use_rslora": True}, {"rank_pattern": {"q_proj": 2}}, {"layers_to_transform": [1]}]
)
def test_an_adapter_of_an_edited_train_py_loads(tiny_model, save_adapter, capsys, config):
    folder = save_adapter(**config)
    edit_json(folder / "adapter_config.json", base_model_name_or_path="some/base", lora_dropout=0.5, peft_version="9")
    base = tiny_base(tiny_model)
    capsys.readouterr()  # the line about loading
    load_adapter(base, read_adapter(folder))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("edit", EDITS[:3])
def test_an_adapter_without_a_record_is_compared_with_its_arguments(save_adapter, edit):
    folder = save_adapter(recorded=False)
    edit_json(folder / "adapter_config.json", **edit)
    with pytest.raises(UserError, match=r"is not the training's: lora_\w+ was .* in args.yaml, here it is"):
        read_adapter(folder)


def test_unverified_settings_are_named(tiny_model, save_adapter, capsys):
    folder = save_adapter(recorded=False)
    args = yaml.safe_load((folder / "args.yaml").read_text())
    (folder / "args.yaml").write_text(yaml.safe_dump(without(args, "lora_alpha")))
    edit_json(folder / "adapter_config.json", use_rslora=True)
    base = tiny_base(tiny_model)
    capsys.readouterr()  # the line about loading
    load_adapter(base, read_adapter(folder))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("nothing verifies its lora_alpha, use_rslora")


@pytest.mark.parametrize(
    "edit",
    [
        {"layer_replication": [[0, 2]] * 9}, {"modules_to_save": ["lm_head"]}, {"target_modules": "(.*.*)*proj"},
        {"exclude_modules": ".*"}, {"rank_pattern": {"(.*)*x": 4}}, {"alpha_pattern": {"^q|k": 4}},
        {"rank_pattern": [4]}, {"r": -1}, {"r": "4"}, {"r": None}, {"rank_pattern": {"q_proj": 0}}, {"lora_alpha": -8},
        {"lora_alpha": float("nan")}, {"peft_type": "IA3"}, {"task_type": "SEQ_CLS"}, {"init_lora_weights": "pissa"},
        {"target_modules": [["q_proj"]]}, {"megatron_config": {"x": 1}},
    ],
)  # fmt: skip
def test_a_dangerous_configuration_is_refused_before_peft_reads_it(save_adapter, edit):
    folder = save_adapter(recorded=False)
    edit_json(folder / "adapter_config.json", **edit)
    with pytest.raises(UserError, match="adapter_config.json cannot be read: "):
        read_adapter(folder)


def test_a_rank_above_the_width_of_the_layers_is_refused_in_loading_and_training(tiny_model, save_adapter):
    folder = save_adapter(recorded=False)
    edit_json(folder / "adapter_config.json", r=10**9)
    (folder / "args.yaml").write_text((folder / "args.yaml").read_text().replace("lora_r: 4", "lora_r: 1000000000"))
    assert "has the rank 1000000000, and the base's layers are 64 wide" in refusal(tiny_model, folder)
    with pytest.raises(UserError, match="--lora_r 65 is above the width of the model's layers, 64"):
        add_lora(tiny_base(tiny_model), 65, 8, 0.0, MODULES)


def test_train_py_records_the_saved_tensors(train_here, flags):
    run = train_here(flags | {"max_train_steps": 1, "lora_target_modules": MODULES})
    record = read_adapter(run / "adapter").environment["adapter"]
    saved = load_file(run / "adapter" / "adapter_model.safetensors")
    assert record["tensors"] == {name: "x".join(map(str, tensor.shape)) for name, tensor in saved.items()}
