"""The sizes of CUDA graphs: few, and with little padding."""

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3Model

from model_utils.cuda_graphs import MOST_SIZES, MULTIPLE, choose_sizes, few_layers


def row_lengths(count):
    """xLAM's: log-normal of median 350 and sigma 0.5, within 100 to 1,024 tokens."""
    lengths = 350 * np.exp(0.5 * np.random.default_rng(0).standard_normal(2 * count))
    return lengths[(lengths >= 100) & (lengths <= 1024)][:count].astype(int)


@pytest.mark.parametrize(("rows", "most_padding"), [(2, 0.05), (8, 0.025), (40, 0.012)])
def test_few_sizes_need_little_padding(rows, most_padding):
    lengths = row_lengths(rows * 2900).reshape(2900, rows).sum(1).tolist()
    sizes = choose_sizes(lengths)
    assert len(sizes) <= MOST_SIZES and sizes == sorted(sizes) and not any(size % MULTIPLE for size in sizes)
    padding = [min(size for size in sizes if size >= tokens) - tokens for tokens in lengths]
    assert sum(padding) < most_padding * sum(lengths)


def test_a_short_run_has_the_nearest_size_of_each_micro_batch():
    assert choose_sizes([1, 64, 65, 700, 700]) == [64, 128, 704]


def test_only_equal_layers_warm_up_as_two():
    full = ["full_attention"] * 4
    assert layers_run(tiny_qwen3(full)) == [0, 1]
    assert layers_run(tiny_qwen3(["sliding_attention", "full_attention"] * 2)) == [0, 1, 2, 3]
    mixed = tiny_qwen3(full)
    mixed.layers[3].mlp.act_fn = torch.nn.Identity()
    assert layers_run(mixed) == [0, 1, 2, 3]


def layers_run(model):
    """The layers that a pass under few_layers runs. Afterwards all run, even if the pass failed."""
    run, names = [], list(model.state_dict())
    for index, layer in enumerate(model.layers):
        layer.register_forward_hook(lambda *_, index=index: run.append(index))
    with pytest.raises(torch.OutOfMemoryError), few_layers(model):
        model(torch.tensor([[1, 2, 3]]))
        few = list(run)
        raise torch.OutOfMemoryError
    run.clear()
    model(torch.tensor([[1, 2, 3]]))
    assert run == [0, 1, 2, 3] and list(model.state_dict()) == names
    return few


def tiny_qwen3(layer_types):
    sizes = {"hidden_size": 16, "head_dim": 8, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 32}
    window = {"layer_types": layer_types, "use_sliding_window": True, "sliding_window": 4}
    return Qwen3Model(Qwen3Config(**sizes, **window, num_hidden_layers=4, num_key_value_heads=1))
