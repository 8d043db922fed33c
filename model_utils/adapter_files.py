"""The files of an adapter's folder: read, and compared with train.py's records. No model is
needed."""

import contextlib
import hashlib
import json
import math
import re
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from data_utils.prompt import PROMPT_FORMATS, format_hash
from run_utils.arguments import read_yaml
from run_utils.errors import UsageError, UserError, describe_error
from run_utils.files import is_whole_model, read_json, weights_hash
from run_utils.paths import did_you_mean

FLOATS = {"F64", "F32", "F16", "BF16"}  # safetensors' names
# Fields of an adapter_config.json. train.py never sets REFUSED: these fields make PEFT work for
# long, import modules by name, or replace weights of the base.
WITHOUT_FUNCTION = {
    *("base_model_name_or_path", "revision", "inference_mode", "lora_dropout", "peft_version", "auto_mapping"),
    *("megatron_core", "runtime_config"),
}
UNORDERED = {"target_modules", "target_parameters", "exclude_modules"}
# The fields of args.yaml for evaluation, inference and export.
TEXTS = (
    *("model_name_or_path", "model_revision", "prompt_format", "quantization", "eval_split", "dataset_config_name"),
    *("dataset_revision", "eval_dataset_name"),
)
NUMBERS = ("max_bad_rows", "eval_fraction", "seed", "split_seed", "lora_r", "lora_alpha")
CHOICES = {"quantization": ("none", "nf4", "int8"), "eval_split": ("random", "tools")}
REFUSED = ("layer_replication", "modules_to_save", "layers_pattern", "trainable_token_indices", "megatron_config")
UNRECORDED = (  # train.py never sets these; older adapters have no record of them
    *("use_rslora", "use_dora", "use_qalora", "lora_bias", "fan_in_fan_out", "rank_pattern", "alpha_pattern"),
    *("layers_to_transform",),
)


class Adapter(NamedTuple):
    """An adapter of train.py, or a whole model of its full fine-tuning: its folder, args.yaml and
    environment.json."""

    folder: Path
    args: dict
    environment: dict

    @property
    def prompt_format(self):
        """A name of PROMPT_FORMATS."""
        return self.args["prompt_format"]

    @property
    def prompt_hash(self):
        """The prompt format's hash in training. None in older folders."""
        return self.environment.get("prompt_sha256")

    @property
    def is_whole(self):
        return is_whole_model(self.folder)

    @property
    def sha256(self):
        """Of the weights."""
        return weights_hash(self.folder)

    @contextlib.contextmanager
    def named_in(self, flag):
        """Add to a UserError: the adapter's args.yaml has the value, and `flag` replaces it."""
        try:
            yield
        except UserError as error:
            raise UserError(f"{error}; it is named in {self.folder / 'args.yaml'}, {flag} replaces it") from None


def read_adapter(folder):
    """The Adapter in a folder. Raises UserError if train.py did not save it, if its prompt format
    is missing here, or if it was edited since the training (check_record)."""
    folder = Path(folder)
    if not folder.is_dir():
        near = did_you_mean(folder, "adapter_config.json")
        raise UserError(f"no adapter in {folder}: there is no such folder{near or '; train.py makes one'}")
    whole = is_whole_model(folder)
    for name in (
        *([] if whole else ["adapter_config.json", "adapter_model.safetensors"]),
        "args.yaml",
        "environment.json",
    ):
        if not (folder / name).is_file():
            near = did_you_mean(folder, "adapter_config.json") or did_you_mean(folder, "config.json")
            raise UserError(f"{folder} is not an adapter saved by train.py: no {name} there{near}")
    environment = read_json(folder / "environment.json", check_environment)
    try:
        args = read_yaml(folder / "args.yaml")
        # Older folders have prompt_version.
        name = args.setdefault("prompt_format", environment.get("prompt_version"))
        check_arguments(args)
    except UsageError as error:  # a damaged folder is no wrong flag
        raise UserError(str(error)) from None
    except ValueError as error:
        raise UserError(f"{folder / 'args.yaml'} cannot be read: {error}") from None
    if name not in PROMPT_FORMATS:
        raise UserError(
            f"{folder} was trained on the prompt format {name}; data_utils/prompt.py has {', '.join(PROMPT_FORMATS)}"
        )
    # The hash of `chat` needs the tokenizer: find_format in chat_format.py compares it.
    known = PROMPT_FORMATS[name] and format_hash(PROMPT_FORMATS[name])
    if known and environment.get("prompt_sha256", known) != known:
        raise UserError(
            f"{folder} was trained on the prompt format {name}, which has been edited since: put it back in "
            "data_utils/prompt.py and give the edited one another name"
        )
    if not whole:
        check_record(folder, args, environment)
    return Adapter(folder, args, environment)


def check_environment(environment):
    """For read_json: fails unless an environment.json has the scripts' fields."""
    _ = environment["base_fingerprint"], (environment.get("eval_loss") or 0) + 0.0
    if record := environment.get("adapter"):
        _ = record["config_sha256"], record["tensors"].items()


def check_arguments(args):
    """Raise ValueError if a field of args.yaml for other scripts has a wrong type."""
    for name in (*TEXTS, *NUMBERS):
        value, types = args.get(name), str if name in TEXTS else int | float
        if not isinstance(value, types | None) or (name in NUMBERS and not math.isfinite(value or 0)):
            found = value if isinstance(value, float) else f"a {type(value).__name__}"
            raise ValueError(f"{name} must be a {'text' if name in TEXTS else 'number'}, not {found}")
    names = args.get("lora_target_modules") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("lora_target_modules must be a list of names")
    data = args.get("dataset_name")
    several = isinstance(data, list) and len(data) > 1 and all(isinstance(name, str) for name in data)
    if not several and not isinstance(data, str | None):
        raise ValueError("dataset_name must be a text, or a list of two texts or more")
    if not args.get("model_name_or_path"):
        raise ValueError("no model_name_or_path there")
    for name, choices in CHOICES.items():
        if args.get(name, choices[0]) not in choices:
            raise ValueError(f"{name} must be {', '.join(choices)}, not {args[name]}")


