"""--torch_compile: equal numbers from three graphs: training, its loss and evaluation.

The count has a fourth graph, of the trial of the compiler. A second start compiles none.
"""

import json
import subprocess
import sys

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
    model = add_lora(model, 2, 8, 0.0, all_layers(model)).train()
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


@pytest.mark.slow  # 20 s, in the launcher and imports
def test_a_missing_compiler_is_an_error_in_one_line(flags, monkeypatch):
    monkeypatch.setenv("CXX", "no_such_compiler")
    result = launch("train.py", flags | {"torch_compile": True})
    assert result.code == 1
    assert "error: --torch_compile, which needs g++, does not work here: InvalidCxxCompiler: " in result.err
    assert "Traceback" not in result.err
    assert not flags["output_dir"].exists()


FIRST_STEP = """
import json, sys
from run_utils.libraries import load_libraries
load_libraries()
import torch
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM
from model_utils import fused_lora
from model_utils.adapters import add_lora
from model_utils.speed import compile_layers

if "edited" in sys.argv:
    backward = fused_lora.LoraProjection.backward

    def doubled(ctx, *dys):
        *others, db = backward(ctx, *dys)
        return *others, 2 * db

    fused_lora.LoraProjection.backward = staticmethod(doubled)
torch.manual_seed(0)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).requires_grad_(False)
model = add_lora(model, 4, 8, 0.1, ["q_proj", "down_proj"]).train()
compile_layers(model)
batch = {"input_ids": torch.arange(40)[None], "position_ids": torch.arange(40)[None]}
model(**batch, use_cache=False).logits.square().mean().backward()
gradients = {name: weight.grad.norm().item() for name, weight in model.named_parameters() if weight.requires_grad}
print(json.dumps({"gradients": gradients} | {name: counters[name] for name in ("aot_autograd", "inductor")}))
"""


@pytest.mark.slow  # a minute, mostly in the C++ compiler
def test_a_second_process_compiles_nothing(tiny_model, tmp_path, monkeypatch):
    """It finds all graphs in torch's caches, which are in the folder of the rows' cache. An edited
    backward pass of the fused LoRA is not taken for the one before."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)  # set by compilers in this process

    def first_step(*edited):
        command = [sys.executable, "-c", FIRST_STEP, tiny_model, *edited]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    first, second, edited = first_step(), first_step(), first_step("edited")
    assert (
        first["aot_autograd"]["autograd_cache_miss"] == first["aot_autograd"]["total"] == 2
    )  # with the compiler's trial
    assert second["aot_autograd"]["autograd_cache_hit"] == second["aot_autograd"]["total"] == 2
    assert "fxgraph_cache_miss" in first["inductor"] and "fxgraph_cache_miss" not in second["inductor"]
    assert list((tmp_path / "tool_call_cache").glob(f"compiled_{torch.__version__}_*/fxgraph"))
    assert second["gradients"] == first["gradients"]
    for name, norm in edited["gradients"].items():
        if name.endswith("lora_B.default.weight"):  # at the start, A has no gradient: B is 0
            assert norm == pytest.approx(2 * first["gradients"][name], rel=1e-5) and norm > 0
