"""--torch_compile: equal numbers from three graphs: training, its loss and evaluation.

The count has a fourth graph, of the trial of the compiler.
"""

import pytest
import torch
import torch._dynamo
from conftest import ROOT, launch, values
from torch._dynamo.utils import counters
from transformers import Qwen3Config, Qwen3ForCausalLM

from model_utils.adapters import add_lora, all_layers
from model_utils.speed import compile_layers


@pytest.mark.slow  # 40 s, mostly in the C++ compiler
def test_three_graphs_serve_all_layers_and_lengths(train_here, flags, tmp_path):
    """Eight layers, six micro-batches and four evaluations of different lengths, each of two or
    more examples. Dropout and NF4 need no more graphs."""
    flags |= {
        "model_name_or_path": ROOT / "demo" / "base",
        "attn_implementation": "sdpa",
        "max_train_steps": 3,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "eval_steps": 1,
    }
    plain = train_here(flags | {"output_dir": tmp_path / "plain"})
    torch._dynamo.reset()
    counters.clear()
    compiled = train_here(flags | {"output_dir": tmp_path / "compiled", "torch_compile": True})
    assert counters["stats"]["unique_graphs"] == 3 + 1
    assert counters["aot_autograd"]["total"] == 3 + 1  # no graph was traced twice
    for tag in ("train/loss", "train/grad_norm", "eval/loss"):
        torch.testing.assert_close(values(compiled, tag), values(plain, tag), rtol=1e-4, atol=0)
    torch._dynamo.reset()
    counters.clear()
    flags |= {"torch_compile": True, "lora_dropout": 0.1, "quantization": "nf4", "max_train_steps": 2}
    train_here(flags | {"output_dir": tmp_path / "dropout"})
    assert counters["stats"]["unique_graphs"] == 3 + 1


@pytest.mark.slow  # 20 s, mostly in the C++ compiler
def test_a_layer_keeps_only_what_products_and_attention_compute():
    """The backward pass recomputes norms, rotary positions and SwiGLU. So queries and keys are kept
    once, before their norm."""
    shape = {"hidden_size": 96, "intermediate_size": 112, "head_dim": 16, "vocab_size": 50}
    config = Qwen3Config(**shape, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2)
    model = Qwen3ForCausalLM(config).requires_grad_(False)
    model = add_lora(model, 8, 8, 0.0, all_layers(model)).train()
    compile_layers(model)
    saved, tokens = {}, 40

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.get_base_model().model(input_ids=torch.arange(tokens)[None], use_cache=False)
    for weight in [*model.parameters(), *model.buffers()]:
        saved.pop(weight.untyped_storage().data_ptr(), None)
    widths = sorted(tensor.untyped_storage().nbytes() / tensor.element_size() / tokens for tensor in saved.values())
    inputs, queries, keys, gates = [96] * 3, [64] * 2, [32] * 2, [112] * 2  # with attention's result, and values
    assert [width for width in widths if width > 16] == sorted(inputs + queries + keys + gates)


def test_a_missing_compiler_is_an_error_in_one_line(flags, monkeypatch):
    monkeypatch.setenv("CXX", "no_such_compiler")
    result = launch("train.py", flags | {"torch_compile": True})
    assert result.code == 1
    assert "error: --torch_compile, which needs g++, does not work here: InvalidCxxCompiler: " in result.err
    assert "Traceback" not in result.err
    assert not flags["output_dir"].exists()
