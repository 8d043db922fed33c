"""The systems of train_throughput.py: libraries and their settings."""

from typing import NamedTuple


class Setting(NamedTuple):
    """The settings that must be equal for a ratio. All have LoRA with r=32 and alpha=64 on the
    seven projections."""

    examples: int = 8  # of an optimizer step; 40 have about 15,500 tokens
    precision: str = "bf16"  # of the frozen weights
    dropout: float = 0.05

    @property
    def name(self):
        return f"{self.examples}_{self.precision}" + "_d0" * (self.dropout == 0)

    def beside(self, peer):
        """Whether a peer's setting is the one to compare with. No peer here has FP8 on frozen
        weights, so bf16 is its best."""
        return peer == (self._replace(precision="bf16") if self.precision == "fp8" else self)


class System(NamedTuple):
    library: str  # ours, unsloth or trl
    setting: Setting
    options: dict  # train.py's flags, or train_peers.py's options
    note: str = ""


FAST = {"torch_compile": True, "cuda_graphs": True}
TWO_AT_A_TIME = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
AS_PUBLISHED = TWO_AT_A_TIME | {"gradient_checkpointing": True}


def all_systems():
    """`{name: System}`. A name's `_d0` is LoRA dropout 0 instead of 0.05."""
    settings = [
        Setting(examples, precision, dropout)
        for examples in (8, 40)
        for precision in ("bf16", "nf4", "fp8")
        for dropout in (0.05, 0.0)
    ]
    peers = [setting for setting in settings if setting.precision != "fp8"]
    ablations = {
        "published": (Setting(precision="nf4"), AS_PUBLISHED),
        "compiled_graphs_nf4_2x4": (Setting(precision="nf4"), FAST | TWO_AT_A_TIME),  # for 16 to 24 GiB
        "plain": (Setting(), {}),
        "liger": (Setting(), {"liger_kernel": True}),
        "graphs": (Setting(), {"cuda_graphs": True}),
        "liger_graphs": (Setting(), {"liger_kernel": True, "cuda_graphs": True}),
        "compiled": (Setting(), {"torch_compile": True}),
        "large_liger": (Setting(40), {"liger_kernel": True}),
        "large_compiled": (Setting(40), {"torch_compile": True}),
    }
    return {
        **{f"ours_{setting.name}": System("ours", setting, FAST) for setting in settings},
        **{name: System("ours", setting, flags) for name, (setting, flags) in ablations.items()},
        **{f"unsloth_{setting.name}": System("unsloth", setting, {"padding_free": True}) for setting in peers},
        # Unsloth compiles the layers of padded batches alone.
        **{
            f"unsloth_{setting.name}_padded": System("unsloth", setting, {"padding_free": False})
            for setting in peers
            if setting.examples == 8
        },
        "unsloth_published": System("unsloth", Setting(8, "nf4", 0.0), AS_PUBLISHED, "as in its notebooks"),
        "trl_published": System("trl", Setting(), AS_PUBLISHED, "as in the article, but bf16"),
        "trl_best": System("trl", Setting(40), {"packing": True}, "2 packed blocks of 8,192 tokens"),
    }


SYSTEMS = all_systems()
MAIN = [
    *("ours_8_bf16", "unsloth_8_bf16", "unsloth_8_bf16_padded"),
    *("ours_8_bf16_d0", "unsloth_8_bf16_d0", "unsloth_8_bf16_d0_padded"),
    *("ours_40_bf16", "unsloth_40_bf16", "ours_40_bf16_d0", "unsloth_40_bf16_d0"),
    *("ours_8_nf4_d0", "unsloth_8_nf4_d0", "unsloth_published", "trl_published", "trl_best"),
]


def describe(system):
    """A system's setting in words."""
    examples, precision, dropout = system.setting
    how = system.note or " ".join(f"--{name}={value}" for name, value in system.options.items())
    return f"{examples} examples a step, {precision}, dropout {dropout:g}; {how or 'no option'}"
