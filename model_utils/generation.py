"""Greedy generation of tool calls, in evaluate.py, infer.py, export.py and the evaluations of train.py.

Continuous batching (slots.py) generates. A model that fails its check generates by transformers' own `generate`.
"""

import functools
import math
import time
import weakref
from collections.abc import Callable
from typing import NamedTuple

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from data_utils.tokens import decode_answer, decode_tokens, encode_prompts
from model_utils.model_facts import length_dependent_from, num_positions, one_line, pad, unwrapped
from model_utils.self_checks import (
    check_vocabulary,
    difference,
    grown,
    plain_logits,
    plain_transformers,
    reference_logits,
    tolerance,
)
from model_utils.slots import generate_in_slots, problem_with_slots
from model_utils.token_masks import compile_grammar, new_matcher, token_masks
from run_utils.errors import UserError, say


class Generation(NamedTuple):
    text: str  # without end and padding tokens
    num_tokens: int
    # "end": an end token; "closed": the answer was complete; "length": the budget was used up, or the model's positions were;
    # "too_long": the model has no positions for the prompt
    finish: str
    seconds: float  # every step's time divided by the rows in it


class Engine(NamedTuple):
    """One of the two ways to generate, as chosen for a model."""

    name: str  # for environment.json
    generate: Callable  # (model, prompt_ids, answers, batch_tokens): yields (index, Generation)
    room: float  # tokens of the longest row that it is known to suit


ENGINES = weakref.WeakKeyDictionary()  # by model, so that each is checked once


def choose_engine(model, prompt_ids, room):
    """The Engine of a model: continuous batching, if it passes the check, which is made once, and again for longer rows.

    prompt_ids: int32 arrays; room: the longest row's tokens, new ones included. Prints a line on stderr if the check fails.
    """
    base = unwrapped(model)
    room = min(room, num_positions(base.config))
    engine = ENGINES.get(base)
    if engine is None or room > engine.room:
        engine = Engine("continuous batching", generate_in_slots, room)
        if problem := problem_with_slots(model, prompt_ids, room):
            say(f"Generating by transformers' generate, which is slower: {problem}")
            engine = Engine(f"transformers' generate: {problem}", generate_plainly, math.inf)
        ENGINES[base] = engine
    return engine


def generated_by(model):
    """The name of the Engine of a model; None if it has not generated."""
    engine = ENGINES.get(unwrapped(model))
    return engine.name if engine else None


@torch.no_grad()
def generate(
    model, tokenizer, prompt_format, prompts, max_new_tokens, *, batch_tokens, tools=None, on_token=None, engine=None
):
    """Greedy completions of the prompt texts, as `(index, Generation)` in the order in which rows finish.

    The cache holds `batch_tokens` tokens (one row where that alone is more). Each row stops at any of the model's end tokens, or
    when the prompt format says that its text is finished. Decoding options of the model's own generation_config are not in force.

    tools: for each prompt the tools (parsed) whose grammar its answer must keep to, or None. Whole answers do; one that the budget
    cuts is a beginning of one that does. on_token: called with a row's Answer after each of its tokens.
    engine: the model's Engine if it has been chosen already; a longer row is checked again.
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
        answers[index] = Answer(
            index, budgets[index], model, tokenizer, prompt_format, grammar=grammar, on_token=on_token
        )
    room = max(len(prompt_ids[index]) + budgets[index] for index in fitting)
    if engine is None or room > engine.room:
        engine = choose_engine(model, [prompt_ids[index] for index in fitting], room)
    yield from engine.generate(model, prompt_ids, answers, batch_tokens)


class Answer:
    """What one row has generated so far, and whether it is finished."""

    def __init__(self, index, budget, model, tokenizer, prompt_format, *, grammar=None, on_token=None):
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
