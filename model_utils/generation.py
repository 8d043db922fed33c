"""Greedy generation of tool calls by continuous batching, in evaluate.py, infer.py and the evaluations of train.py.

Rows live in the slots of one preallocated cache. All slots decode one token at a time, on a GPU by replaying one CUDA
graph; a row that is done leaves its slot, and waiting prompts are prefilled into the free ones, end to end without
padding, as in training.
"""

import contextlib
import functools
import time
import weakref
from collections import deque
from typing import NamedTuple

import numpy as np
import torch
from accelerate.utils import send_to_device
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import Cache

from data_utils.batching import Example, collate, decode_answer, decode_tokens, encode_prompts
from model_utils.attention import ISOLATED
from model_utils.cuda_graphs import capturing
from model_utils.grammar import TokenMasks, compile_grammar, new_matcher
from model_utils.self_checks import (
    LAST,
    check_vocabulary,
    difference,
    length_dependent_from,
    num_positions,
    one_line,
    pad,
    plain_logits,
    plain_transformers,
    reference_logits,
    set_attention,
    tolerance,
    unwrapped,
)
from run_utils.arguments import UserError, say

PREFILL_TOKENS = 8192  # of one forward pass over prompts, or a single longer prompt


class Generation(NamedTuple):
    text: str  # without end and padding tokens
    num_tokens: int
    # "end": an end token; "closed": the answer was complete; "length": the budget was used up, or the model's positions were;
    # "too_long": the model has no positions for the prompt
    finish: str
    seconds: float  # every step's time divided by the rows in it


@torch.no_grad()
def generate(model, tokenizer, prompt_format, prompts, max_new_tokens, batch_tokens, tools=None, on_token=None):
    """Greedy completions of the prompt texts, as `(index, Generation)` in the order in which rows finish.

    The cache holds `batch_tokens` tokens (one row where that alone is more). Each row stops at any of the model's end tokens, or
    when the prompt format says that its text is finished. Decoding options of the model's own generation_config are not in force. A model on which
    the continuous batching here fails its check generates by transformers' `generate` instead.

    tools: for each prompt the tools (parsed) whose grammar its answer must keep to, or None. Whole answers do; one that the budget
    cuts is a beginning of one that does. on_token: called with a row's Answer after each of its tokens.
    """
    prompt_ids = encode_prompts(tokenizer, prompts)
    positions = num_positions(model.config)
    budgets = [min(max_new_tokens, positions - len(ids)) for ids in prompt_ids]
    fitting = [index for index, budget in enumerate(budgets) if budget > 0]
    for index in set(range(len(prompts))) - set(fitting):
        yield index, Generation("", 0, "too_long", 0.0)
    if not fitting:
        return
    check_vocabulary(model, [prompt_ids[index] for index in fitting])
    vocab_size = model.config.get_text_config().vocab_size
    answers = {}
    for index in fitting:
        offered = tools[index] if tools else None
        grammar = compile_grammar(tokenizer, vocab_size, offered) if offered is not None else None
        answers[index] = Answer(index, budgets[index], model, tokenizer, prompt_format, grammar, on_token)
    room = max(len(prompt_ids[index]) + budgets[index] for index in fitting)
    if problem_with_slots(model, [prompt_ids[index] for index in fitting], room):
        yield from generate_plainly(model, prompt_ids, answers, batch_tokens)
    else:
        yield from generate_in_slots(model, prompt_ids, answers, batch_tokens)


class Answer:
    """What one row has generated so far, and whether it is finished."""

    def __init__(self, index, budget, model, tokenizer, prompt_format, grammar=None, on_token=None):
        self.index, self.budget = index, budget
        self.tokenizer, self.prompt_format = tokenizer, prompt_format
        self.end_tokens = end_tokens(model, tokenizer)
        self.grammar = grammar
        self.matcher = new_matcher(grammar, self.end_tokens - {None}) if grammar is not None else None
        self.on_token = on_token or (lambda answer: None)
        self.tokens = []
        self.closing = prompt_format.closing()  # None once the text can never be finished
        self.finish = None
        self.seconds = 0.0

    def add(self, token):
        """Take the next token; returns why the row is finished with it (Generation.finish), or None."""
        if token in self.end_tokens:
            self.finish = "end"
            return self.finish
        self.tokens.append(token)
        if self.matcher is not None and not self.matcher.accept_token(token):  # no token at all was allowed
            raise UserError(f"no token of this tokenizer continues {self.text()!r} as the grammar of its tools wants")
        # The whole text is judged, since pieces alone lack spaces and letters, but only if the verdict may have changed.
        is_text = token != self.tokenizer.pad_token_id
        if self.closing and is_text and self.closing.add(token_text(self.tokenizer, token)):
            text = self.text()
            if self.prompt_format.finished(text):
                self.finish = "closed"
            elif not self.prompt_format.has_value(text):
                self.closing = None
        if not self.finish and len(self.tokens) == self.budget:
            self.finish = "length"
        self.on_token(self)
        return self.finish

    def text(self):
        return decode_answer(self.tokenizer, self.tokens)

    def generation(self):
        return Generation(self.text(), len(self.tokens), self.finish, self.seconds)


@functools.lru_cache(maxsize=2**18)
def token_text(tokenizer, token):
    return decode_tokens(tokenizer, [token])


def end_tokens(model, tokenizer):
    """All tokens that end an answer: the one that training teaches, and those of the model's generation_config."""
    own = unwrapped(model).generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}


