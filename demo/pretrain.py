"""Pretrains the demo's base model from scratch on its synthetic corpus: a few minutes on one GPU.

python -m demo.pretrain --output_dir demo/base --compile --passes 3 --steps 8100  # the demo's base
python -m demo.pretrain --output_dir /tmp/base --steps 20 --batch_tokens 4096 --device cpu
"""

import argparse
import collections
import copy
import itertools
import math
import multiprocessing
import os
import random
import time
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from tokenizers import Tokenizer

from demo.corpus import documents
from demo.model import build_model, build_tokenizer, save
from model_utils.attention import ISOLATED

TOKENIZER_DOCUMENTS = 6000
HELD_OUT_BATCHES = 2
# Weight of a document's given tokens. Most are unpredictable and would drown the rest.
GIVEN_WEIGHT = 0.2
AVERAGED_STEPS = 100
MAX_LENGTH = 1024  # longer documents are rare and left out
# Share of documents in one text with the previous document, for long distances.
JOINED = 0.3
# In tokens. Texts are longer on average; a batch has room for this many texts.
MEAN_TEXT = 192
NOTHING, GIVEN, TOLD = 0, 1, 2
MADE_AHEAD = 64  # batches


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--batch_tokens", type=int, default=98304, help=f"a step; at least {MAX_LENGTH}")
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--warmup_steps", type=int, default=100)
    parser.add_argument("--weight_decay", type=float, default=0.05)
    parser.add_argument("--vocab_size", type=int, default=3072)
    parser.add_argument("--passes", type=int, default=1, help="how often each batch is used; more if the CPUs are slow")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action="store_true", help="compile the model: slower to start, then faster")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="processes that write and tokenise the corpus"
    )
    parser.add_argument("--save_steps", type=int, default=500)
    parser.add_argument("--logging_steps", type=int, default=50)
    args = parser.parse_args()
    if args.batch_tokens < MAX_LENGTH:
        parser.error(f"--batch_tokens must be at least {MAX_LENGTH}: the longest document")
    return args


def main(args: argparse.Namespace) -> None:
    started = time.time()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.makedirs(args.output_dir, exist_ok=True)
    torch.set_float32_matmul_precision("high")

    texts = (
        document.given + document.told for document in itertools.islice(documents("tokenizer"), TOKENIZER_DOCUMENTS)
    )
    tokenizer = build_tokenizer(texts, args.vocab_size)
    log(f"tokenizer of {len(tokenizer)} after {time.time() - started:.0f} s")
    # The processes fork before CUDA starts. Each makes whole batches, in order, ahead of training.
    shape = (args.seed, args.batch_tokens)
    pool = multiprocessing.get_context("fork").Pool(
        args.workers, start_worker, (tokenizer.backend_tokenizer.to_str(), shape)
    )
    batches = made_ahead(pool, range(-HELD_OUT_BATCHES, math.ceil(args.steps / args.passes)))
    held_out = [next(batches) for _ in range(HELD_OUT_BATCHES)]

    model = build_model(tokenizer, args.seed).to(args.device)
    model.set_attn_implementation(ISOLATED)
    decayed = [weight for weight in model.parameters() if weight.ndim > 1]
    undecayed = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [{"params": decayed, "weight_decay": args.weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, args))
    loss_of = torch.compile(token_loss) if args.compile else token_loss
    elapsed = time.time() - started
    log(f"{model.num_parameters():,} parameters, {args.workers} workers; first batch after {elapsed:.0f} s")

    # The saved model is a running average of the weights over the last steps: good at any time,
    # however the run ends.
    average = copy.deepcopy(model).eval()
    weights, averages = [list(module.parameters()) for module in (model, average)]

    model.train()
    used: list[tuple[np.ndarray, ...]] = []
    training_started = window_started = time.time()
    window_loss, waited = torch.zeros((), device=args.device), 0.0
    for step in range(1, args.steps + 1):
        # A batch is fresh first. It is used again later, from a random place among used batches.
        if (step - 1) % args.passes == 0:
            asked = time.time()
            batch = next(batches)
            waited += time.time() - asked
            if args.passes > 1:
                used.append(batch)
        else:
            batch = used[(step * 7919) % len(used)]
        loss = loss_of(model, to_device(batch, args.device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, max(1 / step, 1 / AVERAGED_STEPS))
        window_loss += loss.detach()

        if step % args.logging_steps == 0 or step == args.steps:
            count = (step - 1) % args.logging_steps + 1
            mean = window_loss.item() / count  # waits for the device
            rate = count * args.batch_tokens / (time.time() - window_started)
            elapsed, waiting = time.time() - started, waited / (time.time() - window_started)
            log(f"step {step} loss {mean:.4f} {rate:,.0f} tok/s, {waiting:.0%} waiting for data, {elapsed:.0f} s")
            window_loss.zero_()
            window_started, waited = time.time(), 0.0
        if step % args.save_steps == 0 or step == args.steps:
            save(average, tokenizer, args.output_dir)
            with torch.no_grad():
                batches_on_device = [to_device(batch, args.device) for batch in held_out]
                told, both = (
                    sum(token_loss(average, batch, weight).item() for batch in batches_on_device) / len(held_out)
                    for weight in (0.0, 1.0)
                )
            log(f"step {step} held-out loss {told:.4f} of told tokens, {both:.4f} of all; saved to {args.output_dir}")
            window_started = time.time()
    pool.terminate()
    tokens = args.steps * args.batch_tokens
    log(f"{tokens:,} tokens in {time.time() - training_started:.0f} s; {time.time() - started:.0f} s in all")


def token_loss(model: torch.nn.Module, batch: list[torch.Tensor], given_weight: float = GIVEN_WEIGHT) -> torch.Tensor:
    """Weighted mean cross-entropy of a batch of `make_batch`, on the model's device."""
    tokens, positions, follows, starts = batch
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=tokens.device.type == "cuda"):
        logits = model(
            input_ids=tokens[None],
            position_ids=positions[None],
            cu_seq_lens_q=starts,
            max_length_q=MAX_LENGTH,
            use_cache=False,
        ).logits[0]
    losses = torch.nn.functional.cross_entropy(logits.float(), tokens.roll(-1), reduction="none")
    weights = (follows == TOLD) + given_weight * (follows == GIVEN)
    return (losses * weights).sum() / weights.sum()


