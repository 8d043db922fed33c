"""Greedy generation of tool calls, for evaluate.py, infer.py, export.py and train.py's evaluations.

Continuous batching (slots.py) generates. If a model fails its check, transformers' `generate`
does."""

import functools
import math
import time
import weakref
from collections.abc import Callable
from typing import NamedTuple

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from data_utils.tokens import decode_answer, decode_tokens, encode_prompts, end_token_id
from model_utils.attention import leave_flash_attention_3, use_flash_attention_3
from model_utils.kept_checks import check_key, has_passed, keep_pass
from model_utils.model_facts import length_dependent_from, num_positions, pad, unwrapped
from model_utils.self_checks import (
    check_vocabulary,
    difference,
    grown,
    plain_logits,
    plain_transformers,
    reference_logits,
    tolerance,
)
from model_utils.slots import can_fuse, generate_in_slots, problem_with_slots
from model_utils.token_masks import compiling, new_matcher, token_masks
from run_utils.clock import lap
from run_utils.errors import UserError, describe_error, say


class Generation(NamedTuple):
    text: str  # without end and padding tokens
    num_tokens: int
    # "end": an end token; "closed": a complete answer; "length": no budget or no positions left;
    # "too_long": more prompt tokens than positions
    finish: str
    seconds: float  # the sum of its steps' times, divided by their rows
    num_prompt_tokens: int | None = None  # None: unknown


# Tokens of a padded batch of transformers' `generate`, which needs more memory a token than slots.
MOST_PADDED_TOKENS = 65536


class Engine(NamedTuple):
    """One of two ways to generate, chosen for a model."""

    name: str  # for environment.json
    generate: Callable  # (model, prompt_ids, answers, batch_tokens): yields (index, Generation)
    room: float  # tokens of the longest checked row


ENGINES = weakref.WeakKeyDictionary()  # by model: one check for each


def choose_engine(model, prompt_ids, room):
    """The Engine of a model: continuous batching if the model passes its check. A model is checked
    once, and again for longer rows.

    prompt_ids: int32 arrays. room: the longest row's tokens, new tokens included. Prints a line on
    stderr if the check fails."""
    base = unwrapped(model)
    room = min(room, num_positions(base.config))
    engine = ENGINES.get(base)
    if engine is None or room > engine.room:
        for fused, prompts_by in candidates(model):
            name = "continuous batching" + (", prompts by FlashAttention 3" if prompts_by else "")
            engine = Engine(name, functools.partial(generate_in_slots, fused=fused), room)
            key = check_key(model, "generation in slots", fused, prompts_by)
            problem = None if has_passed(key, room) else problem_with_slots(model, prompt_ids, room, fused)
            if not problem:
                keep_pass(key, room)
                break
            if prompts_by:
                leave_flash_attention_3(model.device, problem)
            elif fused:
                say(f"Triton's kernels are not used in generation, which is slower: {problem}")
        if problem:
            say(f"Generating by transformers' generate, which is slower: {problem}")
            engine = Engine(f"transformers' generate: {problem}", generate_plainly, math.inf)
        ENGINES[base] = engine
    return engine


def candidates(model):
    """Ways of continuous batching, the fastest first: with Triton's kernels or not, and the name of
    an attention kernel for prompts beside torch's own, or None."""
    if not can_fuse(model):
        return [(False, None)]
    by_fa3 = [(True, "FA3")] if use_flash_attention_3(model.device) else []
    return [*by_fa3, (True, None), (False, None)]


def generated_by(model):
    """The name of the Engine of a model; None if it has not generated."""
    engine = ENGINES.get(unwrapped(model))
    return engine.name if engine else None


@torch.no_grad()
def generate(
    model, tokenizer, prompt_format, prompts, max_new_tokens, *, batch_tokens, tools=None, on_token=None, engine=None
):
    """Greedy completions of the prompt texts, as `(index, Generation)` in order of completion.

    The cache holds `batch_tokens` tokens (transformers' `generate`: at most MOST_PADDED_TOKENS), or
    one row if the row is longer. A row stops at any end
    token of the model, or when its text is finished in the prompt format. The model's own decoding
    options (generation_config) have no effect.

    tools: for each prompt the tools (parsed) whose grammar constrains its answer, or None. A
    complete answer matches the grammar; an answer cut by the budget is the beginning of a match.
    on_token: called with a row's Answer after each of its tokens. engine: the model's Engine if
    already chosen; a longer row is checked again."""
    prompt_ids = encode_prompts(tokenizer, prompts, prompt_format.end_token)
    positions = num_positions(model.config)
    budgets = [min(max_new_tokens, positions - len(ids)) for ids in prompt_ids]
    fitting = [index for index, budget in enumerate(budgets) if budget > 0]
    for index in set(range(len(prompts))) - set(fitting):
        yield index, Generation("", 0, "too_long", 0.0, len(prompt_ids[index]))
    if not fitting:
        return
    check_vocabulary(model, [prompt_ids[index] for index in fitting])
    rooms = {index: len(prompt_ids[index]) + budgets[index] for index in fitting}
    with compiling(tokenizer, model.config.get_text_config().vocab_size) as compile_later:
        answers = {}
        for index in sorted(fitting, key=lambda index: -rooms[index]):  # as prompts are read: the longest first
            offered = tools[index] if tools else None
            grammar = compile_later(offered) if offered is not None else None
            answers[index] = Answer(
                index, budgets[index], model, tokenizer, prompt_format, grammar=grammar, on_token=on_token
            )
        room = max(rooms.values())
        if engine is None or room > engine.room:
            lap("prompts")
            engine = choose_engine(model, [prompt_ids[index] for index in fitting], room)
            lap("check of the generation")
        for index, generation in engine.generate(model, prompt_ids, answers, batch_tokens):
            lap("generation", generation.num_tokens)
            yield index, generation._replace(num_prompt_tokens=len(prompt_ids[index]))


