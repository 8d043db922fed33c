"""Short checks of a model against plain transformers, before anything long: the fast paths here must say what it says.

Plain is one text at a time, without cache, by the attention that transformers gives the model by itself. Logits are
compared on given tokens (teacher-forced). How far two right ways may differ is measured on the model at hand, in its
dtype: as far as plain transformers differs from itself when the same text is padded.
"""

import contextlib
import inspect
import math

import numpy as np
import torch
from accelerate.utils import send_to_device
from transformers.utils import logging as transformers_logging

from data_utils.batching import Example, collate
from run_utils.arguments import UserError

LAST = 9  # positions of a text at whose logits the checks look: errors of windows, chunks and caches add up to the end


def one_line(error):
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}{'...' * (len(text) > 300)}"


def unwrapped(model):
    """The transformers model inside a PEFT model, with the adapter's layers in it; any other model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def num_positions(config):
    """How many tokens the model has positions for, prompt and answer together; infinity where it needs none."""
    text_config = config.get_text_config(decoder=True)
    for name in ("max_position_embeddings", "max_seq_len"):  # the latter is MPT's
        value = getattr(text_config, name, None)
        if isinstance(value, int) and value > 0:
            # Scaled rotary positions reach further, whether the number above says so (as in Llama 3) or not (as in Vicuna).
            rope = rope_parameters(config)
            try:
                factor = float(rope.get("factor") or 1)
                return max(value, int((rope.get("original_max_position_embeddings") or value) * factor))
            except (AttributeError, OverflowError, TypeError, ValueError):
                raise UserError(f"the model's config.json has rope_parameters of other types: {rope}") from None
    return math.inf


def rope_parameters(config):
    return getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}


def length_dependent_from(config):
    """From how many tokens on a text's rotary positions move those of its neighbours in a batch, and of itself as it grows, by
    the variants that depend on the longest position; infinity in other models. By the configuration, since in bf16 the shift
    may be no larger than rounding."""
    rope = rope_parameters(config)
    if rope.get("rope_type") not in ("dynamic", "longrope"):
        return math.inf
    text_config = config.get_text_config(decoder=True)
    return rope.get("original_max_position_embeddings") or text_config.max_position_embeddings


def set_attention(model, implementation):
    """Switch the attention implementation and return the one in force: models of an older make keep their own."""
    base = unwrapped(model)
    if base.config._attn_implementation != implementation:
        verbosity = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()  # it warns of models that keep their own
        try:
            base.set_attn_implementation(implementation)
        finally:
            transformers_logging.set_verbosity(verbosity)
    return base.config._attn_implementation


@contextlib.contextmanager
def plain_transformers(model, other_kernel=False):
    """Within, the model is as transformers runs it by itself: with the attention that it chooses, and fresh. With
    `other_kernel` it is another one, where the model has one."""
    base = unwrapped(model)
    before = base.config._attn_implementation
    chosen = base.get_correct_attn_implementation(None)
    if other_kernel:
        try:
            set_attention(base, "eager" if chosen != "eager" else "sdpa")
        except ValueError:  # this model has no such one
            set_attention(base, chosen)
    else:
        set_attention(base, chosen)
    if rope_parameters(base.config).get("rope_type") == "dynamic":
        # It keeps the scale of the longest text that it has met since a short one.
        base(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=base.device), use_cache=False)
    try:
        yield
    finally:
        set_attention(base, before)


def pad(texts, side, device):
    """Token ids (int32 arrays) as one batch, padded at the "left" or the "right": ids and mask, int64 [texts, longest]."""
    width = max(map(len, texts))
    ids = torch.zeros(len(texts), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        place = slice(width - len(text), width) if side == "left" else slice(len(text))
        ids[row, place] = torch.from_numpy(text.astype(np.int64))
        mask[row, place] = 1
    return ids.to(device), mask.to(device)


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # layers compiled for training's batches would be compiled again
def plain_logits(model, texts, padding_side="right", other_kernel=False):
    """Logits of plain transformers at the last LAST positions of each text (int32 token ids), float32 [LAST, vocabulary] or
    fewer. Several texts are padded to one batch: at the right, where a causal model must not see the padding, or at the
    left, as transformers' generate wants them."""
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
    """A base that cannot be used in any way."""


