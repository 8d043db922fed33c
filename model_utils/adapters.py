"""LoRA adapters: a new one on a base, or one loaded from its folder onto its base."""

import warnings

import torch
from transformers.pytorch_utils import Conv1D

from model_utils.adapter_files import (
    as_words,
    check_config,
    check_record,
    compare_tensors,
    config_fields,
    config_hash,
    ranks,
    read_config,
    tensor_shapes,
)
from model_utils.flops import num_weights
from model_utils.full_model import load_full_model
from model_utils.kept_checks import check_key, has_passed, keep_pass
from model_utils.loading import base_fingerprint, expert_parameters, text_decoder
from model_utils.merging import adapts_shared_weights, fits_in_float32, merge_adapter, merge_again
from model_utils.model_facts import num_positions
from model_utils.variants import takes_part
from run_utils.clock import lap
from run_utils.errors import UserError, describe_error, say
from run_utils.launch_file import is_sharded

ROUTERS = {"router", "gate", "shared_expert_gate"}


def linear_layers(model):
    """The names of the linear layers of the text decoder, without the head and a mixture's routers.
    Raises UserError if there are none."""
    linear = (torch.nn.Linear, Conv1D)  # bitsandbytes' layers are subclasses of torch's
    head, decoder = model.get_output_embeddings(), text_decoder(model)
    names = {}  # an ordered set
    for path, module in decoder.named_modules():
        *parents, name = path.split(".")
        # A number is an index in a sequence, which other types of layers have too.
        if isinstance(module, linear) and module is not head and not name.isdigit() and not ROUTERS & {*parents, name}:
            names[name] = None
    if not names:
        raise UserError(f"no linear layers were found in {type(decoder).__name__}: name them by --lora_target_modules")
    return list(names)


def expert_names(model):
    """The names of a mixture's expert weights for PEFT's target_parameters. Other models have
    none."""
    return list(dict.fromkeys(f"{path.split('.')[-1]}.{name}" for path, name, _ in expert_parameters(model)))


def describe_experts(model, names):
    """The number of the experts' weights with these names, in words, beside the number in all
    layers."""
    experts = [weight for path, name, weight in expert_parameters(model) if f"{path.split('.')[-1]}.{name}" in names]
    layers = [
        weight
        for module in text_decoder(model).modules()
        if not isinstance(module, torch.nn.Embedding)
        for weight in module.parameters(recurse=False)
    ]
    count, total = (sum(map(num_weights, weights)) for weights in (experts, layers))
    return f"the experts' {', '.join(names)}, {count:,} of the layers' {total:,} weights"


def all_layers(model):
    """The default of --lora_target_modules."""
    return [*linear_layers(model), *expert_names(model)]


def add_lora(model, r, alpha, dropout, target_modules, *, init="true", original=None, **options):
    """The model with a new LoRA adapter, in float32 whatever the base's dtype. By default B starts
    at zero, so outputs stay the same.

    target_modules: names of layers, and of a mixture's experts (see expert_names). init:
    --init_lora_weights; see lora_init.py for PiSSA, OLoRA and LoftQ, whose `original` is the
    unquantised base. options: more of LoraConfig's."""
    # Late: peft imports bitsandbytes, which takes seconds.
    from peft import LoraConfig, get_peft_model

    from model_utils.fused_lora import fuse_lora
    from model_utils.lora_init import doubled, freeze_first_values, initialise

    if r > (width := layer_width(model)):
        raise UserError(f"--lora_r {r} is above the width of the model's layers, {width}: a lower one does the same")
    # In a model with vision or audio only the text decoder trains: rows are text.
    text_modules = {model.get_output_embeddings(), *text_decoder(model).modules()}
    elsewhere = [name for name, module in model.named_modules() if name and module not in text_modules]
    paths = [f".{name}" for name, module in model.named_modules() if module in text_modules]
    experts = [name for name in expert_names(model) if name in target_modules]
    layers = [name for name in target_modules if name not in experts]
    if unknown := [name for name in layers if not any(path.endswith(f".{name}") for path in paths)]:
        known = ", ".join(all_layers(model))
        raise UserError(f"cannot add LoRA to {', '.join(unknown)}: the model has no such layers, but {known}")
    if experts and (dropout or is_sharded()):
        cannot = "FSDP2 cannot shard" if is_sharded() else "PEFT has no dropout for"
        trains = "" if is_sharded() else "--lora_dropout 0 trains them, "
        raise UserError(
            f"{cannot} LoRA on {describe_experts(model, experts)}: {trains}"
            f"--lora_target_modules {' '.join(layers)} leaves them out"
        )

    sizes = {"r": r, "lora_alpha": alpha} | options
    peft_inits = {"true": True, "false": False, "gaussian": "gaussian"}
    config = LoraConfig(
        task_type="CAUSAL_LM",
        **(doubled(sizes) if takes_part(init) else sizes),
        init_lora_weights=peft_inits.get(init, True),
        lora_dropout=dropout,
        target_modules=layers,
        target_parameters=experts or None,
        exclude_modules=[name for name in elsewhere if name.split(".")[-1] in layers] or None,
    )
    try:
        model = get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"cannot add LoRA to {', '.join(target_modules)}: {describe_error(error)}") from None
    # In some mixtures, PEFT confuses the names of dense layers or of a shared expert with the
    # experts' names.
    if taken := [name for name in layers if name not in config.target_modules]:
        others = [name for name in target_modules if name not in taken]
        raise UserError(
            f"PEFT takes {', '.join(taken)} of this mixture for its experts' and would leave out the layers of that "
            f"name: --lora_target_modules {' '.join(others)} leaves these out alone"
        )
    if init not in peft_inits and model.device.type != "meta":  # for estimates, without weights
        initialise(model, init, original)
    if takes_part(init):
        freeze_first_values(model)
    return fuse_lora(model)


