"""Continuous batching: rows share the slots of one preallocated cache.

All slots decode one token at a time, on a GPU by replaying one CUDA graph. A finished row leaves its slot, and waiting
prompts are prefilled into the free ones, end to end without padding, as in training.
"""

import contextlib
import time
from collections import deque

import torch
from accelerate.utils import send_to_device
from transformers.cache_utils import Cache

from data_utils.batching import pack
from model_utils.attention import ISOLATED
from model_utils.cuda_graphs import capturing
from model_utils.model_facts import length_dependent_from, one_line, set_attention, unwrapped
from model_utils.self_checks import LAST, difference, grown, reference_logits, tolerance
from model_utils.token_masks import token_masks

PREFILL_TOKENS = 8192  # of one forward pass over prompts, or a single longer prompt


def problem_with_slots(model, prompt_ids, room):
    """The reason why a model cannot generate by continuous batching, in words, or None. By teacher-forced logits in slots
    against plain transformers: of the longest prompt, as long as a row may grow, of the shortest and of a half of that."""
    shortest, longest = min(prompt_ids, key=len), max(prompt_ids, key=len)
    if room > (apart := length_dependent_from(model.config)):
        return f"rows beyond {apart} tokens move the rotary positions of all"
    texts = [grown(longest, room), shortest, shortest[: max(1, len(shortest) // 2)]]
    reference = reference_logits(model, texts)
    allowed = tolerance(model, shortest, reference[1:2])
    try:
        with slots_attention(model):
            # One slot more than rows, as far along as a row can get: idle slots must not count.
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
            mine = torch.stack(logits, dim=1).float()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model raises that knows nothing of such a cache
        return one_line(error)
    distance = difference(list(mine), [right[-(forced + 1) :] for right in reference])
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
    """answers: `{index: Answer}` of the prompts to complete."""
    rooms = {index: len(prompt_ids[index]) + answer.budget for index, answer in answers.items()}
    with slots_attention(model):
        for group, num_slots, length in plan_groups(rooms, batch_tokens):
            masks = token_masks([answers[index] for index in group], num_slots, model.device)
            slots = Slots(model, num_slots, length, masks)
            waiting, running = deque(group), {}  # running: the answers of the rows in a slot, by slot
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
    """Rows that share a cache: `[(indices, slots, tokens a slot), ...]`, longest first. rooms: `{index: tokens it may need}`.

    The rows left share one group if the cache has a slot for each. Else a group's rows need more than half of what its longest
    needs, so that little of the cache lies idle.
    """
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
    """Removes from the front of `waiting` at least one and at most `most` prompts that PREFILL_TOKENS hold."""
    taken, num_tokens = [], 0
    while waiting and len(taken) < most:
        num_tokens += len(prompt_ids[waiting[0]])
        if taken and num_tokens > PREFILL_TOKENS:
            break
        taken.append(waiting.popleft())
    return taken


class Slots:
    """A cache of `num_slots` rows of up to `length` tokens, and the model's two ways over it.

    masks: TokenMasks of as many rows, or None, which leaves the choice of tokens to the model alone.
    """

    def __init__(self, model, num_slots, length, masks=None):
        self.model = model
        self.masks = masks
        self.cache = SlotCache(num_slots, length)
        self.slots = torch.arange(num_slots, device=model.device)
        self.tokens = torch.zeros_like(self.slots)  # the newest of each slot
        self.positions = torch.zeros_like(self.slots)  # where these stand
        self.logits = None  # [slots, vocabulary], from which the newest tokens were chosen
        self.graph = None

    def keep_to_grammars(self, running):
        """What comes next in each slot is to keep to its answer's grammar. running: `{slot: Answer}`."""
        if self.masks:
            self.masks.fill({slot: answer.matcher for slot, answer in running.items()})

    def choose(self, slots=slice(None)):
        """The best token, int64, at each row of `self.logits`, which stand for all slots or these."""
        logits = self.masks.apply(self.logits, slots) if self.masks else self.logits
        return logits.argmax(-1)

    @torch.compiler.set_stance("force_eager")
    def prefill(self, slots, prompts):
        """Read a prompt (int32 token ids) into each of `slots`; returns `{slot: first new token}`."""
        batch = send_to_device(pack(prompts), self.model.device)
        here = torch.tensor(slots, device=self.model.device)
        lengths = batch["cu_seq_lens_q"].diff().long()
        batch["logits_to_keep"] = lengths.cumsum(0) - 1
        self.cache.write_at = torch.repeat_interleave(here, lengths), batch["position_ids"][0]
        self.cache.shown = None
        self.logits = self.model(**batch, past_key_values=self.cache, use_cache=True).logits[0]
        new_tokens = self.choose(here)
        self.tokens[here], self.positions[here] = new_tokens, lengths
        return dict(zip(slots, new_tokens.tolist(), strict=True))

    def decode(self, slots):
        """One more token for each of `slots`; returns `{slot: token}`. The other slots go through the motions."""
        if self.model.device.type != "cuda":
            self.step(self.width(slots))
        elif self.graph:
            self.graph.replay()
        else:
            self.step(self.cache.length)  # what libraries set up at a first use must not be captured
            if not getattr(self.model, "is_loaded_in_8bit", False):  # such layers wait for the CPU
                logits = self.logits
                self.graph = torch.cuda.CUDAGraph()
                with capturing(self.graph):
                    self.step(self.cache.length)  # captured and not run
                self.logits.copy_(logits)  # where replays will write theirs
        tokens = self.tokens.tolist()
        return {slot: tokens[slot] for slot in slots}

    def width(self, slots):
        """How much of each slot attention is to see: on a CPU no more than the longest row."""
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
    """Keys and values, [slots, kv_heads, length, head_dim] a layer, allocated when first written."""

    def __init__(self, num_slots, length):
        super().__init__(layers=[])
        self.num_slots, self.length = num_slots, length
        self.keys, self.values = [], []
        self.write_at = None  # slots and positions, int64 [tokens] each, of the tokens that come next
        self.shown = None  # how much of every slot attention is to see; None for the new tokens alone

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
