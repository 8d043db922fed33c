"""The LoRA adapter: put on a base, read from its folder, and loaded on the base that it was trained on."""

import contextlib
import hashlib
import json
import math
import re
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from safetensors import SafetensorError, safe_open
from transformers.pytorch_utils import Conv1D

from data_utils.prompt import PROMPT_FORMATS, format_hash
from model_utils.flops import num_weights
from model_utils.loading import base_fingerprint, expert_parameters, text_decoder
from model_utils.self_checks import difference, num_positions, one_line, plain_logits, reference_logits, tolerance
from run_utils.arguments import UserError, read_yaml, say
from run_utils.files import read_json
from run_utils.launch import is_sharded

FLOATS = {"F64", "F32", "F16", "BF16"}  # safetensors' names
ROUTERS = {"router", "gate", "shared_expert_gate"}

# Of an adapter's args.yaml: the arguments of train.py that other scripts take from it.
TEXTS = (
    "dataset_name",
    "dataset_config_name",
    "dataset_revision",
    "eval_dataset_name",
    "model_name_or_path",
    "model_revision",
)
TYPES = dict.fromkeys(TEXTS, (str,)) | {
    "lora_target_modules": (list,),
    "seed": (int,),
    **dict.fromkeys(("eval_fraction", "max_bad_rows"), (float, int)),
    **dict.fromkeys(("quantization", "eval_split"), (str,)),
}
CHOICES = {"quantization": ("none", "nf4", "int8"), "eval_split": ("random", "tools")}

# Fields of an adapter_config.json. REFUSED are not trained here; they keep PEFT busy, import modules by name, or replace weights
# of the base.
WITHOUT_FUNCTION = {
    *("base_model_name_or_path", "revision", "inference_mode", "lora_dropout", "peft_version", "auto_mapping"),
    *("megatron_core", "runtime_config"),
}
UNORDERED = {"target_modules", "target_parameters", "exclude_modules"}
REFUSED = ("layer_replication", "modules_to_save", "layers_pattern", "trainable_token_indices", "megatron_config")
UNRECORDED = (  # set by no train.py, whose older adapters have no record to compare with
    *("use_rslora", "use_dora", "use_qalora", "lora_bias", "fan_in_fan_out", "rank_pattern", "alpha_pattern"),
    *("layers_to_transform",),
)


def linear_layers(model):
    """The names of the linear layers of the decoder of text, the head and a mixture's routers left out; UserError where it has none."""
    linear = (torch.nn.Linear, Conv1D)  # those of bitsandbytes are torch's too
    head, decoder = model.get_output_embeddings(), text_decoder(model)
    names = {}  # a set in the model's order
    for path, module in decoder.named_modules():
        *parents, name = path.split(".")
        # A number is a place in a sequence, which layers of other kinds have too.
        if isinstance(module, linear) and module is not head and not name.isdigit() and not ROUTERS & {*parents, name}:
            names[name] = None
    if not names:
        raise UserError(f"no linear layers were found in {type(decoder).__name__}: name them by --lora_target_modules")
    return list(names)


def expert_names(model):
    """The names by which LoRA goes on the experts' weights of a mixture, as PEFT's target_parameters; none for other models."""
    return list(dict.fromkeys(f"{path.split('.')[-1]}.{name}" for path, name, _ in expert_parameters(model)))


def describe_experts(model, names):
    """How much of a mixture its experts' weights of these names are, in words."""
    experts = [weight for path, name, weight in expert_parameters(model) if f"{path.split('.')[-1]}.{name}" in names]
    layers = [
        weight
        for module in text_decoder(model).modules()
        if not isinstance(module, torch.nn.Embedding)
        for weight in module.parameters(recurse=False)
    ]
    count, total = (sum(map(num_weights, weights)) for weights in (experts, layers))
    return f"the experts' {', '.join(names)}, {count:,} of the layers' {total:,} weights"