def layer_width(model):
    """The width of the layers. A higher rank has no use."""
    embedded = model.get_input_embeddings().weight.shape[-1]
    return max(embedded, getattr(model.config.get_text_config(), "hidden_size", 0))


def adapter_record(model):
    """A PEFT model's adapter as a dict for environment.json: a hash of its configuration, and its
    tensors' names and shapes. Raises UserError if load_adapter would refuse the configuration."""
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


def load_adapter(model, adapter, *, merge_checked_on=None):
    """The base with an Adapter on it, or with the weights of a whole model. Raises UserError if it
    was trained on another base, or if its tensors do not fit the base.

    merge_checked_on: texts (int32 token ids) to compare the merged model with the unmerged model.
    If given, the adapter is merged into the base's weights, which is faster. Quantised weights are
    not merged, and neither are weights shared with a layer without an adapter, such as a tied
    head."""
    from peft import PeftModel  # late, as in add_lora

    folder, args, environment = adapter
    if environment["base_fingerprint"] != base_fingerprint(model):
        raise UserError(f"{folder} was trained on another base model than {model.name_or_path}")
    if adapter.is_whole:
        return load_full_model(model, folder)
    # PiSSA and OLoRA have twice the rank.
    if (rank := max(ranks(read_config(folder)))) > 2 * (width := layer_width(model)):
        raise UserError(
            f"{folder} has the rank {rank}, and the base's layers are {width} wide: adapter_config.json is damaged"
        )
    if unknown := check_record(folder, args, environment):
        say(f"{folder} is from before train.py recorded what it saved: nothing verifies its {', '.join(unknown)}")
    quantized = getattr(model, "hf_quantizer", None) is not None
    if args.get("init_lora_weights") == "loftq" and not getattr(model, "is_loaded_in_4bit", False):
        raise UserError(
            f"{folder} started by LoftQ: it repairs the rounding of its base in nf4, and only works on it, with "
            "--quantization nf4. It cannot be exported into unquantised weights"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT warns about misfits; check_tensors raises
            model = PeftModel.from_pretrained(model, folder, ignore_mismatched_sizes=True).eval()
            check_tensors(model, folder)
    except (torch.OutOfMemoryError, UserError):
        raise
    except Exception as error:  # broken files make safetensors and peft raise anything
        raise UserError(f"cannot load the adapter {folder}: {describe_error(error)}") from None
    lap("adapter")
    if quantized or merge_checked_on is None or adapts_shared_weights(model):
        return model
    key = check_key(model, "merge", fits_in_float32(model))
    if has_passed(key):
        merged = merge_again(model)
    else:
        positions = num_positions(model.config)
        merged, merge = merge_adapter(model, [text[: min(len(text), positions)] for text in merge_checked_on])
        if merge.problem:
            raise UserError(
                f"merging {folder} into its base {merge.problem}: run it unmerged, with --merge_adapter false"
            )
        keep_pass(key)
    lap("merge")
    return merged


def check_tensors(model, folder):
    """Raise UserError if an adapter's file has other tensors than its PEFT model, or NaN or
    infinite weights.

    The file may also have the base's embedding and head if they have an adapter: PEFT adds them."""
    from peft import get_peft_model_state_dict  # late, as in add_lora

    wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    adapts_ends = any(hasattr(layer, "base_layer") for layer in ends)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's hint about saving embeddings
        known = wanted | get_peft_model_state_dict(model, save_embedding_layers=adapts_ends)
    known = {name: as_words(weight.shape) for name, weight in known.items()}
    compare_tensors(folder, tensor_shapes(folder), wanted, known, "of its adapter_config.json on this base")
    if broken := [name for name, weight in wanted.items() if not weight.isfinite().all()]:
        raise UserError(f"{folder} has {len(broken)} tensors whose numbers are not finite, {broken[0]} first")
