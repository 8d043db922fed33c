"""Rows to tokens, tokens to padding-free micro-batches, and the order in which optimizer steps meet them."""

import hashlib
import heapq
import math
import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from data_utils import cache
from data_utils.tokens import encode_or_load, encode_texts


class Example(NamedTuple):
    row_id: str
    input_ids: np.ndarray  # int32 [tokens]: prompt, completion, end of sequence
    prompt_length: int  # in tokens

    @property
    def supervised_from(self):
        """The first token that has a loss. For a loss on the whole sequence return 1 (no token predicts the first)."""
        return self.prompt_length

    @property
    def completion_length(self):
        """The number of tokens that have a loss."""
        return len(self.input_ids) - self.supervised_from


class Tokenized(NamedTuple):
    examples: list  # of the rows that fit
    too_long: dict  # the lengths in tokens of the others, by id: a cut answer would teach broken JSON
    lost_answers: list  # ids of rows with answers that do not come back from their tokens
    unknown_prompts: list  # ids of rows with the tokenizer's unknown token in the prompt


def tokenize_rows(tokenizer, prompt_format, rows, max_length):
    """Rows as Tokenized, in their order.

    Prompt and completion are tokenised apart, so that the ids of the prompt are those that inference feeds. Large data
    sets are tokenised once and then read from the cache.
    """
    prompts = [prompt_format.render(row.query, row.tools) for row in rows]
    completions = [prompt_format.completion(row.answers) for row in rows]
    if len(rows) < cache.FROM_ROWS or not tokenizer.is_fast:  # a tokenizer in Python has no one text to be known by
        encoded = encode_texts(tokenizer, prompt_format, prompts, completions)
    else:
        encoded = encode_or_load(tokenizer, prompt_format, prompts, completions)
    end = np.array([tokenizer.eos_token_id], dtype=np.int32)
    examples, too_long = [], {}
    for row, prompt, completion in zip(rows, encoded.prompts, encoded.completions, strict=True):
        if (length := len(prompt) + len(completion) + 1) > max_length:
            too_long[row.id] = length
        else:
            examples.append(Example(row.id, np.concatenate([prompt, completion, end]), len(prompt)))
    lost, unknown = ([rows[index].id for index in indices] for indices in (encoded.lost, encoded.unknown))
    return Tokenized(examples, too_long, lost, unknown)


def fingerprint(examples):
    """A hash of every token and its supervision, to notice on resume that the data is not the same any more."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{example.row_id} {example.supervised_from} ".encode())
        digest.update(example.input_ids.tobytes())
    return digest.hexdigest()


def collate(examples, supervised=True):
    """Examples end to end as one padding-free sequence, ready for `model(**batch)` but for `labels`.

    input_ids, position_ids: int64 [1, tokens]; positions restart at 0 with each example, from which the attention
    kernel isolates them. cu_seq_lens_q: int32 [examples + 1], where each example starts and the last one ends, and
    max_length_q, the longest, for kernels that are told so. logits_to_keep: int64 [completion tokens], the positions that
    predict a completion token: the head runs on these alone. labels: int64 [completion tokens], the tokens they predict.
    Without `supervised` the last two are empty, and the loss and its gradients are zero.
    """
    lengths = [len(example.input_ids) for example in examples]
    input_ids = np.concatenate([example.input_ids for example in examples]).astype(np.int64)
    starts = np.cumsum([0, *lengths[:-1]])
    targets = [
        np.arange(start + example.supervised_from, start + length) if supervised else np.arange(0)
        for example, start, length in zip(examples, starts, lengths, strict=True)
    ]
    targets = np.concatenate(targets)
    return {
        "input_ids": torch.from_numpy(input_ids)[None],
        "position_ids": torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))[None],
        "cu_seq_lens_q": torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32),
        "max_length_q": max(lengths),
        "logits_to_keep": torch.from_numpy(targets - 1),
        "labels": torch.from_numpy(input_ids[targets]),
    }


def share_out(examples, batch_size, num_processes=1, process_index=0):
    """This process's share of `examples` in lists of at most `batch_size`, of tokens as equal as the lengths allow: processes wait
    for the slowest, and the largest list decides how much memory is needed. All processes get equally many lists, since their
    backward passes meet: where examples run out, lists are empty."""
    share_size = math.ceil(len(examples) / num_processes)
    share = deal(examples, num_processes, share_size)[process_index]
    return deal(share, math.ceil(share_size / batch_size), batch_size)


def deal(examples, num_lists, list_size):
    """`examples` in lists of at most `list_size`: the longest first, each to the list that has the fewest tokens yet."""
    lists = [[] for _ in range(num_lists)]
    open_lists = [(0, index) for index in range(num_lists)]  # (tokens, which): a heap
    for example in sorted(examples, key=lambda example: len(example.input_ids), reverse=True):
        tokens, index = heapq.heappop(open_lists)
        lists[index].append(example)
        if len(lists[index]) < list_size:
            heapq.heappush(open_lists, (tokens + len(example.input_ids), index))
    return lists


def micro_batches(examples, batch_size, num_processes=1, process_index=0):
    """This process's share of `examples`, collated; without supervision where it has none left."""
    chunks = share_out(examples, batch_size, num_processes, process_index)
    return [collate(chunk) if chunk else collate(examples[:1], supervised=False) for chunk in chunks]


