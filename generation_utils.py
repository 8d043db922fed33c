"""Batched greedy generation of tool calls, for evaluate.py, infer.py and the evaluations inside train.py."""

import functools
import time
from typing import NamedTuple

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from data_utils.batching import encode_prompts
from data_utils.tool_calls import ValueWatcher


class Generation(NamedTuple):
    text: str  # without the end token
    num_tokens: int
    finish: str  # "end": the end token; "closed": the answer was complete; "length": the budget was used up
    seconds: float  # the batch's time, divided by its rows


class AnswerIsComplete(StoppingCriteria):
    """Stops each row of a batch at the end token, or when its ValueWatcher has seen enough."""

    def __init__(self, tokenizer, num_rows):
        self.eos_token_id = tokenizer.eos_token_id
        self.piece = functools.cache(lambda token: tokenizer.decode([token]))
        self.watchers = [ValueWatcher() for _ in range(num_rows)]
        self.tokens = [[] for _ in range(num_rows)]
        self.finish = [None] * num_rows

    def __call__(self, input_ids, scores, **kwargs):
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if self.finish[row]:
                continue  # finished rows are fed padding
            if token == self.eos_token_id:
                self.finish[row] = "end"
                continue
            self.tokens[row].append(token)
            if self.watchers[row].feed(self.piece(token)):
                self.finish[row] = "closed"
        return torch.tensor([finish is not None for finish in self.finish], device=input_ids.device)


def token_batches(prompts, max_new_tokens, batch_tokens):
    """Indices of `prompts` (lists of token ids) in batches, longest first, each of at most `batch_tokens` tokens, padding
    and room for `max_new_tokens` included (or one prompt where that alone is more)."""
    batches = []
    for index in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):
        width = (len(prompts[batches[-1][0]]) if batches else 0) + max_new_tokens
        if batches and (len(batches[-1]) + 1) * width <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


@torch.no_grad()
def generate(model, tokenizer, prompts, max_new_tokens, batch_tokens):
    """Greedy completions of the prompt texts, as `(index, Generation)` in the order in which batches finish.

    Left-padded batches, longest prompts first: the first batch needs the most memory and padding is little.
    """
    prompt_ids = encode_prompts(tokenizer, prompts)
    # Whole, so that nothing of the model's own defaults (sampling, penalties, other end tokens) is left in force.
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    for batch in token_batches(prompt_ids, max_new_tokens, batch_tokens):
        start = time.perf_counter()
        width = max(len(prompt_ids[i]) for i in batch)
        input_ids = torch.full((len(batch), width), tokenizer.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for row, i in enumerate(batch):
            input_ids[row, width - len(prompt_ids[i]) :] = torch.tensor(prompt_ids[i])
            attention_mask[row, width - len(prompt_ids[i]) :] = 1
        complete = AnswerIsComplete(tokenizer, len(batch))
        model.generate(
            input_ids=input_ids.to(model.device),
            attention_mask=attention_mask.to(model.device),
            stopping_criteria=StoppingCriteriaList([complete]),
        )
        seconds = (time.perf_counter() - start) / len(batch)
        for row, i in enumerate(batch):
            tokens = complete.tokens[row]
            yield i, Generation(tokenizer.decode(tokens), len(tokens), complete.finish[row] or "length", seconds)
