"""Passed checks of models, kept between runs: a script that starts again does not check again.

A check compares a fast path with plain transformers on texts that only serve as examples. Its
outcome depends on the model, the code and the machine. Its key is a hash of these; a change of one
is checked anew. A failed check is not kept: it fails again, and says why."""

import contextlib
import hashlib
import importlib.metadata
import inspect
import json
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HOME

from model_utils.adapter_files import config_fields
from model_utils.model_facts import unwrapped
from run_utils.arguments import ROOT
from run_utils.errors import UserError
from run_utils.files import read_json, write_json

PACKAGES = ("torch", "triton", "transformers", "peft", "bitsandbytes", "accelerate", "flash_attn_3")
NUMBERS = 64  # of each weight, in the key
MOST = 200  # kept checks, the newest


def check_key(model, *ingredients):
    """A hash of what a check of this model depends on: the code of model_utils/ and data_utils/,
    the packages' versions, the device, and the model's code, configuration, precision and weights.

    Of each weight it has NUMBERS numbers or a few more: another training, merge or adapter changes
    all of them. ingredients: the check's name and more of what it depends on, as JSON values."""
    digest, base = hashlib.sha256(), unwrapped(model)
    own = [path for folder in ("model_utils", "data_utils") for path in sorted((ROOT / folder).glob("*.py"))]
    for path in [*own, Path(inspect.getfile(type(base)))]:
        digest.update(path.read_bytes())
    is_gpu = model.device.type == "cuda"
    device = torch.cuda.get_device_name(model.device) if is_gpu else torch.backends.cpu.get_cpu_capability()
    adapters = [config_fields(adapter.to_dict()) for adapter in getattr(model, "peft_config", {}).values()]
    described = [versions(), device, base.config.to_json_string(), str(model.dtype), adapters, *ingredients]
    digest.update(json.dumps(described, default=str).encode())
    weights = [weight.detach().reshape(-1) for weight in model.parameters()]
    samples = [weight[:: max(1, len(weight) // NUMBERS)].float() for weight in weights]
    digest.update(torch.cat(samples).cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def versions():
    """The installed packages' versions. None for an absent one."""
    found = dict.fromkeys(PACKAGES)
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found | {"cuda": torch.version.cuda}


def has_passed(key, size=0):
    """Whether the check has passed, at this size (of its longest text) or a larger one."""
    return read().get(key, -1) >= size


def keep_pass(key, size=0):
    """Keep a passed check. A full or read-only disk costs only the next check."""
    kept = read()
    size = max(size, kept.pop(key, 0))
    newest = dict(list(kept.items())[-(MOST - 1) :]) | {key: size}
    with contextlib.suppress(OSError):
        path().parent.mkdir(parents=True, exist_ok=True)
        write_json(path(), newest)


def read():
    """`{key: size}`, oldest first. Empty if there is no file, or a damaged one."""
    try:
        return read_json(path(), lambda kept: [size + 0 for size in kept.values()])
    except UserError:
        return {}


def path():
    return Path(HF_HOME) / "tool_call_cache" / "checks.json"
