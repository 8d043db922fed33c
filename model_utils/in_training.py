"""The held-out rows during training: their loss and token accuracy, and their generated texts,
which train.py scores."""

import contextlib
import sys

import torch
from accelerate.utils import gather_object

from data_utils.batching import micro_batches
from run_utils.terminal import progress


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
    the supervised tokens of `examples`, both by the tokens' weights. The batch size does not change
    them.

    loss_fn: `(model, batch, device, cross_entropy) -> result of cross_entropy`. cross_entropy:
    `(logits, labels, weights) -> summed loss`. Raises Stopped, on all processes at once, after a
    signal."""

    def loss_and_hits(logits, labels, weights):
        hits = (logits.argmax(-1) == labels) * (1.0 if weights is None else weights)
        return torch.stack([cross_entropy(logits, labels, weights), hits.sum()])

    sums = torch.zeros(2, device=accelerator.device, dtype=torch.float64)
    batches = micro_batches(examples, batch_size, accelerator.num_processes, accelerator.process_index)
    with evaluation_mode(model):
        for batch in progress(batches, "evaluation", unit="batch", file=sys.stdout, leave=False):
            stop.check()
            sums += loss_fn(model, batch, accelerator.device, loss_and_hits)
    loss_sum, hits = accelerator.reduce(sums).tolist()
    weight_sum = sum(example.weight_sum for example in examples)
    return {"loss": loss_sum / weight_sum, "token_accuracy": hits / weight_sum}


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