def generate_plainly(model, prompt_ids, answers, batch_tokens):
    """By transformers' own generate, in the model's own attention; in padded batches where padding changes nothing."""
    order = sorted(answers, key=lambda index: (answers[index].budget, len(prompt_ids[index])))
    padding_counts = find_padding_problem(model, [prompt_ids[index] for index in order], answers[order[-1]].budget)
    while order:
        batch = [answers[order.pop()]]
        width = len(prompt_ids[batch[0].index]) + batch[0].budget
        # Only with rows of the same budget: one that goes on beyond its own might have no positions left.
        while (
            order
            and not padding_counts
            and answers[order[-1]].budget == batch[0].budget
            and (len(batch) + 1) * width <= batch_tokens
        ):
            batch.append(answers[order.pop()])
        generate_batch(model, [prompt_ids[answer.index] for answer in batch], batch)
        for answer in batch:
            yield answer.index, answer.generation()


def find_padding_problem(model, prompt_ids, budget):
    """Whether rows padded to one batch could change each other's logits, with the longest as long as it may grow."""
    shortest, longest = min(prompt_ids, key=len), max(prompt_ids, key=len)
    texts = [shortest, grown(longest, len(longest) + budget)]
    if len(texts[1]) > length_dependent_from(model.config):
        return True
    reference = reference_logits(model, texts)
    try:
        distance = difference(plain_logits(model, texts, "left"), reference)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a model raises that cannot be padded
        return True
    return distance > tolerance(model, shortest, reference[:1])


def grown(text, length):
    """The text repeated up to a length: what is wrong with a long text shows in any long text."""
    return np.resize(text, length)


@torch.compiler.set_stance("force_eager")  # layers compiled for training know nothing of a cache
def generate_batch(model, prompts, answers):
    base = unwrapped(model)
    start = time.perf_counter()
    ids, mask = pad(prompts, "left", base.device)
    own_config, base.generation_config = base.generation_config, GenerationConfig()
    try:
        with plain_transformers(model):
            base.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=answers[0].budget,
                do_sample=False,
                logits_processor=LogitsProcessorList(constraints(answers, base.device)),
                stopping_criteria=StoppingCriteriaList([StopWith(answers)]),
            )
    except (torch.OutOfMemoryError, UserError):
        raise
    except Exception as error:  # whatever a model raises that transformers itself cannot generate from
        raise UserError(f"transformers' own generate fails on {type(base).__name__}: {one_line(error)}") from None
    finally:
        base.generation_config = own_config
    for answer in answers:
        answer.seconds = (time.perf_counter() - start) / len(answers)


class StopWith(StoppingCriteria):
    """Hands each row its newest token, and says which rows are finished."""

    def __init__(self, answers):
        self.answers = answers

    def __call__(self, input_ids, scores, **kwargs):
        for answer, token in zip(self.answers, input_ids[:, -1].tolist(), strict=True):
            if not answer.finish:
                answer.add(token)
        return torch.tensor([bool(answer.finish) for answer in self.answers], device=input_ids.device)


def constraints(answers, device):
    masks = token_masks(answers, len(answers), device)
    return [KeepToGrammars(answers, masks)] if masks else []


class KeepToGrammars(LogitsProcessor):
    """Leaves each row the tokens that its grammar allows, after what StopWith has handed it."""

    def __init__(self, answers, masks):
        self.answers, self.masks = answers, masks

    def __call__(self, input_ids, scores):
        unfinished = [None if answer.finish else answer.matcher for answer in self.answers]
        self.masks.fill(dict(enumerate(unfinished)))
        return self.masks.apply(scores)


def token_masks(answers, num_rows, device):
    """Room for the masks of `num_rows` rows, or None where no answer has a grammar."""
    grammar = next((answer.grammar for answer in answers if answer.grammar is not None), None)
    return TokenMasks(grammar, num_rows, device) if grammar is not None else None


CHECKED = weakref.WeakKeyDictionary()  # by model: the longest row that the check was made for, and the problem or None


def problem_with_slots(model, prompt_ids, room):
    """What keeps a model from continuous batching over slots, or None: checked once for a model, and again for longer rows.

    prompt_ids: int32 arrays; room: the longest row's tokens, new ones included. Said on stderr when found.
    """
    base = unwrapped(model)
    room = min(room, num_positions(base.config))
    checked_room, problem = CHECKED.get(base, (0, None))
    if room > checked_room and not problem:
        problem = find_problem(model, prompt_ids, room)
        CHECKED[base] = room, problem
        if problem:
            say(f"Generating by transformers' generate, which is slower: {problem}")
    return problem


def generated_by(model):
    """How a model that has generated did it, in words; None of one that has not."""
    if unwrapped(model) not in CHECKED:
        return None
    _, problem = CHECKED[unwrapped(model)]
    return f"transformers' generate: {problem}" if problem else "continuous batching"


def find_problem(model, prompt_ids, room):
    """Teacher-forced logits in slots against plain transformers: of the longest prompt, as long as a row may grow, of the
    shortest and of a half of that."""
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
    """Continuous batching: see the module's first lines. answers: `{index: Answer}` of the prompts to complete."""
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
        batch = collate([Example("", ids, len(ids)) for ids in prompts], supervised=False)
        del batch["labels"]
        batch = send_to_device(batch, self.model.device)
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