def add_lora(model, r, alpha, dropout, target_modules):
    """The model under a fresh LoRA adapter, in float32 whatever the base's dtype. B starts at zero: same outputs.

    target_modules: names of layers, and of a mixture's experts as expert_names gives them.
    """
    from peft import LoraConfig, get_peft_model  # late: importing peft imports bitsandbytes, and takes seconds

    from model_utils.fused_lora import fuse_lora

    if r > (width := layer_width(model)):
        raise UserError(f"--lora_r {r} is above the width of the model's layers, {width}: a lower one does the same")
    # Of a model that also sees or hears, only the decoder of text is trained: nothing else meets these rows.
    text_modules = {model.get_output_embeddings(), *text_decoder(model).modules()}
    elsewhere = [name for name, module in model.named_modules() if name and module not in text_modules]
    names = {name.split(".")[-1] for name, module in model.named_modules() if module in text_modules}
    experts = [name for name in expert_names(model) if name in target_modules]
    layers = [name for name in target_modules if name not in experts]
    if unknown := [name for name in layers if name not in names]:
        known = ", ".join([*linear_layers(model), *expert_names(model)])
        raise UserError(f"cannot add LoRA to {', '.join(unknown)}: the model has no such layers, but {known}")
    if experts and (dropout or is_sharded()):
        cannot = "FSDP2 cannot shard" if is_sharded() else "PEFT has no dropout for"
        trains = "" if is_sharded() else "--lora_dropout 0 trains them, "
        raise UserError(
            f"{cannot} LoRA on {describe_experts(model, experts)}: {trains}--lora_target_modules {' '.join(layers)} leaves them out"
        )

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=layers,
        target_parameters=experts or None,
        exclude_modules=[name for name in elsewhere if name.split(".")[-1] in layers] or None,
    )
    try:
        model = get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"cannot add LoRA to {', '.join(target_modules)}: {one_line(error)}") from None
    # Of some mixtures PEFT takes the names of dense layers, or of a shared expert's, for those of the experts.
    if taken := [name for name in layers if name not in config.target_modules]:
        others = [name for name in target_modules if name not in taken]
        raise UserError(
            f"PEFT takes {', '.join(taken)} of this mixture for its experts' and would leave out the layers of that name: "
            f"--lora_target_modules {' '.join(others)} leaves these out alone"
        )
    return fuse_lora(model)


@contextlib.contextmanager
def naming_adapter(adapter, flag):
    """Add to a UserError within that the value of `flag` comes from the arguments saved with an adapter, if there is one."""
    try:
        yield
    except UserError as error:
        if not adapter:
            raise
        raise UserError(f"{error}; it is named in {Path(adapter) / 'args.yaml'}, {flag} replaces it") from None


def read_adapter(folder):
    """The arguments and the environment that train.py saved beside an adapter, two dicts. Refuses, as UserError, a folder
    without them, an adapter of a prompt format that is not here any more, and one edited since (check_record)."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no adapter in {folder}: there is no such folder; train.py makes one")
    for name in ("adapter_config.json", "adapter_model.safetensors", "args.yaml", "environment.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not an adapter saved by train.py: no {name} there")
    try:
        args = {name: value for name, value in read_yaml(folder / "args.yaml").items() if value is not None}
        check_arguments(args)
    except ValueError as error:
        raise UserError(f"{folder / 'args.yaml'} cannot be read: {error}") from None
    environment = read_json(folder / "environment.json", check_environment)
    name = args.setdefault("prompt_format", environment.get("prompt_version"))  # the latter in older folders
    if name not in [*PROMPT_FORMATS]:
        raise UserError(
            f"{folder} was trained on the prompt format {name}; data_utils/prompt.py has {', '.join(PROMPT_FORMATS)}"
        )
    if environment.get("prompt_sha256", format_hash(PROMPT_FORMATS[name])) != format_hash(PROMPT_FORMATS[name]):
        raise UserError(
            f"{folder} was trained on the prompt format {name}, which has been edited since: put it back in "
            "data_utils/prompt.py and give the edited one another name"
        )
    check_record(folder, args, environment)
    return args, environment


def check_arguments(args):
    """Raise ValueError unless those of train.py's arguments that other scripts read are of their types; their limits are
    evaluate.py's."""
    for name, value in args.items():
        choices = CHOICES.get(name)
        if name in TYPES and type(value) not in TYPES[name]:
            raise ValueError(f"{name} is no {TYPES[name][0].__name__}")
        if choices and value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}")
    if "model_name_or_path" not in args:
        raise ValueError("it has no model_name_or_path")
    if not all(isinstance(name, str) for name in args.get("lora_target_modules", [])):
        raise ValueError("lora_target_modules must be names")