def learning_rate_factor(step: int, args: argparse.Namespace) -> float:
    """Linear warm-up, then a cosine to a fiftieth."""
    if step < args.warmup_steps:
        return (step + 1) / args.warmup_steps
    progress = (step - args.warmup_steps) / max(1, args.steps - args.warmup_steps)
    return 0.02 + 0.98 * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def to_device(batch: tuple[np.ndarray, ...], device: str) -> list[torch.Tensor]:
    tensors = [torch.from_numpy(array) for array in batch]
    if device != "cpu":
        # Do not wait for the copy.
        tensors = [tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors]
    tokens, positions, follows, starts = tensors
    return [tokens.long(), positions.long(), follows, starts]


def made_ahead(pool, indices: Iterable[int]) -> Iterator[tuple[np.ndarray, ...]]:
    """The batches of `indices` in order, with up to MADE_AHEAD in progress. More would take the CPU
    from training."""
    under_way = collections.deque()
    for index in indices:
        under_way.append(pool.apply_async(make_batch, (index,)))
        if len(under_way) > MADE_AHEAD:
            yield under_way.popleft().get()
    while under_way:
        yield under_way.popleft().get()


def start_worker(tokenizer: str, shape: tuple[int, int]) -> None:
    global worker
    torch.set_num_threads(1)
    os.nice(10)  # training comes first
    worker = Tokenizer.from_str(tokenizer), *shape


def make_batch(index: int) -> tuple[np.ndarray, ...]:
    """The batch of a step, which depends on seed and index alone: whole documents end to end. Most
    documents are read by themselves.

    tokens, positions (in the text), follows (NOTHING, GIVEN or TOLD: the next
    token's part of the document), each [size]; and starts, int32 [size // MEAN_TEXT + 1], the start
    of each text, padded with the size.
    """
    tokenizer, seed, size = worker
    tokens = np.zeros(size, dtype=np.int16)  # token 0 ends documents, and pads
    positions, follows = np.zeros(size, dtype=np.int16), np.zeros(size, dtype=np.uint8)
    starts, end = [0], 0
    rng = random.Random(f"{seed} {index} joined")
    # Room for texts. The rest of the batch is padded in pieces of MAX_LENGTH.
    room = size // MEAN_TEXT - size // MAX_LENGTH
    for document in documents(f"{seed} {index}"):
        given, told = (tokenizer.encode(text).ids for text in document)
        length = len(given) + len(told) + 1
        if length > MAX_LENGTH:
            continue
        if end + length > size or len(starts) == room:
            break
        if rng.random() < JOINED and len(starts) > 1 and end + length - starts[-2] <= MAX_LENGTH:
            starts.pop()
        tokens[end : end + length - 1] = given + told
        follows[end : end + length - 1] = [GIVEN] * max(0, len(given) - 1) + [TOLD] * (len(told) + (len(given) > 0))
        positions[end : end + length] = np.arange(end, end + length) - starts[-1]
        end += length
        starts.append(end)
    # Nothing is learnt from the padding.
    positions[end:] = np.arange(size - end) % MAX_LENGTH
    starts += range(end + MAX_LENGTH, size, MAX_LENGTH)
    return tokens, positions, follows, np.array(starts + [size] * (size // MEAN_TEXT + 1 - len(starts)), dtype=np.int32)


def log(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main(parse_arguments())
