"""Rows to tokens, tokens to padding-free micro-batches, and the order of examples in optimizer
steps."""

import functools
import hashlib
import heapq
import math
import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from data_utils import cache
from data_utils.parts import part_weights
from data_utils.supervision import loss_weights, token_parts
from data_utils.tokens import encode_or_load, encode_texts, end_token_id


class Example(NamedTuple):
    row_id: str
    input_ids: np.ndarray  # int32 [tokens]: prompt, completion, end of sequence or of the turn
    prompt_length: int  # in tokens
    loss_weights: np.ndarray  # float32 [tokens]: of each token's prediction; 0 for the first
    parts: np.ndarray | None = None  # uint8 [tokens], see token_parts; None: not asked for, or unknown

    @property
    def num_supervised(self):
        """The number of tokens with a loss."""
        return int(np.count_nonzero(self.loss_weights))

    @property
    def weight_sum(self):
        return float(self.loss_weights.sum(dtype=np.float64))


class Tokenized(NamedTuple):
    examples: list  # of the rows that fit
    too_long: dict  # {id: tokens} of the other rows: a cut answer would teach broken JSON
    lost_answers: list  # ids of rows whose answers change when encoded and decoded
    unknown_prompts: list  # ids of rows with the unknown token in the prompt
    unknown_parts: dict  # {id: reason} of examples without parts, if asked for


def tokenize_rows(tokenizer, prompt_format, rows, max_length, *, weights=None, with_parts=False):
    """Rows as Tokenized, in their order. weights: `{part: weight}` in the loss, by default 1 for
    the completion. with_parts: for figures by part.

    Prompt and completion are tokenised separately, so that the prompt's ids are the same as in
    inference. Large data sets are tokenised once and then read from the cache. The cache has no
    weights: they are made at each start."""
    texts = [prompt_format.texts(row) for row in rows]
    prompts, completions = [prompt for prompt, _ in texts], [completion for _, completion in texts]
    # A slow tokenizer cannot be serialised for the cache's key.
    if len(rows) < cache.FROM_ROWS or not tokenizer.is_fast:
        encoded = encode_texts(tokenizer, prompt_format, prompts, completions)
    else:
        encoded = encode_or_load(tokenizer, prompt_format, prompts, completions)
    end = np.array([end_token_id(tokenizer, prompt_format)], dtype=np.int32)
    examples, too_long, unknown_parts = [], {}, {}
    weights = weights or part_weights()
    for row, prompt, text, completion in zip(rows, encoded.prompts, completions, encoded.completions, strict=True):
        if (length := len(prompt) + len(completion) + 1) > max_length:
            too_long[row.id] = length
            continue
        find_parts = functools.partial(token_parts, tokenizer, prompt_format, len(prompt), text, completion)
        of_tokens = loss_weights(weights, len(prompt), length, find_parts)
        parts = None
        if with_parts:
            try:
                parts = find_parts()
            except ValueError as error:
                unknown_parts[row.id] = str(error)
        examples.append(Example(row.id, np.concatenate([prompt, completion, end]), len(prompt), of_tokens, parts))
    lost, unknown = ([rows[index].id for index in indices] for indices in (encoded.lost, encoded.unknown))
    return Tokenized(examples, too_long, lost, unknown, unknown_parts)


def fingerprint(examples):
    """A hash of every token and its weight: a resume notices other data or another loss mask.

    The weights of completion_only are left out, as in checkpoints from before loss masks: their
    runs can be resumed."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{example.row_id} {example.prompt_length} ".encode())
        digest.update(example.input_ids.tobytes())
        if not np.array_equal(example.loss_weights, is_completion(example)):
            digest.update(example.loss_weights.tobytes())
    return digest.hexdigest()


def is_completion(example):
    """Whether each token is of the completion, or its end, and is predicted. bool [tokens]"""
    return np.arange(len(example.input_ids)) >= max(1, example.prompt_length)


def pack(sequences):
    """Token ids (int32 arrays) end to end as one padding-free sequence, ready for `model(**batch)`.

    input_ids, position_ids: int64 [1, tokens]; positions restart at 0 with each sequence, and the
    attention kernel separates sequences by them. cu_seq_lens_q: int32 [sequences + 1], the first
    token of each sequence and the end of the last. max_length_q: the length of the longest, for
    kernels that need it."""
    lengths = [len(sequence) for sequence in sequences]
    positions, starts = end_to_end(lengths)
    return {
        "input_ids": torch.from_numpy(np.concatenate(sequences).astype(np.int64))[None],
        "position_ids": positions[None],
        "cu_seq_lens_q": starts,
        "max_length_q": max(lengths),
    }


def end_to_end(lengths):
    """Of sequences of these lengths, end to end: the position of each token in its sequence, int64
    [tokens], and each sequence's first token and the end of the last, int32 [sequences + 1]."""
    positions = torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))
    return positions, torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)


def collate(examples, supervised=True, completions=False):
    """`pack` of the examples with their supervision: a micro-batch for train.py's
    `completion_loss`.

    logits_to_keep: int64 [supervised tokens], the positions that predict a token whose weight is
    not 0: the head runs on these only. labels: int64 [supervised tokens], the predicted tokens.
    loss_weights: float32 [supervised tokens], or None if all are 1. Without `supervised` there are
    no such tokens, and the loss and its gradients are zero. completions: keep all tokens of the
    completions, those of weight 0 too."""
    batch = pack([example.input_ids for example in examples])
    weights = np.concatenate([example.loss_weights for example in examples])
    is_target = weights != 0
    if completions:
        is_target |= np.concatenate([is_completion(example) for example in examples])
    targets = torch.from_numpy(np.flatnonzero(is_target if supervised else []))
    weights = torch.from_numpy(weights)[targets]
    return batch | {
        "logits_to_keep": targets - 1,
        "labels": batch["input_ids"][0, targets],
        "loss_weights": None if (weights == 1).all() else weights,
    }