def check_environment(environment):
    """For read_json: fails unless an adapter's environment.json has what loading and the card read."""
    _ = environment["base_fingerprint"]
    if record := environment.get("adapter"):
        _ = record["config_sha256"], record["tensors"].items()
    if not isinstance(environment.get("eval_loss") or 0.0, int | float):
        raise ValueError("eval_loss is no number")


def read_config(folder):
    """The fields of an adapter_config.json that change the function, as config_fields gives them. UserError if PEFT must not
    read them."""
    path = Path(folder) / "adapter_config.json"
    fields = {}

    def check(config):
        fields.update(config_fields(config))
        check_config(fields)

    read_json(path, check)
    return fields


def config_fields(config):
    """The fields of a LoRA configuration, a dict, that change the function; those empty or off count as absent."""
    fields = {
        name: sorted(value) if name in UNORDERED and isinstance(value, (list, set)) else value
        for name, value in config.items()
        if name not in WITHOUT_FUNCTION
        and not (value is None or value is False or (isinstance(value, (list, dict, set)) and not value))
    }
    return json.loads(json.dumps(fields))  # tuples and enumerations as a file has them


def check_config(fields):
    """Raise ValueError on a configuration that is not plain LoRA on named layers; PEFT reads it after that alone."""
    for name, value in (("peft_type", "LORA"), ("task_type", "CAUSAL_LM")):
        if fields.get(name) != value:
            raise ValueError(f"{name} must be {value}, not {fields.get(name)}")
    if found := [name for name in REFUSED if name in fields]:
        raise ValueError(f"{found[0]} is no part of LoRA on named layers")
    # Any other text is a method that starts from changed weights of the base, which the file does not have.
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


def layer_width(model):
    """The width of the layers, above which no rank is of use."""
    embedded = model.get_input_embeddings().weight.shape[-1]
    return max(embedded, getattr(model.config.get_text_config(), "hidden_size", 0))


def adapter_record(model):
    """The adapter of a PEFT model as environment.json records it, a dict: a hash of its configuration, and its tensors' names and
    shapes. UserError if such a configuration would not be loaded again."""
    from peft import get_peft_model_state_dict  # late, as in add_lora

    fields = config_fields(model.peft_config["default"].to_dict())
    try:
        check_config(fields)
    except ValueError as error:
        raise UserError(f"the LoraConfig of add_lora makes an adapter that would not be loaded: {error}") from None
    trained = {name: weight for name, weight in model.named_parameters(remove_duplicate=False) if weight.requires_grad}
    weights = get_peft_model_state_dict(model, state_dict=trained, save_embedding_layers=False)
    return {
        "config_sha256": config_hash(fields),
        "tensors": {name: as_words(weight.shape) for name, weight in sorted(weights.items())},
    }


def config_hash(fields):
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def as_words(shape):
    return "x".join(map(str, shape))


def check_record(folder, args, environment):
    """Refuse, as UserError, an adapter whose configuration or tensors are not those that train.py recorded. Returns what has
    no record, in words: of an adapter from before, rank, alpha and modules are compared with its arguments alone."""
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


def read_split(folder):
    """The rows that an adapter was trained on and those held out (see find_held_out); None of an adapter from before."""
    path = Path(folder) / "split.json"
    if not path.exists():
        return None
    split = read_json(path, check_split)
    held_out, repeats = split["held_out"], split.get("near_repeats")  # None: an adapter from before
    return {
        "trained": split["trained"],
        "held_out": held_out,
        "near_repeats": repeats and [row_id for row_id in repeats if row_id in held_out],
    }


