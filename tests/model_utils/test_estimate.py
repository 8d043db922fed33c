"""The computed memory and time, against measurements and against autograd."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, Qwen3Config

from benchmarks.check_estimate import MEASURED, compute
from benchmarks.check_families import FAMILIES, SIZES, build
from benchmarks.train_throughput import SHAPES
from data_utils.batching import Example
from model_utils.adapters import add_lora, all_layers
from model_utils.estimate import describe, estimate, num_evaluations
from model_utils.footprint import footprint
from model_utils.gpus import GPUS, nearest_gpu, peak_of
from train import TrainingArguments

FOUR_LAYERS = Qwen3Config(**SHAPES["4b"] | {"num_hidden_layers": 4})


def examples_of(lengths, supervised=70):
    """Examples with the last `supervised` tokens supervised."""
    weights = [(np.arange(length) >= length - supervised).astype(np.float32) for length in lengths]
    return [
        Example(str(i), np.zeros(len(row), dtype=np.int32), len(row) - supervised, row) for i, row in enumerate(weights)
    ]


def measured_rows(name, shape="4b", gpu="h200"):
    (measured,) = [line for line in MEASURED if (line.name, line.shape, line.gpu) == (name, shape, gpu)]
    return measured


# The largest micro-batch of the measurement, in tokens and supervised tokens.
@pytest.mark.parametrize(
    ("measured", "tokens", "supervised"),
    [
        (measured_rows("reference recipe"), 1450, 302),
        (measured_rows("fast recipe"), 3774, 694),
        (measured_rows("bf16, no dropout"), 5006, 640),
        (measured_rows("the same, FP8"), 17954, 3396),
        (measured_rows("bf16, no dropout", "14b"), 5006, 640),
    ],
    ids=lambda value: f"{value.shape} {value.name}" if hasattr(value, "name") else None,
)
def test_memory_is_within_a_tenth_of_the_measured(measured, tokens, supervised):
    gib, _ = compute(measured, examples_of([tokens // measured.batch] * measured.batch, supervised // measured.batch))
    assert gib == pytest.approx(measured.gib, rel=0.1)


@pytest.mark.parametrize(
    "measured",
    [measured_rows("bf16, no dropout"), measured_rows("fast recipe, no dropout"), measured_rows("reference recipe")],
    ids=lambda measured: measured.name,
)
def test_speed_is_within_a_fifth_of_the_measured(measured):
    _, speed = compute(measured, examples_of([390] * 64))
    assert speed == pytest.approx(measured.speed, rel=0.2)


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "starcoder2", "glm4"])
def test_what_a_layer_keeps_is_what_autograd_keeps(name):
    """On real weights."""
    args = TrainingArguments(lora_r=8, lora_dropout=0.0, quantization="none")
    config = AutoConfig.for_model(name.split()[0], **(SIZES | FAMILIES[name]))
    counted = footprint(args, config, torch.float32)
    model = build(name)
    assert counted.base_bytes == sum(weight.numel() * 4 for weight in model.parameters())
    model = add_lora(model.requires_grad_(False), 8, 64, 0.0, all_layers(model)).train()
    assert counted.trained == sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    own = {weight.untyped_storage().data_ptr() for weight in [*model.parameters(), *model.buffers()]}

    def kept(tokens):
        saved = {}

        def pack(tensor):
            saved[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        ids = torch.zeros(1, tokens, dtype=torch.int64)
        batch = {"input_ids": ids, "position_ids": torch.arange(tokens)[None]}
        lengths = {"cu_seq_lens_q": torch.tensor([0, tokens], dtype=torch.int32), "max_length_q": tokens}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = model.get_base_model().get_decoder()(**batch, **lengths, use_cache=False)
        size = sum(tensor.untyped_storage().nbytes() for key, tensor in saved.items() if key not in own)
        del result
        return size

    model.set_attn_implementation("isolated")
    # within a sliding window
    assert kept(32) / 32 == pytest.approx(counted.kept_bytes, rel=0.1)


def test_checkpointing_compiling_and_nf4_need_less_and_dropout_needs_more():
    rows = examples_of([400] * 16)

    def gib(**flags):
        settings = {"quantization": "none", "gradient_checkpointing": False, "lora_dropout": 0.0} | flags
        return estimate(TrainingArguments(**settings), FOUR_LAYERS, rows, [], "h100")["memory"]["peak"]

    plain = gib()
    assert gib(gradient_checkpointing=True) < gib(torch_compile=True) < plain < gib(lora_dropout=0.1)
    # 101 million weights a layer in half a byte instead of two
    assert plain - gib(quantization="nf4") == pytest.approx(4 * 100.9e6 * 1.484 / 2**30, rel=0.01)
    # two copies of a byte a weight
    assert gib(base_precision="fp8") - plain == pytest.approx(4 * 100.9e6 * 2 / 2**30, rel=0.01)
    assert gib(per_device_train_batch_size=4) > plain
    assert gib(ema_decay=0.99) - plain == pytest.approx(4 * 1.835e6 * 4 / 2**30, rel=0.01)
    # two moments of one byte instead of four for 1.8 million weights a layer
    assert plain - gib(optim="adamw_bnb_8bit") == pytest.approx(4 * 1.835e6 * 6 / 2**30, rel=0.01)


def test_the_parts_and_the_hours_add_up():
    args = TrainingArguments(num_train_epochs=2, eval_steps=3, save_steps=4)
    result = estimate(args, FOUR_LAYERS, examples_of([400] * 80), examples_of([400] * 8), "rtx-3090")
    memory, (gpu,) = result["memory"], result["gpus"]
    assert sum(memory[part] for part in ("base", "trained", "activations", "logits")) == pytest.approx(memory["peak"])
    assert result["steps"] == 20 and result["evaluations"] == 10  # 3 4 6 8 9 12 15 16 18 20
    time = gpu["time"]
    assert time["training_hours"] == pytest.approx(2 * 80 * 400 / time["tokens_per_second"] / 3600)
    assert time["hours"] == pytest.approx(time["training_hours"] + time["evaluation_hours"])
    assert gpu["fits"] and any("GiB = base" in line for line in result["lines"])


def test_evaluations_are_train_pys():
    args = TrainingArguments(eval_steps=3, save_steps=4, eval_on_start=True)
    steps = [step for step in range(1, 11) if step % 3 == 0 or step % 4 == 0 or step == 10]
    assert num_evaluations(args, 10) == len(steps) + 1


def test_without_an_answer_there_is_a_line():
    args, rows = TrainingArguments(lora_dropout=0.0), examples_of([100] * 8)
    mixture = AutoConfig.for_model("mixtral", **(SIZES | FAMILIES["mixtral"]))
    for answer in (estimate(args, mixture, rows, []), estimate(args, FOUR_LAYERS, [], [])):
        assert list(answer) == ["lines"] and answer["lines"][0].startswith("Memory and time are not computed")
    with_cpu = estimate(TrainingArguments(quantization="none"), FOUR_LAYERS, rows, [], "cpu")
    assert with_cpu["gpus"] == [] and "CPU's time is not computed" in with_cpu["lines"][-1]
    assert with_cpu["memory"]["base"] == pytest.approx((4 * 100.9e6 + 151936 * 2560) * 4 / 2**30, rel=0.01)
    for name, flags in {
        "int8": {"quantization": "int8"},
        "FP8": {"quantization": "none", "base_precision": "fp8"},
    }.items():
        unmeasured = estimate(TrainingArguments(**flags), FOUR_LAYERS, rows, [], "l4")
        assert unmeasured["gpus"][0]["time"] is None and f"{name} was never" in " ".join(describe(unmeasured))


@pytest.mark.parametrize(
    ("device", "memory", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", 79.2, "a100-80gb"), ("NVIDIA A100-PCIE-40GB", 39.4, "a100-40gb"), ("NVIDIA A10G", 22, None),
        ("NVIDIA L40S", 44.5, "l40s"), ("NVIDIA L4", 22, "l4"), ("NVIDIA H100 80GB HBM3", 79, "h100"),
        ("NVIDIA H100 PCIe", 79, None), ("NVIDIA H200", 139.8, "h200"), ("NVIDIA GeForce RTX 4090", 23.6, "rtx-4090"),
        ("Tesla T4", 15, None),
    ],
)  # fmt: skip
def test_gpus_by_torchs_names(device, memory, name):
    assert nearest_gpu(device, memory) == name
    assert all(gpu.peak for gpu in GPUS.values()) and peak_of("NVIDIA A10G") == 70e12


def test_a_variant_s_weights_are_counted():
    plain = {"lora_r": 8, "lora_dropout": 0.0, "quantization": "none", "lora_target_modules": ["attention"]}
    config = AutoConfig.for_model("qwen3", **SIZES)
    by_rank = footprint(TrainingArguments(**plain), config).trained / 8
    assert footprint(TrainingArguments(**plain, init_lora_weights="pissa"), config).trained == 16 * by_rank
    assert (
        footprint(TrainingArguments(**plain | {"lora_r": 4}, rank_pattern=["q_proj=8"]), config).trained < 8 * by_rank
    )
    assert footprint(TrainingArguments(**plain, use_dora=True), config).trained > 8 * by_rank
