"""The gradients of the attention paths."""

import torch

from benchmarks.check_parts import attention_gradient_errors


def test_attention_has_the_gradients_of_eager_float32_and_never_cudnns_kernel():
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert attention_gradient_errors("cpu") == []
