"""Continuous batching: rows share the slots of one preallocated cache.

All slots decode together. With few slots, a pass verifies drafts of several tokens (drafts.py). A
finished row leaves its slot. Waiting prompts are prefilled into free slots, end to end without
padding, as in training.

A pass has two parts, on a GPU one CUDA graph each: choose the next tokens by the last logits, and
compute the logits after them. A GPU does not wait for the CPU: the second part runs while the CPU
reads the chosen tokens, and fills the masks of grammars for the next choice. A pass over prompts
runs while threads compile their grammars."""

import contextlib
import time
from collections import deque

import numpy as np
import torch
from accelerate.utils import send_to_device

from data_utils.batching import end_to_end, pack
from model_utils.attention import ISOLATED, has_varlen_kernel
from model_utils.cuda_graphs import capturing
from model_utils.drafts import DRAFTS, look_up, num_agreed, num_drafts
from model_utils.fused_modules import can_keep_tokens, fused_modules, kernels
from model_utils.model_facts import length_dependent_from, set_attention, unwrapped
from model_utils.self_checks import LAST, difference, grown, reference_logits, tolerance
from model_utils.slot_cache import SlotCache
from model_utils.slot_plans import common_beginning, plan_groups, plan_prefill
from model_utils.token_masks import token_masks
from run_utils.errors import describe_error


