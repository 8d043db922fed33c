"""What benchmarks/growth.py measures on a GPU: training and generation with random weights. Without
a GPU, a dry run at an eighth of the sizes."""

import gc
import importlib.util
import itertools
import json
import time

import numpy as np
import torch
from accelerate import Accelerator
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from benchmarks.growth_cpu import rows_by_tools
from benchmarks.train_throughput import ROOT, SHAPES, TARGETS
from data_utils.batching import Example, TrainingData
from data_utils.prompt import PROMPT_FORMATS
from data_utils.tokens import encode_prompts
from model_utils.adapters import add_lora
from model_utils.attention import ISOLATED, has_varlen_kernel
from model_utils.cache_size import cache_tokens
from model_utils.cuda_graphs import use_cuda_graphs
from model_utils.generation import choose_engine, generate
from model_utils.model_facts import set_attention
from model_utils.speed import COMPILE, compile_layers, prepare_model
from model_utils.token_masks import compile_grammar
from train import completion_loss, cross_entropy

TAGS = PROMPT_FORMATS["tags-1"]
ON_GPU = torch.cuda.is_available()
SCALE = 1 if ON_GPU else 8
TRAINING_LENGTHS = [256, 1_024, 4_096, 8_192]  # tokens a row
STEP_TOKENS = 8_192
WARM_UP_STEPS, STEPS = 2, 6
COMPLETION = 0.19  # of a row's tokens, as in xLAM
NUMBERS_OF_ROWS, PROMPT_TOKENS = [100, 1_000, 10_000], 96
PROMPT_LENGTHS, TOTAL_TOKENS = [256, 1_024, 4_096, 8_192], 65_536
NUMBERS_OF_TOOLS, MOST_GRAMMARS = [1, 4, 16, 64], 20
NEW_TOKENS = 16


def measure_on_gpu(groups, shape):
    """Yields the lines of the groups "training" and "generation", each part when measured."""
    device = torch.device("cuda" if ON_GPU else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "demo" / "base")
    start = time.perf_counter()
    model = random_model(SHAPES[shape], tokenizer, device)
    yield {"group": "start", "part": "random weights", "size": 1, "rows": 1, **seconds_and_memory(start)}
    if "generation" in groups:
        yield from generation(model, tokenizer)
    if "training" in groups:
        yield from training(model, shape)


def random_model(shape, tokenizer, device):
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16 if ON_GPU else torch.float32)
    with device:
        model = Qwen3ForCausalLM(Qwen3Config(**shape, eos_token_id=tokenizer.eos_token_id, bos_token_id=None))
    torch.set_default_dtype(torch.float32)
    return model.requires_grad_(False).eval()


def seconds_and_memory(start):
    """The seconds since `start`, and the peak in GiB since the last call."""
    if ON_GPU:
        torch.cuda.synchronize()
    found = {"seconds": time.perf_counter() - start, "gib": 0.0, "start_gib": 0.0}
    if ON_GPU:
        found["gib"] = torch.cuda.max_memory_reserved() / 2**30
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return found


# ---- generation ----------------------------------------------------------------------------------