def reference_logits(model, texts):
    """Plain logits of each text alone, which others are compared with: float32 [LAST, vocabulary] or fewer. Raises
    NotFiniteError if they are NaN or infinite, as an adapter's weights are not."""
    logits = [plain_logits(model, [text])[0] for text in texts]
    for text, values in zip(texts, logits, strict=True):
        if not values.isfinite().all():
            raise NotFiniteError(
                f"the base's logits are not finite on a text of {len(text)} tokens: {model.name_or_path} has weights that are "
                f"NaN or infinite, or too large for {str(model.dtype).removeprefix('torch.')}"
            )
    return logits


def difference(logits, reference):
    """How far two lists of logits are apart, the worst text's root mean square as a share of the spread of the reference."""
    worst = 0.0
    for mine, right in zip(logits, reference, strict=True):
        share = ((mine - right).square().mean().sqrt() / right.std()).item()
        worst = max(worst, share if math.isfinite(share) else math.inf)
    return worst


def tolerance(model, text, reference, effect=None):
    """The distance that counts as rounding, as a share of the logits' spread: four times what another attention kernel of
    transformers' own moves the text's plain logits, `reference`, within bounds that the dtype sets. In float32 the lower
    bound is a hundredth of `effect`, the distance of what must not be taken for rounding, if it is given.

    One text alone, so that no fault of a batch can pass for rounding. In bf16 the kernels are 0.03 to 0.04 apart on
    SmolLM2-135M (real rows, H100), as far as each is from float32, and a tenth of that on models of two layers.
    """
    other = plain_logits(model, [text], other_kernel=True)
    least, most = (1e-4, 1e-3) if model.dtype == torch.float32 else (0.03, 0.2)
    if model.dtype == torch.float32 and effect is not None:
        least = max(1e-5, effect / 100)
    return min(max(4 * difference(other, reference), least), most)


def check_vocabulary(model, texts):
    """Refuse, as UserError, token ids beyond the model's input embedding: its tokenizer is another model's."""
    # By its weight: PEFT's LoRA layer on an embedding has no num_embeddings.
    size, highest = len(model.get_input_embeddings().weight), max(int(text.max()) for text in texts)
    if highest >= size:
        raise UserError(
            f"the tokenizer beside {model.name_or_path} makes token {highest}, and the model embeds tokens below {size} alone: "
            "it is another model's tokenizer, or has tokens that the model was not resized for"
        )


def check_training_batches(model, name, examples):
    """Refuse, as UserError, a model whose padding-free batches are not what plain transformers makes of each example.

    First two tiny examples end to end: editing one must not move the other's logits. Linear attention, caches and kernels
    that ignore restarting positions fail this without a word. Then the run's longest example beside its shortest, both
    against plain transformers: that finds chunks and windows that were ignored, and rotary positions that depend on the
    longest example of a batch.
    """
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
    except Exception as error:  # what transformers and kernels raise that know that they cannot
        reason = error if isinstance(error, UserError) else one_line(error)
        apart = length_dependent_from(model.config)
        hint = f"; --max_seq_length {apart} keeps them apart" if apart < len(longest) else ""
        raise UserError(
            f"{name} with --attn_implementation {model.config._attn_implementation} lets examples of one batch see each "
            f"other, or does not run ({reason}){hint}"
        ) from None


def check_isolation(model):
    first, edited, second = (np.arange(8, dtype=np.int32) + start for start in (1, 20, 40))
    logits = [packed_logits(model, [neighbour, second])[1] for neighbour in (first, edited)]
    leak = (logits[0] - logits[1]).abs().max() / logits[0].std()
    # Exactly 0 where attention alone mixes tokens; mixtures of experts regroup their sums within rounding.
    if not leak < (1e-4 if model.dtype == torch.float32 else 2e-2):
        raise UserError(f"editing one moves another's logits by {leak:.1e} of their spread")


@torch.no_grad()
def packed_logits(model, texts):
    """Logits at the last positions of each text, as training sees them: end to end in one padding-free batch."""
    batch = collate([Example("", text, max(1, len(text) - LAST)) for text in texts])
    ends = batch["cu_seq_lens_q"][1:].tolist()
    positions = [range(end - min(LAST, len(text)), end) for end, text in zip(ends, texts, strict=True)]
    batch["logits_to_keep"] = torch.tensor([position for places in positions for position in places])
    del batch["labels"]
    logits = model(**send_to_device(batch, model.device), use_cache=False).logits[0].float()
    return list(logits.split([len(places) for places in positions]))