@torch.no_grad()
def problem_with_slots(model, prompt_ids, room, fused):
    """A model's problem with continuous batching, in words, or None. Compares teacher-forced logits
    in slots with plain transformers on the longest prompt at a row's full length, the shortest
    prompt, and half of the shortest; the last two share their beginning. fused: see Slots."""
    shortest, longest = min(prompt_ids, key=len), max(prompt_ids, key=len)
    if room > (apart := length_dependent_from(model.config)):
        return f"rows beyond {apart} tokens move the rotary positions of all"
    texts = [grown(longest, room), shortest, shortest[: max(1, len(shortest) // 2)]]
    reference = reference_logits(model, texts)
    allowed = tolerance(model, shortest, reference[1:2])
    try:
        with slots_modules(model, fused):
            # One slot more than rows, at the last position: idle slots must not count.
            slots, drafting = (Slots(model, len(texts) + 1, room, fused=fused, drafts=count) for count in (0, DRAFTS))
            slots.cache, slots.lengths = drafting.cache, drafting.lengths
            slots.lengths.fill_(room)
            forced = min(LAST, len(texts[-1])) - 1
            prompts = [text[: len(text) - forced] for text in texts]
            slots.prefill([0], prompts[:1])
            shared = len(prompts[2]) // 2
            slots.share([1, 2], prompts[2][:shared])
            slots.prefill([1, 2], [prompt[shared:] for prompt in prompts[1:]])
            logits = [slots.logits[: len(texts)].clone()]
            tokens = torch.from_numpy(np.stack([text[len(text) - forced :] for text in texts])).to(model.device)
            # One at a time, and the last ones together, as drafts are.
            together = forced // 2
            passes = [*((slots, token) for token in tokens[:, : forced - together].split(1, dim=1))]
            for used, given in [*passes, (drafting, tokens[:, forced - together :])]:
                used.tokens[: len(texts), : given.shape[1]] = given
                used.advance(1)
                used.forward()
                logits.append(used.logits[: len(texts), : given.shape[1]].clone())
            slot_logits = torch.cat(logits, dim=1).float()
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
            drafts = num_drafts(num_slots, model.device)
            masks = token_masks([answers[index] for index in group], num_slots, model, drafts)
            slots = Slots(model, num_slots, length, masks, fused, drafts)
            shared = common_beginning([prompt_ids[index] for index in group])
            slots.share(range(num_slots), prompt_ids[group[0]][:shared])
            prompts = {index: prompt_ids[index][shared:] for index in group}
            # running: {slot: Answer}
            waiting, running = deque(group), {}
            start = time.perf_counter()
            while waiting or running:
                new_tokens = slots.newest(running)
                if running:
                    seconds, start = time.perf_counter() - start, time.perf_counter()
                    for answer in running.values():
                        answer.seconds += seconds / len(running)
                # Tokens after the one that finishes a row are left.
                finished = [slot for slot, tokens in new_tokens.items() if any(map(running[slot].add, tokens))]
                if finished:
                    slots.release(finished)
                for answer in [running.pop(slot) for slot in finished]:
                    yield answer.index, answer.generation()
                if running and not slots.on_gpu:  # a GPU has begun
                    slots.forward()
                free = [slot for slot in range(num_slots) if slot not in running]
                for indices in plan_prefill(waiting, prompts, len(free), num_slots):
                    new = {free.pop(0): answers[index] for index in indices}
                    slots.prefill(list(new), [prompts[index] for index in indices])
                    running |= new
                slots.keep_to_grammars(running)


class Slots:
    """A cache of `num_slots` rows of up to `length` tokens, and the model's prefill and decoding
    with it.

    masks: TokenMasks of as many rows and drafts, or None if no answer has a grammar. fused: whether
    Triton's kernels write the cache and attend to it. drafts: how many a pass verifies for each
    slot."""

    def __init__(self, model, num_slots, length, masks=None, fused=False, drafts=0):
        self.model = model
        self.on_gpu = model.device.type == "cuda"
        self.length = length
        self.masks = masks
        self.keeps_tokens = can_keep_tokens(model)
        self.fused = fused
        self.drafts = drafts
        self.cache = SlotCache(num_slots, length + drafts, fused)  # drafts may exceed a row's end
        self.slots = torch.arange(num_slots, device=model.device)
        self.steps = torch.arange(1 + drafts, device=model.device)
        self.lengths = torch.zeros_like(self.slots)  # of the rows, newest tokens included; 0 without a row
        # Of each row, the prompt and the answer. Rejected tokens follow.
        self.history = self.slots.new_zeros(num_slots, length + drafts + 1)
        # For the CPU: how many tokens were chosen, these and rejected ones, the newest and drafts.
        self.report = self.slots.new_zeros(num_slots, 1 + 2 * (1 + drafts))
        self.counts, self.chosen, self.tokens = self.report.split([1, 1 + drafts, 1 + drafts], dim=1)
        # A GPU writes pinned memory without a wait.
        self.report_on_cpu = torch.zeros_like(self.report, device="cpu", pin_memory=self.on_gpu)
        self.copied = torch.cuda.Event() if self.on_gpu else None
        self.shared = 0  # tokens at the beginning of all rows, see share
        self.width = 1 + drafts  # tokens of a slot in the next pass
        self.logits = None  # [slots, width, vocabulary], after the newest tokens and drafts
        self.choose_graph, self.forward_graph = None, None

    def newest(self, slots):
        """`{slot: its new tokens}`. On a GPU the next forward pass starts here, and runs beside the
        CPU's work."""
        if not slots:
            return {}
        self.choose()
        self.report_on_cpu.copy_(self.report, non_blocking=True)
        if self.on_gpu:
            self.copied.record()
            self.forward()
            self.copied.synchronize()
        report = self.report_on_cpu.tolist()
        return {slot: report[slot][1 : 1 + report[slot][0]] for slot in slots}

    def keep_to_grammars(self, answers):
        """Let each slot's grammar constrain its next tokens. answers: `{slot: Answer}`."""
        if self.masks:
            tokens = self.report_on_cpu[:, 2 + self.drafts :]
            self.masks.fill({slot: answer.matcher for slot, answer in answers.items()}, tokens)

    def share(self, slots, beginning):
        """Read the beginning (int32 token ids) of all later prompts of these slots, once. The slots
        have no rows yet. From now on, prefill takes the rest of a prompt."""
        self.shared, slots = 0, list(slots)
        if len(beginning):
            self.prefill(slots[:1], [beginning])
            self.release(slots[:1])
            for states in [self.history[:, None], *self.cache.keys, *self.cache.values]:
                states[slots, :, : len(beginning)] = states[slots[0], :, : len(beginning)].clone()
        self.shared = len(beginning)

    @torch.compiler.set_stance("force_eager")
    def prefill(self, slots, prompts):
        """Read a prompt (int32 token ids), or what follows its shared beginning, into each of
        `slots`: the next choice is its first new token."""
        lengths = np.array([len(prompt) for prompt in prompts])
        ends = lengths + self.shared
        batch = pack(prompts) | {
            "slots": torch.tensor(slots),
            "lengths": torch.from_numpy(ends),
            "slot_of_token": torch.from_numpy(np.repeat(slots, lengths)),
            "tokens_to_keep" if self.keeps_tokens else "logits_to_keep": torch.from_numpy(lengths.cumsum() - 1),
        }
        batch["position_ids"] += self.shared
        if self.shared:
            positions, batch["cu_seq_lens_k"] = end_to_end(ends)
            batch["max_length_k"] = int(ends.max())
            batch["read_at"] = torch.from_numpy(np.repeat(slots, ends)), positions
        # Without a wait for the GPU's earlier work.
        batch = send_to_device(batch, self.model.device, non_blocking=True)
        slots, lengths = batch.pop("slots"), batch.pop("lengths")
        self.cache.write_at = batch.pop("slot_of_token"), batch["position_ids"][0]
        self.cache.read_at = batch.pop("read_at", None)
        self.cache.shown = None
        logits = self.model(**batch, past_key_values=self.cache, use_cache=True).logits[0]
        if self.logits is None:
            self.logits = logits.new_zeros(len(self.slots), self.width, logits.shape[-1])
        self.logits[slots, 0], self.lengths[slots] = logits, lengths
        self.history[self.cache.write_at] = batch["input_ids"][0]
        self.tokens[slots, 1:] = -1  # no choice: a prompt's logits are after its last token alone

    def release(self, slots):
        """Let slots without a row attend to few tokens, which costs least."""
        self.lengths[torch.tensor(slots).to(self.lengths.device, non_blocking=True)] = 0

    def advance(self, counts):
        # A slot without a row stays empty. A finished row may have chosen tokens beyond its end.
        self.lengths.add_(counts * (self.lengths > 0)).clamp_(max=self.length)

    def choose(self):
        """Choose each slot's next tokens by the last logits, and look up drafts of those after
        them. Those of a slot without a row have no effect."""
        if not self.forward_graph:  # its logits have the address for a graph
            return self.choose_tokens()
        if not self.choose_graph:
            self.choose_graph = torch.cuda.CUDAGraph()
            with capturing(self.choose_graph):
                self.choose_tokens()  # captured, not run
        self.choose_graph.replay()

    def choose_tokens(self):
        logits = self.masks.apply(self.logits) if self.masks else self.logits
        chosen = logits.argmax(-1)
        width = chosen.shape[1]
        counts = 1 + num_agreed(chosen, self.tokens[:, 1:width])
        self.counts[:, 0], self.chosen[:, :width] = counts, chosen
        self.tokens[:, :1] = chosen.gather(1, counts[:, None] - 1)
        self.history.scatter_(1, self.lengths.clamp(min=self.shared)[:, None] + self.steps[:width], chosen)
        self.advance(counts)
        if self.drafts:
            self.tokens[:, 1:], sure = look_up(self.history, (self.lengths - 1).clamp(min=0), self.drafts)
            if not self.on_gpu:  # a CPU's time grows with each token
                self.width = 1 + self.drafts if sure.any() else 1

    def forward(self):
        """Compute the logits after the newest tokens and their drafts."""
        if self.forward_graph:
            return self.forward_graph.replay()
        # A capture must not include libraries' setup.
        self.logits = self.next_logits()
        if self.on_gpu and not getattr(self.model, "is_loaded_in_8bit", False):  # int8 layers wait for the CPU
            logits, self.forward_graph = self.logits, torch.cuda.CUDAGraph()
            with capturing(self.forward_graph):
                self.logits = self.next_logits()  # captured, not run
            self.logits.copy_(logits)  # replays write to this tensor

    @torch.compiler.set_stance("force_eager")
    def next_logits(self):
        # Slots without a row write behind the shared tokens, and attend to few tokens.
        positions = (self.lengths - 1).clamp(min=self.shared)[:, None] + self.steps[: self.width]
        ends = (self.lengths - 1).clamp(min=0) + self.width
        self.cache.write_at = self.slots.repeat_interleave(self.width), positions.flatten()
        # A CPU attends to no more tokens than the longest row has.
        self.cache.shown = self.cache.length if self.on_gpu else ends.max().item()
        return self.model(
            input_ids=self.tokens[:, : self.width],
            position_ids=positions.clamp(max=self.length - 1),
            slot_lengths=ends.int(),
            decode_kernel=kernels.decode if self.fused else None,
            past_key_values=self.cache,
            use_cache=True,
        ).logits
