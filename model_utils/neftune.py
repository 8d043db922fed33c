"""NEFTune: noise on the embeddings of a training batch (https://arxiv.org/abs/2310.05914)."""

import torch

from model_utils.model_facts import unwrapped


def add_noise(model, alpha):
    """Add uniform noise in +-alpha / sqrt(L d) to the input embeddings of a model in training
    mode. L: the tokens of the example, d: the width.

    In a padding-free batch L is each example's own length, from cu_seq_lens_q. transformers' hook
    would take the length of the whole batch, and add less noise. torch's default generator draws
    the noise; train.py seeds it at each step."""
    starts = None

    def note_starts(module, args, kwargs):
        nonlocal starts
        starts = kwargs.get("cu_seq_lens_q")

    def noisy(embedding, args, embedded):
        if not embedding.training or starts is None:  # generation has no starts
            return embedded
        lengths = starts.diff()
        sizes = lengths.repeat_interleave(lengths, output_size=embedded.shape[1]) * embedded.shape[2]
        noise = torch.empty_like(embedded).uniform_(-1, 1)
        return embedded + noise * (alpha * sizes.rsqrt()).to(embedded.dtype)[None, :, None]

    model.register_forward_pre_hook(note_starts, with_kwargs=True)
    unwrapped(model).get_input_embeddings().register_forward_hook(noisy)