def share_out(examples, batch_size, num_processes=1, process_index=0):
    """This process's share of `examples`, in lists of at most `batch_size` with similar numbers of
    tokens: processes wait for the slowest, and the largest list determines the memory. All
    processes get equally many lists, since their backward passes synchronise. A list may be
    empty."""
    share_size = math.ceil(len(examples) / num_processes)
    share = deal(examples, num_processes, share_size)[process_index]
    return deal(share, math.ceil(share_size / batch_size), batch_size)


def deal(examples, num_lists, list_size):
    """`examples` in lists of at most `list_size`: the longest first, each to the list with the
    fewest tokens."""
    lists = [[] for _ in range(num_lists)]
    open_lists = [(0, index) for index in range(num_lists)]  # (tokens, which): a heap
    for example in sorted(examples, key=lambda example: len(example.input_ids), reverse=True):
        tokens, index = heapq.heappop(open_lists)
        lists[index].append(example)
        if len(lists[index]) < list_size:
            heapq.heappush(open_lists, (tokens + len(example.input_ids), index))
    return lists


def micro_batches(examples, batch_size, num_processes=1, process_index=0):
    """This process's share of `examples`, collated. An empty list becomes a batch without
    supervision."""
    chunks = share_out(examples, batch_size, num_processes, process_index)
    return [collate(chunk) if chunk else collate(examples[:1], supervised=False) for chunk in chunks]


def largest_chunks(chunks):
    """The two micro-batches (lists of examples) with the highest memory use: the most tokens, for
    the layers, and the most supervised tokens, for the head."""
    chunks = [chunk for chunk in chunks if chunk]
    if not chunks:
        return []
    return [
        max(chunks, key=num_tokens),
        max(chunks, key=lambda chunk: sum(example.num_supervised for example in chunk)),
    ]


def num_tokens(chunk):
    return sum(len(example.input_ids) for example in chunk)


@dataclass
class OptimizerStep:
    """Iterates over this process's micro-batches, collated: `(batch, whether it is the last)`."""

    micro_batches: list
    num_tokens: int  # of all processes
    num_supervised: int  # tokens, of all processes
    weight_sum: float  # of these tokens: the loss is divided by it
    row_ids: list  # of all processes
    seconds: float  # taken to make it

    def __iter__(self):
        *first, last = self.micro_batches
        for batch in first:
            yield batch, False
        yield last, True


class TrainingData:
    """The optimizer steps of a run: `data[k]` is step k, a function of the seed and k alone.

    A step's examples depend on the global batch, not on its division into processes, accumulation
    and micro-batches. A resume needs no replay: it requests step k. The last step of an epoch has
    the remaining examples."""

    def __init__(self, examples, seed, batch_size, accumulation_steps, *, num_processes=1, process_index=0):
        self.examples = examples
        self.seed = seed
        self.batch_size = batch_size
        self.num_processes = num_processes
        self.process_index = process_index
        self.global_batch = batch_size * accumulation_steps * num_processes
        self.steps_per_epoch = math.ceil(len(examples) / self.global_batch)
        self._epoch, self._order = None, None

    @property
    def fingerprints(self):
        """Hashes of the examples and of the first epoch's order: a resume notices others."""
        ids = [example.row_id for step in range(self.steps_per_epoch) for example in self.examples_of(step)]
        order = hashlib.sha256(repr(ids).encode()).hexdigest()
        return {"data_fingerprint": fingerprint(self.examples), "order_fingerprint": order}

    def examples_of(self, step):
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(self.examples, self.seed, epoch)
        chosen = self._order[place * self.global_batch : (place + 1) * self.global_batch]
        return [self.examples[i] for i in chosen]

    def chunks(self, steps):
        """This process's micro-batches in these steps, as lists of examples."""
        for step in steps:
            examples = self.examples_of(step)
            for chunk in share_out(examples, self.batch_size, self.num_processes, self.process_index):
                yield chunk or examples[:1]  # as in micro_batches

    def __getitem__(self, step):
        start = time.perf_counter()
        examples = self.examples_of(step)
        return OptimizerStep(
            micro_batches(examples, self.batch_size, self.num_processes, self.process_index),
            sum(len(example.input_ids) for example in examples),
            sum(example.num_supervised for example in examples),
            sum(example.weight_sum for example in examples),
            [example.row_id for example in examples],
            time.perf_counter() - start,
        )


def epoch_order(examples, seed, epoch):
    """The order of an epoch, as indices of the examples: a function of (seed, epoch) alone."""
    return np.random.default_rng([seed, epoch]).permutation(len(examples))


def mark_supervised(tokenizer, example, most=math.inf):
    """The example's text as the model reads it, with supervised spans between ⟦ and ⟧. Of a longer
    span without supervision, `most` characters are left, half at its start and half at its end."""
    supervised = example.loss_weights != 0
    starts = [0, *np.flatnonzero(np.diff(supervised)) + 1]
    texts = [tokenizer.decode(ids.tolist()) for ids in np.split(example.input_ids, starts[1:])]
    return "".join(
        f"⟦{text}⟧" if supervised[start] else cut_middle(text, most) for start, text in zip(starts, texts, strict=True)
    )


def cut_middle(text, most):
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} ... {len(text) - 2 * half:,} characters ... {text[-half:]}"