def largest_chunks(chunks):
    """The two micro-batches (lists of examples) that take the most memory: of most tokens, for the layers, and of most
    completion tokens, for the head."""
    chunks = [chunk for chunk in chunks if chunk]
    if not chunks:
        return []
    return [
        max(chunks, key=num_tokens),
        max(chunks, key=lambda chunk: sum(example.completion_length for example in chunk)),
    ]


def num_tokens(chunk):
    return sum(len(example.input_ids) for example in chunk)


@dataclass
class OptimizerStep:
    """Iterates over this process's micro-batches, collated: `(batch, whether it is the last)`."""

    micro_batches: list
    num_tokens: int  # of all processes
    num_completion_tokens: int  # of all processes: what the loss is divided by
    row_ids: list  # of all processes
    seconds: float  # that making it took

    def __iter__(self):
        *first, last = self.micro_batches
        for batch in first:
            yield batch, False
        yield last, True


class TrainingData:
    """The optimizer steps of a run: `data[k]` is step k, a function of the seed and k alone.

    Which examples meet in a step depends on the global batch, not on how processes, accumulation and micro-batches share
    it out. Resuming needs no replay: step k is simply asked for. The last step of an epoch takes what is left over.
    """

    def __init__(self, examples, seed, batch_size, accumulation_steps, num_processes=1, process_index=0):
        self.examples = examples
        self.seed = seed
        self.batch_size = batch_size
        self.num_processes = num_processes
        self.process_index = process_index
        self.global_batch = batch_size * accumulation_steps * num_processes
        self.steps_per_epoch = math.ceil(len(examples) / self.global_batch)
        self._epoch, self._order = None, None

    def examples_of(self, step):
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(len(self.examples), self.seed, epoch)
        chosen = self._order[place * self.global_batch : (place + 1) * self.global_batch]
        return [self.examples[i] for i in chosen]

    def chunks(self, steps):
        """This process's micro-batches, as lists of examples, in these steps."""
        for step in steps:
            examples = self.examples_of(step)
            for chunk in share_out(examples, self.batch_size, self.num_processes, self.process_index):
                yield chunk or examples[:1]  # as micro_batches has it

    def __getitem__(self, step):
        start = time.perf_counter()
        examples = self.examples_of(step)
        return OptimizerStep(
            micro_batches(examples, self.batch_size, self.num_processes, self.process_index),
            sum(len(example.input_ids) for example in examples),
            sum(example.completion_length for example in examples),
            [example.row_id for example in examples],
            time.perf_counter() - start,
        )


def epoch_order(num_examples, seed, epoch):
    """The permutation of an epoch: a function of (seed, epoch) alone."""
    return np.random.default_rng([seed, epoch]).permutation(num_examples)


def mark_supervised(tokenizer, example):
    """The example as the model reads it, its supervised span between ⟦ and ⟧."""
    before = tokenizer.decode(example.input_ids[: example.supervised_from])
    supervised = tokenizer.decode(example.input_ids[example.supervised_from :])
    return f"{before}⟦{supervised}⟧"
