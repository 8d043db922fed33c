"""Recomputation in compiled backward passes, to keep less. Importing this loads PyTorch's
compiler."""

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.utils.checkpoint import CheckpointPolicy


class RecomputeConcatenations(CustomGraphPass):
    """A pass over the graph of forward and backward, before the compiler divides it.

    The compiler recomputes elementwise operations, but keeps concatenations. Rotary positions are
    one: queries and keys would be kept before and after them."""

    def __call__(self, graph):
        for node in graph.find_nodes(op="call_function", target=torch.ops.aten.cat.default):
            node.meta["recompute"] = CheckpointPolicy.PREFER_RECOMPUTE

    def uuid(self):  # for the compiler's cache
        return get_hash_for_files((__file__,))


def recompute_cheap_operations():
    """Let backward passes compiled from now on, in the whole process, recompute what follows from
    kept tensors without a matrix product or attention."""
    # Otherwise the inputs of the backward pass's matrix products would be kept, above all SwiGLU's
    # output: at 17,700 tokens a step of Qwen3-4B's shape, without dropout, 17 of 73 GiB.
    torch._functorch.config.ban_recompute_materialized_backward = False
    # Queries and keys: 6 GiB of these.
    torch._inductor.config.joint_custom_post_pass = RecomputeConcatenations()