def generation(model, tokenizer):
    rng = np.random.default_rng(0)
    words = [token for token in sorted(tokenizer.get_vocab()) if token.isascii() and token.isalpha()]

    def prompts(count, tokens):  # a word is one token, the blank before it another
        return [" ".join(rng.choice(words, tokens // 2)) for _ in range(count)]

    start = time.perf_counter()
    longest = encode_prompts(tokenizer, prompts(2, PROMPT_LENGTHS[-1] // SCALE))
    engine = choose_engine(model, longest, len(longest[0]) + NEW_TOKENS)  # compiles kernels, and checks all lengths
    batch_tokens = cache_tokens(model, "auto")
    list(generate(model, tokenizer, TAGS, prompts(2, 64), 2, batch_tokens=4_096, engine=engine))
    yield {"group": "start", "part": "check of generation, kernels", "size": 1, "rows": 1, **seconds_and_memory(start)}

    def measured(group, part, size, texts, tools=None):
        start = time.perf_counter()
        options = {"batch_tokens": batch_tokens, "tools": tools, "engine": engine}
        done = [found for _, found in generate(model, tokenizer, TAGS, texts, NEW_TOKENS, **options)]
        found = seconds_and_memory(start)
        tokens = sum(generation.num_prompt_tokens + generation.num_tokens for generation in done)
        rates = {"rows_per_second": len(done) / found["seconds"], "tokens_per_second": tokens / found["seconds"]}
        return {"group": f"generation by {group}", "part": part, "size": size, "rows": len(texts), **found, **rates}

    for count in NUMBERS_OF_ROWS:
        part = f"prompts of {PROMPT_TOKENS} tokens, {NEW_TOKENS} new"
        yield measured("rows", part, count, prompts(-(-count // SCALE**2), PROMPT_TOKENS // SCALE))
    for tokens in PROMPT_LENGTHS:
        part = f"{TOTAL_TOKENS:,} tokens of prompts, {NEW_TOKENS} new a row"
        yield measured("tokens", part, tokens, prompts(-(-TOTAL_TOKENS // SCALE // tokens), tokens // SCALE))
    for count in NUMBERS_OF_TOOLS:
        rows = list(itertools.islice(rows_by_tools(count), MOST_GRAMMARS))
        texts = [TAGS.render(row["query"], row["tools"]) for row in rows]
        tokens = sum(map(len, encode_prompts(tokenizer, texts)))
        kept = max(1, len(rows) * TOTAL_TOKENS // SCALE // tokens)
        texts = list(itertools.islice(itertools.cycle(texts), kept))
        tools = list(itertools.islice(itertools.cycle([json.loads(row["tools"]) for row in rows]), kept))
        yield measured("tools", f"{NEW_TOKENS} new tokens", count, texts)
        if importlib.util.find_spec("xgrammar"):
            start = time.perf_counter()
            for offered in tools[:MOST_GRAMMARS]:
                compile_grammar(tokenizer, model.config.vocab_size, offered)
            found = seconds_and_memory(start)
            yield {
                "group": "generation by tools",
                "part": "grammars",
                "size": count,
                "rows": min(kept, MOST_GRAMMARS),
                **found,
            }
            yield measured("tools", f"{NEW_TOKENS} new tokens with a grammar at hand", count, texts, tools)


# ---- training ------------------------------------------------------------------------------------


def training(model, shape):
    """LoRA r=32 with dropout 0.05, as train.py runs it with --torch_compile --cuda_graphs. All
    lengths share the compiled layers; each has its own graphs."""
    accelerator = Accelerator(mixed_precision="bf16" if ON_GPU else "no", cpu=not ON_GPU)
    set_attention(model, ISOLATED if has_varlen_kernel(model.device, model.dtype) else "sdpa")
    adapted = add_lora(model, 32, 64, 0.05, TARGETS).train()
    compile_layers(adapted)
    token_loss = torch.compile(cross_entropy, **COMPILE)
    prepared = prepare_model(accelerator, adapted, cuda_graphs=True)
    trainable = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4, fused=ON_GPU)
    decoder = adapted.get_base_model().get_decoder()
    for length in TRAINING_LENGTHS:
        data = training_data(length // SCALE, STEP_TOKENS // length, SHAPES[shape]["vocab_size"])
        start = time.perf_counter()
        if ON_GPU:
            use_cuda_graphs(accelerator, adapted, data, range(WARM_UP_STEPS + STEPS))
        for number in range(WARM_UP_STEPS + STEPS):
            if number == WARM_UP_STEPS:
                found = seconds_and_memory(start)
                yield {
                    "group": "training",
                    "part": "until step 3, graphs or compilation",
                    "size": length,
                    "rows": 1,
                    **found,
                }
                start = time.perf_counter()
            step = data[number]
            for batch, _ in step:
                loss = completion_loss(prepared, batch, accelerator.device, cross_entropy=token_loss)
                accelerator.backward(loss / step.weight_sum)
            accelerator.clip_grad_norm_(trainable, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        decoder.__dict__.pop("forward", None)  # the next length's graphs take the place of these
        optimizer.zero_grad(set_to_none=True)
        found = seconds_and_memory(start)
        rows = STEPS * data.global_batch
        speed = {"tokens_per_second": rows * (length // SCALE) / found["seconds"]}
        yield {
            "group": "training",
            "part": f"{STEP_TOKENS:,} tokens a step",
            "size": length,
            "rows": rows,
            **found,
            **speed,
        }


def training_data(length, rows_a_step, vocab_size):
    """The optimizer steps of random rows of `length` tokens each."""
    rng = np.random.default_rng(0)
    weights = (np.arange(length) >= round(length * (1 - COMPLETION))).astype(np.float32)
    prompt_length = int(length - weights.sum())
    examples = [
        Example(f"row {number}", rng.integers(0, vocab_size, length, dtype=np.int32), prompt_length, weights)
        for number in range(rows_a_step * (WARM_UP_STEPS + STEPS))
    ]
    return TrainingData(examples, 0, rows_a_step, 1)
