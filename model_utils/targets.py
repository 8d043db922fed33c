"""--lora_target_modules by name or by kind of layer, checked without weights."""

from model_utils.adapters import all_layers, expert_names, linear_layers
from model_utils.loading import text_decoder
from model_utils.variants import pattern, takes_part
from run_utils.errors import UserError

# Parts of the names of modules in transformers' model families.
ATTENTION = ("attn", "attention")
MLP = ("mlp", "ffn", "feed_forward", "fc1", "fc2", "expert", "moe")


def choose_targets(model, args):
    """The layers of --lora_target_modules by name. By default all linear layers of the decoder and
    its experts; `all-linear`, `attention` and `mlp` are all linear layers, and these of one kind.
    Raises UserError if there are none, or if they do not go with another argument.

    model: on any device, also without weights."""
    names = []
    for word in args.lora_target_modules or all_layers(model):
        names += KINDS[word](model) if word in KINDS else [word]
    names = list(dict.fromkeys(names))
    check_targets(model, names, args)
    return names


def layers_of_kind(model, kind):
    """The names of the linear layers and experts with a word of `kind` in their path. If other
    layers have the same name, it is given with its parent's."""
    names, elsewhere = {}, set()
    known, experts = linear_layers(model), expert_names(model)
    for path, _ in text_decoder(model).named_modules():
        *parents, name = path.split(".")
        if name in known:
            if any(word in part for part in path.split(".") for word in kind):
                names[name] = f"{parents[-1]}.{name}" if parents else name
            else:
                elsewhere.add(name)
    found = [full if name in elsewhere else name for name, full in names.items()]
    found += [name for name in experts if any(word in name for word in kind)]
    if not found:
        raise UserError(
            f"no layers of this kind were found in {type(model).__name__}: name them by --lora_target_modules, from "
            f"{', '.join(all_layers(model))}"
        )
    return found


KINDS = {
    "all-linear": linear_layers,
    "attention": lambda model: layers_of_kind(model, ATTENTION),
    "mlp": lambda model: layers_of_kind(model, MLP),
}


def check_targets(model, names, args):
    """Raise UserError if a pattern names no target, or if a variant does not know a target."""
    for flag in ("rank_pattern", "alpha_pattern"):
        for name in pattern(flag, getattr(args, flag)):
            if name not in names:
                raise UserError(f"--{flag} names {name}, which is not one of the LoRA layers: {', '.join(names)}")
    init = args.init_lora_weights
    is_own = takes_part(init) or init in ("loftq", "orthogonal")  # lora_init.py's
    linear = linear_layers(model)
    if others := [name for name in names if name.split(".")[-1] not in linear]:
        flags = {f"--init_lora_weights {init}": is_own, "--use_dora": args.use_dora}
        for flag in [flag for flag, is_set in flags.items() if is_set]:
            rest = " ".join(name for name in names if name not in others)
            raise UserError(
                f"{flag} is for the decoder's linear layers, not for {', '.join(others)}: --lora_target_modules {rest} "
                "leaves them out"
            )
    if is_own and init != "orthogonal":
        check_ranks(model, names, args)


def check_ranks(model, names, args):
    """Raise UserError if a rank is above the smaller side of a layer's weight, its number of
    parts."""
    ranks = pattern("rank_pattern", args.rank_pattern)
    for path, module in text_decoder(model).named_modules():
        name = next((name for name in names if f".{path}".endswith(f".{name}")), None)
        if name and hasattr(module, "weight"):
            rank = ranks.get(name, args.lora_r)
            if rank > (most := min(module.weight.shape)):
                raise UserError(
                    f"--init_lora_weights {args.init_lora_weights} finds at most {most} parts in {name}, and its rank "
                    f"is {rank}: lower --lora_r, or --rank_pattern {name}={most}"
                )
