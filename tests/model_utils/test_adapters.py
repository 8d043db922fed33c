"""An adapter's folder is compared with the model and with its training before it is believed."""

import json

import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from model_utils.adapters import add_lora, load_adapter
from model_utils.loading import base_fingerprint, load_base_model
from run_utils.arguments import UserError

MODULES = ["q_proj", "v_proj", "down_proj"]


def tiny_base(tiny_model):
    return load_base_model(str(tiny_model), Accelerator(cpu=True))


@pytest.fixture
def save_adapter(tiny_model, tmp_path):
    """`save_adapter(modules, **saving)`: the folder that train.py would leave, with random weights in float32."""

    def save(modules=MODULES, **saving):
        base = tiny_base(tiny_model)
        fingerprint = base_fingerprint(base)
        model = add_lora(base, 4, 8, 0.0, modules)
        torch.manual_seed(0)
        for weight in model.parameters():
            if weight.requires_grad:
                torch.nn.init.normal_(weight, std=0.1)
        folder = tmp_path / "adapter"
        model.save_pretrained(folder, **{"save_embedding_layers": False} | saving)
        environment = {"base_fingerprint": fingerprint}
        args = {"model_name_or_path": str(tiny_model), "prompt_format": "tags-1", "lora_r": 4, "lora_alpha": 8}
        (folder / "environment.json").write_text(json.dumps(environment))
        (folder / "args.yaml").write_text(yaml.safe_dump(args | {"lora_target_modules": modules}))
        return folder

    return save


def refusal(tiny_model, folder):
    with pytest.raises(UserError) as caught:
        load_adapter(tiny_base(tiny_model), folder)
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


@pytest.mark.parametrize("case", TENSORS)
def test_an_adapter_whose_tensors_do_not_fit_is_refused_by_name(tiny_model, save_adapter, case):
    folder = save_adapter()
    edit, reason = TENSORS[case]
    path = folder / "adapter_model.safetensors"
    save_file(edit(load_file(path)), path)
    assert reason in refusal(tiny_model, folder)


ON_EMBEDDING = [["embed_tokens", "q_proj"], ["embed_tokens", "lm_head"]]


@pytest.mark.parametrize(
    ("modules", "saving"), [(MODULES, False), *((names, saving) for names in ON_EMBEDDING for saving in (False, True))]
)
def test_an_adapter_that_fits_moves_the_logits(tiny_model, save_adapter, modules, saving):
    """With the base's embedding in its file too, as PEFT saves it by itself."""
    folder = save_adapter(modules, save_embedding_layers=saving)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        logits = tiny_base(tiny_model)(ids).logits
        assert (load_adapter(tiny_base(tiny_model), folder)(ids).logits - logits).std() > 0.01 * logits.std()
