"""The start of a training from an adapter's weights (`--init_adapter`): train.py's own, or any PEFT
LoRA of the same base."""

from dataclasses import fields as fields_of
from pathlib import Path

from model_utils.adapter_files import check_environment, config_fields, read_config
from run_utils.arguments import as_written, read_yaml
from run_utils.errors import UserError, describe_error, require
from run_utils.files import file_hash, read_json
from run_utils.paths import did_you_mean
from run_utils.redaction import published_name

FILES = ("adapter_config.json", "adapter_model.safetensors")


def take_settings(args):
    """Set train.py's rank, alpha and layers to those of `args.init_adapter`. Raises UserError if it
    is no LoRA adapter on named layers, or if an argument contradicts it. An argument with its
    default counts as not given."""
    folder = Path(args.init_adapter)
    for name in FILES:
        if not (folder / name).is_file():
            near = did_you_mean(folder, name)
            raise UserError(f"--init_adapter {folder} is no adapter: no {name} there{near}")
    if (folder / "args.yaml").is_file() and read_yaml(folder / "args.yaml").get("init_lora_weights") == "loftq":
        raise UserError(f"--init_adapter {folder} started by LoftQ: a part of it only repairs the rounding of its base")
    config = read_config(folder)
    alpha = config["lora_alpha"]
    found = {
        "lora_r": config["r"],
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_target_modules": sorted([*config.get("target_modules", []), *config.get("target_parameters", [])]),
        **{name: config.get(name, False) for name in ("use_rslora", "use_dora")},
        **{name: as_pairs(config.get(name)) for name in ("rank_pattern", "alpha_pattern")},
    }
    defaults = {field.name: field.default for field in fields_of(args)}
    for name, value in found.items():
        given = getattr(args, name)
        given = sorted(set(given)) if isinstance(given, list) else given
        require(
            given in (value, defaults[name]),
            f"--{name} is {as_written(given)}, but --init_adapter {folder} has {as_written(value)}: leave it out, "
            "also of the recipe",
        )
        setattr(args, name, value)


def as_pairs(pattern):
    """PEFT's rank_pattern or alpha_pattern as train.py's flag, or None."""
    return [f"{name}={value}" for name, value in sorted(pattern.items())] if pattern else None


def load_weights(model, folder, record):
    """Copy an adapter's weights into a PEFT model's new adapter. Returns lines to print. Raises
    UserError if it was trained on another base, or differs in a setting or a tensor.

    record: the run's environment.json; `init_adapter_sha256` is added."""
    # Late: peft imports bitsandbytes, which takes seconds.
    from peft import PeftConfig, set_peft_model_state_dict
    from safetensors.torch import load_file

    from model_utils.adapters import check_tensors

    folder = Path(folder)
    config, weights = PeftConfig.from_pretrained(folder), folder / "adapter_model.safetensors"
    lines = compare_origin(folder, config, record)
    # As PEFT reads it: files of its other versions lack fields, or have more.
    saved, new = (config_fields(either.to_dict()) for either in (config, model.peft_config["default"]))
    for name in sorted((saved.keys() | new.keys()) - {"init_lora_weights"}):  # no weights are drawn
        if saved.get(name) != new.get(name):
            raise UserError(f"--init_adapter {folder} has {name} {saved.get(name)}, but this training {new.get(name)}")
    try:
        set_peft_model_state_dict(model, load_file(weights), ignore_mismatched_sizes=True)
    except Exception as error:  # broken files make safetensors and peft raise anything
        raise UserError(f"--init_adapter {folder} cannot be read: {describe_error(error)}") from None
    check_tensors(model, folder)
    record["init_adapter_sha256"] = file_hash(weights)
    return lines


def compare_origin(folder, config, record):
    """Lines on an adapter's step, base and prompt format. Raises UserError if it was trained on
    another base than the run of `record`. Only train.py's adapters have a record of their base."""
    path = folder / "environment.json"
    if not path.is_file():
        named = published_name(str(config.base_model_name_or_path))
        return [f"The adapter starts from {folder}: nothing verifies its base, which it names {named}"]
    environment = read_json(path, check_environment)
    if environment["base_fingerprint"] != record["base_fingerprint"]:
        raise UserError(f"--init_adapter {folder} was trained on another base model than {record['base']}")
    lines = [f"The adapter starts from {folder}, of step {environment.get('global_step')}"]
    name = environment.get("prompt_format") or environment.get("prompt_version")  # the latter in older folders
    if name != record["prompt_format"]:
        lines.append(f"Warning: it was trained on the prompt format {name}, this run has {record['prompt_format']}")
    elif environment.get("prompt_sha256", record["prompt_sha256"]) != record["prompt_sha256"]:
        lines.append(f"Warning: it was trained on the prompt format {name} before an edit of it")
    return lines
