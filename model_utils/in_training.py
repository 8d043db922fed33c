"""The held-out rows during training: their loss and token accuracy, also by part of the completion,
and their generated texts, which train.py scores."""

import contextlib
import functools
import math
import sys

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import gather_object

from data_utils.batching import collate, share_out
from data_utils.parts import CODES, COMPLETION, PARTS
from run_utils.terminal import progress

PART_FIGURES = ("loss", "accuracy", "entropy")


@contextlib.contextmanager
def evaluation_mode(model):
    """Turn off dropout and gradients."""
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train()


def evaluation_figures(accelerator, model, examples, *, batch_size, loss_fn, cross_entropy, stop):
    """`{"loss": mean cross-entropy, "token_accuracy": share of tokens with the highest logit}` of
    the supervised tokens of `examples`, both by the tokens' weights, and the figures by part. The
    batch size does not change them.

    loss_fn: `(model, batch, device, cross_entropy) -> result of cross_entropy`. cross_entropy:
    `(logits, labels, weights) -> summed loss`. Raises Stopped, on all processes at once, after a
    signal."""
    device = accelerator.device
    sums = torch.zeros(2 + 3 * len(PARTS), device=device, dtype=torch.float64)
    chunks = share_out(examples, batch_size, accelerator.num_processes, accelerator.process_index)
    with evaluation_mode(model):
        for chunk in progress(chunks, "evaluation", unit="batch", file=sys.stdout, leave=False):
            stop.check()
            examples_of_batch = chunk or examples[:1]  # all processes run all passes
            batch = collate(examples_of_batch, supervised=bool(chunk), completions=True)
            parts = parts_of(examples_of_batch)[batch["logits_to_keep"] + 1].to(device)
            sums += loss_fn(model, batch, device, functools.partial(batch_sums, parts, cross_entropy))
    loss_sum, hits, *by_part = accelerator.reduce(sums).tolist()
    weight_sum = sum(example.weight_sum for example in examples)
    figures = {"loss": loss_sum / weight_sum, "token_accuracy": hits / weight_sum}
    return figures | part_figures(by_part, examples)


def batch_sums(parts, cross_entropy, logits, labels, weights):
    """Sums over the tokens of a batch, float64: the loss and the hits by their weights, then for
    each of PARTS cross-entropy, hits and entropy of the prediction in nats, all at weight 1."""
    loss = cross_entropy(logits, labels, weights)
    is_hit = logits.argmax(-1) == labels
    hits = (is_hit * (1.0 if weights is None else weights)).sum()
    losses, entropies = [], []
    # A quarter at a time: less memory than cross_entropy has just used.
    size = math.ceil(len(labels) / 4) or 1
    for some_logits, some_labels in zip(logits.split(size), labels.split(size), strict=True):
        log_probs = some_logits.float().log_softmax(-1)
        losses.append(-log_probs.gather(-1, some_labels[:, None])[:, 0])
        entropies.append(torch.special.entr(log_probs.exp()).sum(-1))
    of_tokens = torch.stack([torch.cat(losses), is_hit.float(), torch.cat(entropies)], dim=1).double()
    # A product, and no index_add: its sums would depend on the order of a GPU's threads.
    by_part = F.one_hot(parts, len(PARTS)).double().T @ of_tokens
    return torch.cat([torch.stack([loss, hits]).double(), by_part.flatten()])


def parts_of(examples):
    """The code of each token's part, int64 [tokens]; the prompt's if unknown."""
    unknown = CODES["prompt"]
    arrays = [np.full(len(e.input_ids), unknown) if e.parts is None else e.parts for e in examples]
    return torch.from_numpy(np.concatenate(arrays).astype(np.int64))


def part_figures(sums, examples):
    """`{"loss_names": ..., "accuracy_names": ..., "entropy_names": ...}` of each part of the
    completions that occurs. sums: of batch_sums, over all examples."""
    counts = np.bincount(parts_of(examples), minlength=len(PARTS)).tolist()
    figures = {}
    for part in COMPLETION:
        if count := counts[CODES[part]]:
            of_part = sums[3 * CODES[part] :][:3]
            figures |= {f"{name}_{part}": total / count for name, total in zip(PART_FIGURES, of_part, strict=True)}
    return figures


def generated_texts(accelerator, model, system, rows, stop):
    """`(text, finish)` of each row, in the order of the rows, equal on all processes, which share
    the work.

    system: a System of the model inside `model`. Raises Stopped, on all processes at once, after a
    signal."""
    stop.check(wait=True)
    first, step = accelerator.process_index, accelerator.num_processes
    texts = []
    with evaluation_mode(model):
        share = rows[first::step]
        answers = progress(system.answer(share), "generation", len(share), file=sys.stdout, leave=False)
        for index, generation in answers:
            if stop.number:  # processes have different numbers of rows: they synchronise below
                break
            texts.append((first + index * step, generation.text, generation.finish))
    texts = gather_object(texts)
    stop.check(wait=True)
    return [(text, finish) for _, text, finish in sorted(texts)]
