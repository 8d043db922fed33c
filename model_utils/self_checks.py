"""Short checks of a model against plain transformers before long work: this project's fast paths
must give the same logits.

Plain transformers runs one text at a time, without a cache, with its default attention. Logits are
compared on given tokens (teacher-forced). The allowed difference is measured on the model itself,
in its dtype (see tolerance)."""

import contextlib
import inspect
import math

import numpy as np
import torch
from accelerate.utils import send_to_device

from data_utils.batching import pack
from model_utils.model_facts import length_dependent_from, pad, rope_parameters, set_attention, unwrapped
from run_utils.errors import UserError, describe_error

# The last positions of a text, whose logits are compared: errors of windows, chunks and caches add
# up to the end.
LAST = 9


@contextlib.contextmanager
def plain_transformers(model, other_kernel=False):
    """Run the model as transformers does: with its default attention, and without earlier state.
    other_kernel: with another attention, if the model has another."""
    base = unwrapped(model)
    before = base.config._attn_implementation
    chosen = base.get_correct_attn_implementation(None)
    if other_kernel:
        try:
            set_attention(base, "eager" if chosen != "eager" else "sdpa")
        except ValueError:  # this model does not have it
            set_attention(base, chosen)
    else:
        set_attention(base, chosen)
    if rope_parameters(base.config).get("rope_type") == "dynamic":
        # The model keeps the scale of its longest text until it reads a short one.
        base(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=base.device), use_cache=False)
    try:
        yield
    finally:
        set_attention(base, before)


@torch.no_grad()
# Layers compiled for training's batches would be compiled again.
@torch.compiler.set_stance("force_eager")
def plain_logits(model, texts, padding_side="right", other_kernel=False):
    """Logits of plain transformers at the last LAST positions of each text (int32 token ids),
    float32 [LAST, vocabulary] or fewer. Several texts are padded to one batch: at the right, where
    a causal model must ignore the padding, or at the left, as transformers' generate does."""
    ids, mask = pad(texts, padding_side, model.device)
    ends = [ids.shape[1] if padding_side == "left" else len(text) for text in texts]
    positions = [range(end - min(LAST, len(text)), end) for end, text in zip(ends, texts, strict=True)]
    keep = sorted(set().union(*positions))
    inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    if padding_side == "left" and "position_ids" in inspect.signature(unwrapped(model).forward).parameters:
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    with plain_transformers(model, other_kernel):
        logits = model(**inputs, logits_to_keep=torch.tensor(keep, device=model.device)).logits.float()
    place = {position: i for i, position in enumerate(keep)}
    return [logits[row, [place[position] for position in kept]] for row, kept in enumerate(positions)]


class NotFiniteError(UserError):
    """A base with NaN or infinite logits: it has no use."""


def reference_logits(model, texts):
    """Plain logits of each text alone, to compare others with: float32 [LAST, vocabulary] or fewer.
    Raises NotFiniteError if they are NaN or infinite. The base is the cause: an adapter's weights
    are finite."""
    logits = [plain_logits(model, [text])[0] for text in texts]
    for text, values in zip(texts, logits, strict=True):
        if not values.isfinite().all():
            raise NotFiniteError(
                f"the base's logits are not finite on a text of {len(text)} tokens: {model.name_or_path} has weights "
                f"that are NaN or infinite, or too large for {str(model.dtype).removeprefix('torch.')}"
            )
    return logits


def difference(logits, reference):
    """The distance of two lists of logits: the worst text's root mean square, as a share of the
    reference's spread."""
    worst = 0.0
    for values, expected in zip(logits, reference, strict=True):
        share = ((values - expected).square().mean().sqrt() / expected.std()).item()
        worst = max(worst, share if math.isfinite(share) else math.inf)
    return worst


