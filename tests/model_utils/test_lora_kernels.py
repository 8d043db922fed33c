"""The Triton kernel of LoRA's backward pass computes the same as two products, on a GPU."""

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("Triton's kernels need a GPU", allow_module_level=True)

from model_utils import lora_kernels
from model_utils.fused_lora import low_rank_gradients


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("tokens", "outs", "rank"), [(3072, 9728, 32), (15872, 1024, 32), (1000, 2560, 8), (77, 200, 48), (600, 4096, 128)]
)
def test_the_gradients_of_an_output_equal_two_products(dtype, tokens, outs, rank):
    if not lora_kernels.runs_on(torch.device("cuda"), dtype, rank):
        pytest.skip("this GPU has too little shared memory")
    torch.manual_seed(0)
    dy, b = (torch.randn(rows, columns, device="cuda").to(dtype) for rows, columns in ((tokens, outs), (outs, rank)))
    low = torch.randn(tokens, 3 * rank, device="cuda").to(dtype)[:, rank : 2 * rank]  # of a group of three
    gradients = torch.compile(low_rank_gradients, dynamic=True)
    found, again = gradients(dy, low, b), gradients(dy, low, b)
    for ours, same, exact in zip(found, again, (dy.float() @ b.float(), dy.float().t() @ low.float()), strict=True):
        assert torch.equal(ours, same)  # a resumed run repeats it
        torch.testing.assert_close(ours.float(), exact, rtol=1e-2, atol=1e-2 * exact.abs().max().item())