def check_split(split):
    """For read_json: fails unless a split.json has fingerprints by id, and a list of ids."""
    texts = [*split["trained"].values(), *split["held_out"].values(), *(split.get("near_repeats") or [])]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a fingerprint or an id in it is no text")


def load_adapter(model, folder, texts=()):
    """The base under the adapter saved in `folder`. Refuses, as UserError, an adapter trained on another base, and one whose
    configuration or tensors are not the training's or do not fit the base.

    Merged into the base's weights, which is faster, if there are `texts` (int32 token ids) to compare the merged model on, and
    if the weights are neither quantised nor shared with a layer that has no adapter, as those of a tied head are.
    """
    from peft import PeftModel  # late, as in add_lora

    args, environment = read_adapter(folder)
    if environment["base_fingerprint"] != base_fingerprint(model):
        raise UserError(f"{folder} was trained on another base model than {model.name_or_path}")
    if (rank := max(ranks(read_config(folder)))) > (width := layer_width(model)):
        raise UserError(
            f"{folder} has the rank {rank}, and the base's layers are {width} wide: adapter_config.json is damaged"
        )
    if unknown := check_record(folder, args, environment):
        say(f"{folder} is from before train.py recorded what it saved: nothing verifies its {', '.join(unknown)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT warns of tensors that do not fit; refused below
            model = PeftModel.from_pretrained(model, folder, ignore_mismatched_sizes=True).eval()
            check_tensors(model, folder)
    except (torch.OutOfMemoryError, UserError):
        raise
    except Exception as error:  # whatever a broken file makes safetensors and peft raise
        raise UserError(f"cannot load the adapter {folder}: {one_line(error)}") from None
    quantized = getattr(model.get_base_model(), "hf_quantizer", None) is not None
    if quantized or not len(texts) or adapts_shared_weights(model):
        return model
    model, merge = merge_adapter(model, [text[: min(len(text), num_positions(model.config))] for text in texts])
    if merge.problem:
        raise UserError(f"merging {folder} into its base {merge.problem}: run it unmerged, with --merge_adapter false")
    return model


def tensor_shapes(folder):
    """`{name: shape}` of an adapter's file, by its header alone; shapes in words. UserError if the file cannot be read, or if a
    tensor does not hold floating-point numbers."""
    path = Path(folder) / "adapter_model.safetensors"
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, not a dict
            shapes = {name: as_words(tensor.get_shape()) for name, tensor in tensors.items()}
            others = [name for name, tensor in tensors.items() if tensor.get_dtype() not in FLOATS]
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot load the adapter {folder}: {one_line(error)}") from None
    if others:
        raise UserError(f"{path} does not hold floating-point numbers in {others[0]}: nothing of it is used")
    return shapes


def compare_tensors(folder, shapes, wanted, known, origin):
    """Refuse, as UserError, an adapter's file whose tensors, `{name: shape}`, lack one of `wanted` or are not of `known`."""
    misfits = {
        "does not have": sorted(wanted.keys() - shapes.keys()),
        "has unknown tensors": sorted(shapes.keys() - known.keys()),
        "has of another shape": sorted(name for name in known.keys() & shapes.keys() if known[name] != shapes[name]),
    }
    if any(misfits.values()):
        problems = [f"{problem}: {len(names)}, {names[0]} first" for problem, names in misfits.items() if names]
        raise UserError(f"the tensors of {folder} are not those {origin}: the file {'; it '.join(problems)}")


def check_tensors(model, folder):
    """Refuse, as UserError, an adapter whose file has other tensors than the PEFT model made for it, or weights that are not
    finite.

    The base's embedding and head may be in the file too, if they have an adapter: PEFT saves them by itself.
    """
    from peft import get_peft_model_state_dict  # late, as in add_lora

    wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    adapts_ends = any(hasattr(layer, "base_layer") for layer in ends)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a hint on saving them, which nothing does here
        known = wanted | get_peft_model_state_dict(model, save_embedding_layers=adapts_ends)
    known = {name: as_words(weight.shape) for name, weight in known.items()}
    compare_tensors(folder, tensor_shapes(folder), wanted, known, "of its adapter_config.json on this base")
    if broken := [name for name, weight in wanted.items() if not weight.isfinite().all()]:
        raise UserError(f"{folder} has {len(broken)} tensors whose numbers are not finite, {broken[0]} first")


class Merge(NamedTuple):
    """Distances from the logits of the unmerged adapter, as shares of their spread."""

    effect: float  # of the base without the adapter
    distance: float  # of the merged model, before its weights are rounded to the base's dtype
    allowed: float  # of `distance`
    rounding: float  # of the merged model after that; 0 if nothing is rounded
    dtype: torch.dtype  # that `distance` was computed in

    @property
    def problem(self):
        """The reason not to use the merged model, as the predicate of a sentence; None if there is none."""
        if not self.distance <= self.allowed:
            return (
                f"moves logits by {self.distance:.1e} of their spread, beyond rounding ({self.allowed:.1e}); the adapter "
                f"itself moves them by {self.effect:.1e}"
            )
        if not self.rounding <= max(self.effect / 2, self.allowed):
            return (
                f"loses it to rounding, which moves logits by {self.rounding:.1e} of their spread; the adapter itself moves "
                f"them by {self.effect:.1e}"
            )
        return None

    def __str__(self):
        blind = "" if self.dtype == torch.float32 else ", for want of memory: one projection left out could pass"
        return (
            f"the adapter moves them by {self.effect:.1e} of their spread, merging it by {self.distance:.1e} (rounding: "
            f"{self.allowed:.1e}), rounding the weights by {self.rounding:.1e}; compared in "
            f"{str(self.dtype).removeprefix('torch.')}{blind}"
        )


def merge_adapter(model, texts):
    """The base of a PEFT model with the adapter in its weights, in the dtypes that these had, and the Merge that the two are
    compared by on `texts` (int32 token ids).

    Both in float32, if memory allows: one projection left out can move logits in bf16 no further than rounding does. What
    counts as rounding in float32 is a hundredth of what the adapter does, or what another attention kernel does if that is
    more.
    """
    dtypes = [(weight, weight.dtype) for weight in model.parameters()]
    if fits_in_float32(model):
        for weight, _ in dtypes:
            weight.data = weight.data.float()
    reference = reference_logits(model, texts)
    with model.disable_adapter():
        effect = difference(all_logits(model, texts), reference)
    allowed, dtype = tolerance(model, texts[0], reference[:1], effect), model.dtype
    merged = model.merge_and_unload().eval()
    distance = difference(all_logits(merged, texts), reference)
    rounding = 0.0
    if any(weight.dtype != before for weight, before in dtypes):
        for weight, before in dtypes:
            weight.data = weight.data.to(before).float()
        rounding = difference(all_logits(merged, texts), reference)
        for weight, before in dtypes:
            weight.data = weight.data.to(before)
    return merged, Merge(effect, distance, allowed, rounding, dtype)


def all_logits(model, texts):
    return [plain_logits(model, [text])[0] for text in texts]


def fits_in_float32(model):
    """Whether the memory that is free on the model's device holds its weights in float32, with half as much to spare."""
    more = sum(weight.numel() * (4 - weight.element_size()) for weight in model.parameters())
    on_gpu = model.device.type == "cuda"
    return 1.5 * more < (torch.cuda.mem_get_info(model.device)[0] if on_gpu else psutil.virtual_memory().available)


def adapts_shared_weights(model):
    """Whether a weight under an adapter's layer has another layer that uses it too."""
    users = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    layers = [module.base_layer for module in model.modules() if hasattr(module, "base_layer")]
    return any(users[id(parameter)] > 1 for layer in layers for parameter in layer.parameters())
