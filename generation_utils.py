"""Greedy generation of tool calls by continuous batching, for evaluate.py, infer.py and the evaluations inside train.py.

Rows live in the slots of one preallocated cache. All slots decode one token at a time, on a GPU by replaying one CUDA
graph; a row that is done leaves its slot, and waiting prompts are prefilled into the free ones, end to end without
padding, as in training.
"""

import functools
import time
from collections import deque
from typing import NamedTuple

import torch
from accelerate.utils import send_to_device
from transformers.cache_utils import Cache

from attention_utils import ISOLATED
from cuda_graphs import capturing
from data_utils.batching import Example, collate, encode_prompts
from data_utils.tool_calls import ValueWatcher

PREFILL_TOKENS = 8192  # of one forward pass over prompts, or a single longer prompt


class Generation(NamedTuple):
    text: str  # without the end token
    num_tokens: int
    finish: str  # "end": the end token; "closed": the answer was complete; "length": the budget was used up
    seconds: float  # every step's time divided by the rows in it


@torch.no_grad()
def generate(model, tokenizer, prompts, max_new_tokens, batch_tokens):
    """Greedy completions of the prompt texts, as `(index, Generation)` in the order in which rows finish.

    The cache holds `batch_tokens` tokens (one row where that alone is more). Each row stops at the end token, or when
    its ValueWatcher has seen enough. Decoding options of the model's own generation_config are not in force.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    attention = base.config._attn_implementation
    base.set_attn_implementation(ISOLATED)
    piece = functools.cache(lambda token: tokenizer.decode([token]))
    prompt_ids = encode_prompts(tokenizer, prompts)
    try:
        for group, num_slots, length in plan_groups([len(ids) for ids in prompt_ids], max_new_tokens, batch_tokens):
            slots = Slots(model, num_slots, length)
            waiting, answers = deque(group), {}  # answers: of the rows in a slot, by slot
            while waiting or answers:
                start = time.perf_counter()
                free = [slot for slot in range(num_slots) if slot not in answers]
                if waiting and len(free) >= min(len(waiting), num_slots / 4):
                    entering = take_prompts(waiting, prompt_ids, len(free))
                    answers |= {slot: Answer(index) for slot, index in zip(free, entering, strict=False)}
                    new_tokens = slots.prefill(free[: len(entering)], [prompt_ids[index] for index in entering])
                else:
                    new_tokens = slots.decode(list(answers))
                seconds = (time.perf_counter() - start) / len(answers)
                for answer in answers.values():
                    answer.seconds += seconds
                for slot, token in new_tokens.items():
                    answer = answers[slot]
                    if finish := answer.add(token, tokenizer.eos_token_id, piece, max_new_tokens):
                        del answers[slot]
                        text = tokenizer.decode(answer.tokens)
                        yield answer.index, Generation(text, len(answer.tokens), finish, answer.seconds)
    finally:
        base.set_attn_implementation(attention)


def plan_groups(lengths, max_new_tokens, batch_tokens):
    """Prompts that share a cache: `[(indices, slots, tokens a slot), ...]`, longest first.

    The rows left share one group if the cache has a slot for each. Else a group's rows need more than half of what its longest
    needs, so that little of the cache lies idle.
    """
    groups = []
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for done, index in enumerate(order):
        room = lengths[index] + max_new_tokens
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


class Answer:
    """What one row has generated so far."""

    def __init__(self, index):
        self.index = index
        self.tokens = []
        self.watcher = ValueWatcher()
        self.seconds = 0.0

    def add(self, token, eos_token_id, piece, max_new_tokens):
        """Why the row is finished with this token (Generation.finish), or None."""
        if token == eos_token_id:
            return "end"
        self.tokens.append(token)
        if self.watcher.feed(piece(token)):
            return "closed"
        return "length" if len(self.tokens) == max_new_tokens else None


class Slots:
    """A cache of `num_slots` rows of up to `length` tokens, and the model's two ways over it."""

    def __init__(self, model, num_slots, length):
        self.model = model
        self.cache = SlotCache(num_slots, length)
        self.slots = torch.arange(num_slots, device=model.device)
        self.tokens = torch.zeros_like(self.slots)  # the newest of each slot
        self.positions = torch.zeros_like(self.slots)  # where these stand
        self.graph = None

    @torch.compiler.set_stance("force_eager")  # layers compiled for training know nothing of a cache
    def prefill(self, slots, prompts):
        """Read a prompt (int32 token ids) into each of `slots`; returns `{slot: first new token}`."""
        batch = collate([Example("", ids, len(ids)) for ids in prompts], supervised=False)
        del batch["labels"]
        batch = send_to_device(batch, self.model.device)
        here = torch.tensor(slots, device=self.model.device)
        lengths = batch["cu_seq_lens_q"].diff().long()
        batch["logits_to_keep"] = lengths.cumsum(0) - 1
        self.cache.write_at = torch.repeat_interleave(here, lengths), batch["position_ids"][0]
        self.cache.shown = None
        new_tokens = self.model(**batch, past_key_values=self.cache, use_cache=True).logits[0].argmax(-1)
        self.tokens[here], self.positions[here] = new_tokens, lengths
        return dict(zip(slots, new_tokens.tolist(), strict=True))

    def decode(self, slots):
        """One more token for each of `slots`; returns `{slot: token}`. The other slots go through the motions."""
        if self.model.device.type != "cuda":
            self.step(self.positions[slots].max().item() + 1)  # attention no wider than the longest row
        elif self.graph:
            self.graph.replay()
        else:
            self.step(self.cache.length)  # what libraries set up at a first use must not be captured
            if not getattr(self.model, "is_loaded_in_8bit", False):  # such layers wait for the CPU
                self.graph = torch.cuda.CUDAGraph()
                with capturing(self.graph):
                    self.step(self.cache.length)  # captured and not run
        tokens = self.tokens.tolist()
        return {slot: tokens[slot] for slot in slots}

    @torch.compiler.set_stance("force_eager")
    def step(self, width):
        self.cache.write_at = self.slots, self.positions
        self.cache.shown = width
        logits = self.model(
            input_ids=self.tokens[:, None],
            position_ids=self.positions[:, None],
            slot_lengths=(self.positions + 1).int(),
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]
        self.tokens.copy_(logits.argmax(-1))
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