def tolerance(model, text, reference, effect=None):
    """The distance that counts as rounding, as a share of the logits' spread: four times the
    distance between the text's plain logits, `reference`, and another attention kernel of
    transformers, within bounds by dtype. In float32 the lower bound is a hundredth of `effect`, if
    given: a distance that must not count as rounding.

    A single text, so that no fault of a batch can pass for rounding. In bf16 the kernels are 0.03
    to 0.04 apart on SmolLM2-135M (real rows, H100), as far as either is from float32, and a tenth
    of this on models of two layers."""
    other = plain_logits(model, [text], other_kernel=True)
    least, most = (1e-4, 1e-3) if model.dtype == torch.float32 else (0.03, 0.2)
    if model.dtype == torch.float32 and effect is not None:
        least = max(1e-5, effect / 100)
    return min(max(4 * difference(other, reference), least), most)


def check_vocabulary(model, texts):
    """Raise UserError if token ids are beyond the model's input embedding: the tokenizer is another
    model's."""
    # PEFT's LoRA layer on an embedding has a weight, but no num_embeddings.
    size, highest = len(model.get_input_embeddings().weight), max(int(text.max()) for text in texts)
    if highest >= size:
        raise UserError(
            f"the tokenizer beside {model.name_or_path} makes token {highest}, and the model embeds tokens below "
            f"{size} alone: it is another model's tokenizer, or has tokens that the model was not resized for"
        )


def check_training_batches(model, name, examples):
    """Raise UserError if a model's padding-free batches differ from plain transformers on each
    example.

    First, two tiny examples end to end: an edit of one must not move the other's logits. Linear
    attention, caches and kernels that ignore restarting positions fail this test, and raise no
    error themselves. Second, the run's longest example beside its shortest, both against plain
    transformers. This finds ignored chunks and windows, and rotary positions that depend on the
    longest example of a batch."""
    texts = sorted((example.input_ids for example in examples), key=len)
    longest, shortest = texts[-1], texts[0]
    try:
        reference = reference_logits(model, [longest, shortest])
        check_isolation(model)
        apart = length_dependent_from(model.config)
        if apart < len(longest):
            raise UserError(f"examples beyond {apart} tokens move the rotary positions of all")
        distance = difference(packed_logits(model, [longest, shortest]), reference)
        if not distance <= tolerance(model, shortest, reference[1:]):
            raise UserError(
                f"a batch of {len(longest)} and {len(shortest)} tokens moves logits by {distance:.1e} of their spread"
            )
    except (torch.OutOfMemoryError, NotFiniteError):
        raise
    except Exception as error:  # transformers and kernels raise anything if they cannot run
        reason = error if isinstance(error, UserError) else describe_error(error)
        apart = length_dependent_from(model.config)
        hint = f"; --max_seq_length {apart} keeps them apart" if apart < len(longest) else ""
        raise UserError(
            f"{name} with --attn_implementation {model.config._attn_implementation} lets examples of one batch see "
            f"each other, or does not run ({reason}){hint}"
        ) from None


def check_isolation(model):
    first, edited, second = (np.arange(8, dtype=np.int32) + start for start in (1, 20, 40))
    logits = [packed_logits(model, [neighbour, second])[1] for neighbour in (first, edited)]
    leak = (logits[0] - logits[1]).abs().max() / logits[0].std()
    # The leak is exactly 0 if only attention mixes tokens. Mixtures of experts regroup sums, within
    # rounding.
    if not leak < (1e-4 if model.dtype == torch.float32 else 2e-2):
        raise UserError(f"editing one moves another's logits by {leak:.1e} of their spread")


@torch.no_grad()
def packed_logits(model, texts):
    """Logits at the last positions of each text, end to end in one padding-free batch, as in
    training."""
    batch = pack(texts)
    ends = batch["cu_seq_lens_q"][1:].tolist()
    positions = [range(end - min(LAST, len(text)), end) for end, text in zip(ends, texts, strict=True)]
    batch["logits_to_keep"] = torch.tensor([position for places in positions for position in places])
    logits = model(**send_to_device(batch, model.device), use_cache=False).logits[0].float()
    return list(logits.split([len(places) for places in positions]))


def grown(text, length):
    """The text repeated up to a length: any long text shows the faults of long texts."""
    return np.resize(text, length)
