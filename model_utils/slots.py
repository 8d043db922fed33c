"""Continuous batching: rows share the slots of one preallocated cache.

All slots decode one token at a time, on a GPU by replaying one CUDA graph. A finished row leaves
its slot. Waiting prompts are prefilled into free slots, end to end without padding, as in
training.

A GPU does not wait for the CPU: a forward pass runs while the CPU reads the newest tokens, and
fills the masks of grammars for the choice after that pass. A pass over prompts runs while threads
compile their grammars."""

import contextlib
import itertools
import time
from collections import deque

import numpy as np
import torch
from accelerate.utils import send_to_device
from transformers.cache_utils import Cache

from data_utils.batching import pack
from model_utils.attention import ISOLATED, has_varlen_kernel
from model_utils.cuda_graphs import capturing
from model_utils.fused_modules import fused_modules, kernels
from model_utils.model_facts import length_dependent_from, set_attention, unwrapped
from model_utils.self_checks import LAST, difference, grown, reference_logits, tolerance
from model_utils.token_masks import token_masks
from run_utils.errors import describe_error

PREFILL_TOKENS = 8192  # of one forward pass over prompts; a longer prompt has a pass alone


@torch.no_grad()
def problem_with_slots(model, prompt_ids, room, fused):
    """A model's problem with continuous batching, in words, or None. Compares teacher-forced logits
    in slots with plain transformers on the longest prompt at a row's full length, the shortest
    prompt, and half of the shortest. fused: see Slots."""
    shortest, longest = min(prompt_ids, key=len), max(prompt_ids, key=len)
    if room > (apart := length_dependent_from(model.config)):
        return f"rows beyond {apart} tokens move the rotary positions of all"
    texts = [grown(longest, room), shortest, shortest[: max(1, len(shortest) // 2)]]
    reference = reference_logits(model, texts)
    allowed = tolerance(model, shortest, reference[1:2])
    try:
        with slots_modules(model, fused):
            # One slot more than rows, at the last position: idle slots must not count.
            slots = Slots(model, len(texts) + 1, room, fused=fused)
            slots.positions.fill_(room - 1)
            forced = min(LAST, len(texts[-1])) - 1
            logits = [slots.prefill([0, 1, 2], [text[: len(text) - forced] for text in texts])]
            for place in range(forced, 0, -1):
                tokens = [int(text[len(text) - place]) for text in texts]
                slots.tokens[: len(texts)] = torch.tensor(tokens, device=model.device)
                slots.forward(room)
                logits.append(slots.logits[: len(texts)].clone())
                slots.advance()
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
def slots_modules(model, fused):
    """Use the attention over slots and, if `fused`, the fused modules."""
    before = unwrapped(model).config._attn_implementation
    set_attention(model, ISOLATED)
    try:
        with fused_modules(model) if fused else contextlib.nullcontext():
            yield
    finally:
        set_attention(model, before)
        if unwrapped(model).device.type == "cuda":
            torch.cuda.synchronize()  # a last pass of finished rows may still run in the graph's memory


def can_fuse(model):
    """Whether Triton's kernels may run this model. In float32 they are left out, to add sums in
    transformers' order."""
    return kernels is not None and has_varlen_kernel(model.device, model.dtype)


def generate_in_slots(model, prompt_ids, answers, batch_tokens, fused):
    """`(index, Generation)` of each prompt to complete. answers: `{index: Answer}`. fused: see
    Slots."""
    rooms = {index: len(prompt_ids[index]) + answer.budget for index, answer in answers.items()}
    with slots_modules(model, fused):
        for group, num_slots, length in plan_groups(rooms, batch_tokens):
            masks = token_masks([answers[index] for index in group], num_slots, model)
            slots = Slots(model, num_slots, length, masks, fused)
            # running: {slot: Answer}
            waiting, running = deque(group), {}
            start = time.perf_counter()
            while waiting or running:
                new_tokens = slots.newest(running)
                if running:
                    seconds, start = time.perf_counter() - start, time.perf_counter()
                    for answer in running.values():
                        answer.seconds += seconds / len(running)
                finished = [slot for slot, token in new_tokens.items() if running[slot].add(token)]
                if finished:
                    slots.release(finished)
                for answer in [running.pop(slot) for slot in finished]:
                    yield answer.index, answer.generation()
                if running:
                    slots.keep_to_grammars(running)
                    slots.decode(list(running))
                free = [slot for slot in range(num_slots) if slot not in running]
                for indices in plan_prefill(waiting, prompt_ids, len(free), num_slots):
                    new = {free.pop(0): answers[index] for index in indices}
                    slots.prefill(new, [prompt_ids[index] for index in indices])
                    running |= new


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


def plan_prefill(waiting, prompt_ids, num_free, num_slots):
    """Remove prompts from the front of `waiting` for the free slots: `[indices of a pass, ...]`.

    A pass has at most PREFILL_TOKENS, or one prompt. A pass is worth its time if it is as full as
    that, or has all waiting prompts, or a quarter of the slots. Other prompts wait for more free
    slots."""
    passes = []
    while waiting and num_free:
        count, num_tokens = 0, 0
        for index in itertools.islice(waiting, num_free):
            num_tokens += len(prompt_ids[index])
            if count and num_tokens > PREFILL_TOKENS:
                break
            count += 1
        if num_tokens < PREFILL_TOKENS and count < min(len(waiting), num_slots / 4):
            break
        passes.append([waiting.popleft() for _ in range(count)])
        num_free -= count
    return passes


class Slots:
    """A cache of `num_slots` rows of up to `length` tokens, and the model's prefill and decoding
    with it.

    masks: TokenMasks of as many rows, or None if no answer has a grammar. fused: whether Triton's
    kernels write the cache and attend to it."""

    def __init__(self, model, num_slots, length, masks=None, fused=False):
        self.model = model
        self.on_gpu = model.device.type == "cuda"
        self.masks = masks
        self.fused = fused
        self.cache = SlotCache(num_slots, length, fused)
        self.slots = torch.arange(num_slots, device=model.device)
        self.tokens = torch.zeros_like(self.slots)  # the newest of each slot
        self.positions = torch.zeros_like(self.slots)  # of the newest tokens
        # A copy of the tokens. A GPU writes pinned memory without a wait.
        self.tokens_on_cpu = torch.zeros(num_slots, dtype=torch.int64, pin_memory=True) if self.on_gpu else self.tokens
        self.copied = torch.cuda.Event() if self.on_gpu else None
        self.logits = None  # [slots, vocabulary], the newest tokens' logits
        self.graph = None

    def newest(self, slots):
        """`{slot: newest token}`. On a GPU the next forward pass starts here, and runs beside the
        CPU's work."""
        if not slots:
            return {}
        if self.on_gpu:
            self.tokens_on_cpu.copy_(self.tokens, non_blocking=True)
            self.copied.record()
            self.forward(self.cache.length)
            self.copied.synchronize()
        tokens = self.tokens_on_cpu.tolist()
        return {slot: tokens[slot] for slot in slots}

    def keep_to_grammars(self, answers):
        """Let each slot's grammar constrain its next token. answers: `{slot: Answer}`."""
        if self.masks:
            self.masks.fill({slot: answer.matcher for slot, answer in answers.items()})

    def choose(self, logits, slots=slice(None)):
        """The best token, int64, for each row of logits. slots: the slots of the rows, by default
        all."""
        return (self.masks.apply(logits, slots) if self.masks else logits).argmax(-1)

    @torch.compiler.set_stance("force_eager")
    def prefill(self, answers, prompts):
        """Read a prompt (int32 token ids) into the slot of each answer, and choose its first new
        token. answers: `{slot: Answer}`; without masks, slots are enough."""
        slots = list(answers)
        lengths = np.array([len(prompt) for prompt in prompts])
        batch = pack(prompts) | {
            "slots": torch.tensor(slots),
            "lengths": torch.from_numpy(lengths),
            "slot_of_token": torch.from_numpy(np.repeat(slots, lengths)),
            "logits_to_keep": torch.from_numpy(lengths.cumsum() - 1),
        }
        # Without a wait for the GPU's earlier work.
        batch = send_to_device(batch, self.model.device, non_blocking=True)
        slots, lengths = batch.pop("slots"), batch.pop("lengths")
        self.cache.write_at = batch.pop("slot_of_token"), batch["position_ids"][0]
        self.cache.shown = None
        logits = self.model(**batch, past_key_values=self.cache, use_cache=True).logits[0]
        self.keep_to_grammars(answers)
        self.tokens[slots], self.positions[slots] = self.choose(logits, slots), lengths
        return logits

    def decode(self, slots):
        """Choose the next token of each of `slots`. The other slots decode without effect."""
        if not self.on_gpu:
            # Attention over no more tokens than the longest row has.
            self.forward(self.positions[slots].max().item() + 1)
        self.tokens.copy_(self.choose(self.logits))
        self.advance()

    def release(self, slots):
        """Let slots without a row attend to one token, which costs least."""
        self.positions[torch.tensor(slots).to(self.positions.device, non_blocking=True)] = 0

    def advance(self):
        # A slot without a row stays at position 0.
        self.positions.add_(self.positions > 0).clamp_(max=self.cache.length - 1)

    def forward(self, width):
        """Compute the newest tokens' logits. width: the number of a slot's tokens for attention; on
        a GPU always the cache's length."""
        if self.graph:
            return self.graph.replay()
        # A capture must not include libraries' setup.
        self.logits = self.newest_logits(width)
        if self.on_gpu and not getattr(self.model, "is_loaded_in_8bit", False):  # int8 layers wait for the CPU
            logits, self.graph = self.logits, torch.cuda.CUDAGraph()
            with capturing(self.graph):
                self.logits = self.newest_logits(width)  # captured, not run
            self.logits.copy_(logits)  # replays write to this tensor

    @torch.compiler.set_stance("force_eager")
    def newest_logits(self, width):
        self.cache.write_at = self.slots, self.positions
        self.cache.shown = width
        return self.model(
            input_ids=self.tokens[:, None],
            position_ids=self.positions[:, None],
            slot_lengths=(self.positions + 1).int(),
            decode_kernel=kernels.decode if self.fused else None,
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]


class SlotCache(Cache):
    """Keys and values, [slots, kv_heads, length, head_dim] per layer, allocated when first
    written. fused: see Slots."""

    def __init__(self, num_slots, length, fused):
        super().__init__(layers=[])
        self.num_slots, self.length, self.fused = num_slots, length, fused
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
        new_keys, new_values = (states.transpose(1, 2).flatten(0, 1) for states in (key_states, value_states))
        if self.fused:
            kernels.write(new_keys, new_values, keys, values, slots, positions)
        else:
            keys[slots, :, positions], values[slots, :, positions] = new_keys, new_values
        if self.shown is None:
            return key_states, value_states
        return keys[:, :, : self.shown], values[:, :, : self.shown]