def read_config(folder):
    """The fields of an adapter_config.json that change the function (see config_fields). Raises
    UserError if PEFT must not read the file."""
    path = Path(folder) / "adapter_config.json"
    fields = {}

    def check(config):
        fields.update(config_fields(config))
        check_config(fields)

    read_json(path, check)
    return fields


def config_fields(config):
    """The fields of a LoRA configuration (a dict) that change the function. Empty and false fields
    count as absent."""
    fields = {
        name: sorted(value) if name in UNORDERED and isinstance(value, (list, set)) else value
        for name, value in config.items()
        if name not in WITHOUT_FUNCTION
        and not (value is None or value is False or (isinstance(value, (list, dict, set)) and not value))
    }
    return json.loads(json.dumps(fields))  # tuples and enumerations as in a file


def check_config(fields):
    """Raise ValueError unless a configuration is plain LoRA on named layers. PEFT only reads
    checked files."""
    for name, value in (("peft_type", "LORA"), ("task_type", "CAUSAL_LM")):
        if fields.get(name) != value:
            raise ValueError(f"{name} must be {value}, not {fields.get(name)}")
    if found := [name for name in REFUSED if name in fields]:
        raise ValueError(f"{found[0]} is no part of LoRA on named layers")
    # Any other text is a method that changes the base's weights, which the file does not have.
    if fields.get("init_lora_weights") not in (True, None, "gaussian"):
        raise ValueError(f"init_lora_weights is {fields['init_lora_weights']}, which changes the base")
    for name in UNORDERED & fields.keys():
        if not isinstance(fields[name], list) or not all(isinstance(layer, str) for layer in fields[name]):
            raise ValueError(f"{name} must be a list of names: regular expressions are not read")
    for pattern in ("rank_pattern", "alpha_pattern"):
        if any(not re.fullmatch(r"[\w.]+", name) for name in fields.get(pattern, {})):
            raise ValueError(f"the keys of {pattern} must be names: regular expressions are not read")
    for rank in ranks(fields):
        if type(rank) is not int or rank < 1:
            raise ValueError(f"a rank must be a number above 0, not {rank}")
    for alpha in (fields.get("lora_alpha"), *fields.get("alpha_pattern", {}).values()):
        if type(alpha) not in (int, float) or not 0 < alpha < math.inf:
            raise ValueError(f"an alpha must be a number above 0, not {alpha}")


def ranks(fields):
    return [fields.get("r"), *fields.get("rank_pattern", {}).values()]


def config_hash(fields):
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def as_words(shape):
    return "x".join(map(str, shape))


def check_record(folder, args, environment):
    """Raise UserError if an adapter's configuration or tensors differ from train.py's record.
    Returns the names of unrecorded facts: an older adapter only has its arguments to compare rank,
    alpha and modules with."""
    fields, path = read_config(folder), Path(folder) / "adapter_config.json"
    if record := environment.get("adapter"):
        if config_hash(fields) != record["config_sha256"]:
            raise UserError(f"{path} has been edited since the training (environment.json has its hash): put it back")
        compare_tensors(folder, tensor_shapes(folder), record["tensors"], record["tensors"], "that train.py saved")
        return []
    names = sorted([*fields.get("target_modules", []), *fields.get("target_parameters", [])])
    recorded = {name: args.get(name) for name in ("lora_r", "lora_alpha", "lora_target_modules")}
    for (name, value), found in zip(recorded.items(), (fields["r"], fields["lora_alpha"], names), strict=True):
        value = sorted(set(value)) if isinstance(value, list) else value
        if value is not None and value != found:
            raise UserError(f"{path} is not the training's: {name} was {value} in args.yaml, here it is {found}")
    unknown = [name for name, value in recorded.items() if value is None]
    return unknown + [name for name in UNRECORDED if name in fields]


def tensor_shapes(folder):
    """`{name: shape in words}` from the header of an adapter's file. Raises UserError if the file
    cannot be read, or if a tensor's dtype is not a floating-point type."""
    path = Path(folder) / "adapter_model.safetensors"
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, not a dict
            shapes = {name: as_words(tensor.get_shape()) for name, tensor in tensors.items()}
            others = [name for name, tensor in tensors.items() if tensor.get_dtype() not in FLOATS]
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot load the adapter {folder}: {describe_error(error)}") from None
    if others:
        raise UserError(f"{path} does not hold floating-point numbers in {others[0]}: nothing of it is used")
    return shapes


def compare_tensors(folder, shapes, wanted, known, origin):
    """Raise UserError if an adapter's tensors, `{name: shape}`, lack one of `wanted` or differ from
    `known`."""
    misfits = {
        "does not have": sorted(wanted.keys() - shapes.keys()),
        "has unknown tensors": sorted(shapes.keys() - known.keys()),
        "has of another shape": sorted(name for name in known.keys() & shapes.keys() if known[name] != shapes[name]),
    }
    if any(misfits.values()):
        problems = [f"{problem}: {len(names)}, {names[0]} first" for problem, names in misfits.items() if names]
        raise UserError(f"the tensors of {folder} are not those {origin}: the file {'; it '.join(problems)}")