class Answer:
    """One row's generated tokens so far, and whether the row is finished. grammar: a Future of
    compile_grammar's result, or None."""

    def __init__(self, index, budget, model, tokenizer, prompt_format, *, grammar=None, on_token=None):
        self.index, self.budget = index, budget
        self.tokenizer, self.prompt_format = tokenizer, prompt_format
        self.end_tokens = end_tokens(model, tokenizer, prompt_format)
        self.padding = tokenizer.pad_token_id  # looked up once: the attribute is slow
        self.grammar = grammar
        self.on_token = on_token or (lambda answer: None)
        self.tokens = []
        self.closing = prompt_format.closing()  # None if the text can no longer be finished
        self.finish = None
        self.seconds = 0.0

    @functools.cached_property
    def matcher(self):
        """The state of the text under its grammar, or None. Waits for the grammar."""
        return new_matcher(self.grammar.result(), self.end_tokens - {None}) if self.grammar is not None else None

    def add(self, token):
        """Add the next token. Returns the row's Generation.finish, or None if it is not
        finished."""
        if token in self.end_tokens:
            self.finish = "end"
            return self.finish
        self.tokens.append(token)
        # The grammar allowed no token.
        if self.matcher is not None and not self.matcher.accept_token(token):
            raise UserError(f"no token of this tokenizer continues {self.text()!r} as the grammar of its tools wants")
        # Judge the whole text, since single tokens lack spaces and letters, but only if the result
        # may have changed.
        is_text = token != self.padding
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


def end_tokens(model, tokenizer, prompt_format):
    """All end tokens: the training's and the tokenizer's, and the model's in generation_config."""
    own = unwrapped(model).generation_config.eos_token_id
    return {end_token_id(tokenizer, prompt_format), tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}


def generate_plainly(model, prompt_ids, answers, batch_tokens):
    """Generate with transformers' `generate` and the model's own attention, in padded batches if
    padding changes nothing."""
    order = sorted(answers, key=lambda index: (answers[index].budget, len(prompt_ids[index])))
    padding_counts = find_padding_problem(model, [prompt_ids[index] for index in order], answers[order[-1]].budget)
    while order:
        batch = [answers[order.pop()]]
        width = len(prompt_ids[batch[0].index]) + batch[0].budget
        # Rows of a batch have the same budget: a row beyond its own budget might have no positions
        # left.
        while (
            order
            and not padding_counts
            and answers[order[-1]].budget == batch[0].budget
            and (len(batch) + 1) * width <= min(batch_tokens, MOST_PADDED_TOKENS)
        ):
            batch.append(answers[order.pop()])
        generate_batch(model, [prompt_ids[answer.index] for answer in batch], batch)
        for answer in batch:
            yield answer.index, answer.generation()


def find_padding_problem(model, prompt_ids, budget):
    """Whether rows padded to one batch could change each other's logits, with the longest row at
    its full length."""
    shortest, longest = min(prompt_ids, key=len), max(prompt_ids, key=len)
    texts = [shortest, grown(longest, len(longest) + budget)]
    if len(texts[1]) > length_dependent_from(model.config):
        return True
    reference = reference_logits(model, texts)
    try:
        distance = difference(plain_logits(model, texts, "left"), reference)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # some models cannot be padded, and raise anything
        return True
    return distance > tolerance(model, shortest, reference[:1])


@torch.compiler.set_stance("force_eager")  # layers compiled for training have no cache
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
                logits_processor=LogitsProcessorList(constraints(answers, base)),
                stopping_criteria=StoppingCriteriaList([StopWith(answers)]),
            )
    except (torch.OutOfMemoryError, UserError):
        raise
    # Some models cannot generate with transformers either, and raise anything.
    except Exception as error:
        raise UserError(f"transformers' own generate fails on {type(base).__name__}: {describe_error(error)}") from None
    finally:
        base.generation_config = own_config
    for answer in answers:
        answer.seconds = (time.perf_counter() - start) / len(answers)


class StopWith(StoppingCriteria):
    """Gives each row its newest token, and reports the finished rows."""

    def __init__(self, answers):
        self.answers = answers

    def __call__(self, input_ids, scores, **kwargs):
        for answer, token in zip(self.answers, input_ids[:, -1].tolist(), strict=True):
            if not answer.finish:
                answer.add(token)
        return torch.tensor([bool(answer.finish) for answer in self.answers], device=input_ids.device)


def constraints(answers, model):
    masks = token_masks(answers, len(answers), model)
    return [KeepToGrammars(answers, masks)] if masks else []


class KeepToGrammars(LogitsProcessor):
    """Leaves each row its grammar's allowed tokens, after StopWith has added its newest token."""

    def __init__(self, answers, masks):
        self.answers, self.masks = answers, masks

    def __call__(self, input_ids, scores):
        unfinished = [None if answer.finish else answer.matcher for answer in self.answers]
        self.masks.fill(dict(enumerate(unfinished)))
        return self.masks.apply(scores[:, None])[:, 0]
