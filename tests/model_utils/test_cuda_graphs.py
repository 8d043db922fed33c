"""The sizes of CUDA graphs: few, and with little padding."""

import numpy as np
import pytest

from model_utils.cuda_graphs import MOST_SIZES, MULTIPLE, choose_sizes


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
