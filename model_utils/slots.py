"""Continuous batching: rows share the slots of one preallocated cache.

All slots decode one token at a time, on a GPU by replaying one CUDA graph. A finished row leaves
its slot. Waiting prompts are prefilled into free slots, end to end without padding, as in
training."""

import contextlib
import time
from collections import deque

import torch
from accelerate.utils import send_to_device
from transformers.cache_utils import Cache

from data_utils.batching import pack
from model_utils.attention import ISOLATED
from model_utils.cuda_graphs import capturing
from model_utils.model_facts import length_dependent_from, set_attention, unwrapped
from model_utils.self_checks import LAST, difference, grown, reference_logits, tolerance
from model_utils.token_masks import token_masks
from run_utils.errors import describe_error

PREFILL_TOKENS = 8192  # of one forward pass over prompts; a longer prompt has a pass alone


def problem_with_slots(model, prompt_ids, room):
    """A model's problem with continuous batching, in words, or None. Compares teacher-forced logits
    in slots with plain transformers on the longest prompt at a row's full length, the shortest
    prompt, and half of the shortest."""
    shortest, longest = min(prompt_ids, key=len), max(prompt_ids, key=len)
    if room > (apart := length_dependent_from(model.config)):
        return f"rows beyond {apart} tokens move the rotary positions of all"
    texts = [grown(longest, room), shortest, shortest[: max(1, len(shortest) // 2)]]
    reference = reference_logits(model, texts)
    allowed = tolerance(model, shortest, reference[1:2])
    try:
        with slots_attention(model):
            # One slot more than rows, at the last position: idle slots must not count.
            slots = Slots(model, len(texts) + 1, room)
            slots.positions.fill_(room - 1)
            forced = min(LAST, len(texts[-1])) - 1
            slots.prefill([0, 1, 2], [text[: len(text) - forced] for text in texts])
            logits = [slots.logits[: len(texts)].clone()]
            for place in range(forced, 0, -1):
                tokens = [int(text[len(text) - place]) for text in texts]
                slots.tokens[: len(texts)] = torch.tensor(tokens, device=model.device)
                slots.decode([0, 1, 2])
                logits.append(slots.logits[: len(texts)].clone())
            slot_logits = torch.stack(logits, dim=1).float()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # some models cannot use such a cache, and raise anything
        return describe_error(error)
    distance = difference(list(slot_logits), [expected[-(forced + 1) :] for expected in reference])
    if distance <= allowed:
        return None
    return f"in one cache, rows' logits would move by {distance:.1e} of their spread (rounding: {allowed:.1e})"


@contextlib.contextmanager
def slots_attention(model):
    before = unwrapped(model).config._attn_implementation
    set_attention(model, ISOLATED)
    try:
        yield
    finally:
        set_attention(model, before)


def generate_in_slots(model, prompt_ids, answers, batch_tokens):
    """`(index, Generation)` of each prompt to complete. answers: `{index: Answer}`."""
    rooms = {index: len(prompt_ids[index]) + answer.budget for index, answer in answers.items()}
    with slots_attention(model):
        for group, num_slots, length in plan_groups(rooms, batch_tokens):
            masks = token_masks([answers[index] for index in group], num_slots, model.device)
            slots = Slots(model, num_slots, length, masks)
            # running: {slot: Answer}
            waiting, running = deque(group), {}
            while waiting or running:
                start = time.perf_counter()
                free = [slot for slot in range(num_slots) if slot not in running]
                if waiting and len(free) >= min(len(waiting), num_slots / 4):
                    entering = take_prompts(waiting, prompt_ids, len(free))
                    running |= {slot: answers[index] for slot, index in zip(free, entering, strict=False)}
                    slots.keep_to_grammars(running)
                    new_tokens = slots.prefill(free[: len(entering)], [prompt_ids[index] for index in entering])
                else:
                    slots.keep_to_grammars(running)
                    new_tokens = slots.decode(list(running))
                seconds = (time.perf_counter() - start) / len(running)
                for answer in running.values():
                    answer.seconds += seconds
                for slot, token in new_tokens.items():
                    if running[slot].add(token):
                        answer = running.pop(slot)
                        yield answer.index, answer.generation()


def plan_groups(rooms, batch_tokens):
    """Rows that share a cache: `[(indices, slots, tokens per slot), ...]`, longest first. rooms:
    `{index: tokens that the row may need}`.

    The remaining rows share one group if the cache has a slot for each. Otherwise each row of a
    group needs more than half the tokens of its longest row, so that little of the cache is
    idle."""
    groups = []
    order = sorted(rooms, key=lambda index: -rooms[index])
    for done, index in enumerate(order):
        room = rooms[index]
        all_fit = groups and (len(order) - done + len(groups[-1][0])) * groups[-1][1] <= batch_tokens
        if not groups or (2 * room <= groups[-1][1] and not all_fit):
            groups.append(([], room))
        groups[-1][0].append(index)
    return [(group, max(1, min(len(group), batch_tokens // room)), room) for group, room in groups]


def take_prompts(waiting, prompt_ids, most):
    """Remove from the front of `waiting` at least one and at most `most` prompts, within
    PREFILL_TOKENS."""
    taken, num_tokens = [], 0
    while waiting and len(taken) < most:
        num_tokens += len(prompt_ids[waiting[0]])
        if taken and num_tokens > PREFILL_TOKENS:
            break
        taken.append(waiting.popleft())
    return taken


class Slots:
    """A cache of `num_slots` rows of up to `length` tokens, and the model's prefill and decoding
    with it.

    masks: TokenMasks of as many rows, or None if no answer has a grammar."""

    def __init__(self, model, num_slots, length, masks=None):
        self.model = model
        self.masks = masks
        self.cache = SlotCache(num_slots, length)
        self.slots = torch.arange(num_slots, device=model.device)
        self.tokens = torch.zeros_like(self.slots)  # the newest of each slot
        self.positions = torch.zeros_like(self.slots)  # of the newest tokens
        self.logits = None  # [slots, vocabulary], the newest tokens' logits
        self.graph = None

    def keep_to_grammars(self, running):
        """Let each slot's grammar constrain its next token. running: `{slot: Answer}`."""
        if self.masks:
            self.masks.fill({slot: answer.matcher for slot, answer in running.items()})

    def choose(self, slots=slice(None)):
        """The best token, int64, for each row of `self.logits`. slots: the slots of the rows, by
        default all."""
        logits = self.masks.apply(self.logits, slots) if self.masks else self.logits
        return logits.argmax(-1)

    @torch.compiler.set_stance("force_eager")
    def prefill(self, slots, prompts):
        """Read a prompt (int32 token ids) into each of `slots`. Returns `{slot: first new
        token}`."""
        batch = send_to_device(pack(prompts), self.model.device)
        slot_ids = torch.tensor(slots, device=self.model.device)
        lengths = batch["cu_seq_lens_q"].diff().long()
        batch["logits_to_keep"] = lengths.cumsum(0) - 1
        self.cache.write_at = torch.repeat_interleave(slot_ids, lengths), batch["position_ids"][0]
        self.cache.shown = None
        self.logits = self.model(**batch, past_key_values=self.cache, use_cache=True).logits[0]
        new_tokens = self.choose(slot_ids)
        self.tokens[slot_ids], self.positions[slot_ids] = new_tokens, lengths
        return dict(zip(slots, new_tokens.tolist(), strict=True))

    def decode(self, slots):
        """Decode one more token for each of `slots`. Returns `{slot: token}`. The other slots
        decode without effect."""
        if self.model.device.type != "cuda":
            self.step(self.width(slots))
        elif self.graph:
            self.graph.replay()
        else:
            # A capture must not include libraries' setup.
            self.step(self.cache.length)
            if not getattr(self.model, "is_loaded_in_8bit", False):  # int8 layers wait for the CPU
                logits = self.logits
                self.graph = torch.cuda.CUDAGraph()
                with capturing(self.graph):
                    self.step(self.cache.length)  # captured, not run
                self.logits.copy_(logits)  # replays write to this tensor
        tokens = self.tokens.tolist()
        return {slot: tokens[slot] for slot in slots}

    def width(self, slots):
        """The number of a slot's tokens for attention: on a CPU no more than the longest row
        has."""
        return self.cache.length if self.model.device.type == "cuda" else self.positions[slots].max().item() + 1

    @torch.compiler.set_stance("force_eager")
    def step(self, width):
        self.cache.write_at = self.slots, self.positions
        self.cache.shown = width
        self.logits = self.model(
            input_ids=self.tokens[:, None],
            position_ids=self.positions[:, None],
            slot_lengths=(self.positions + 1).int(),
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]
        self.tokens.copy_(self.choose())
        self.positions.add_(1).clamp_(max=self.cache.length - 1)


class SlotCache(Cache):
    """Keys and values, [slots, kv_heads, length, head_dim] per layer, allocated when first
    written."""

    def __init__(self, num_slots, length):
        super().__init__(layers=[])
        self.num_slots, self.length = num_slots, length
        self.keys, self.values = [], []
        # Slots and positions of the next tokens, int64 [tokens] each.
        self.write_at = None
        # The number of each slot's tokens for attention; None: only the new tokens.
        self.shown = None

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        if layer_idx == len(self.keys):
            for stored, states in ((self.keys, key_states), (self.values, value_states)):
                stored.append(states.new_zeros(self.num_slots, states.shape[1], self.length, states.shape[3]))
        slots, positions = self.write_at
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        keys[slots, :, positions] = key_states.transpose(1, 2).flatten(0, 1)
        values[slots, :, positions] = value_states.transpose(1, 2).flatten(0, 1)
        if self.shown is None:
            return key_states, value_states
        return keys[:, :, : self.shown], values[:, :, : self.shown]
