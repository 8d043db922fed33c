"""Batched greedy generation equals generation one at a time and stops correctly."""

import math
import time
from collections import deque

import numpy as np
import pytest
import torch
from conftest import ROOT, TAGS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_utils.sources import load_rows
from data_utils.tokens import encode_prompts
from model_utils import slot_plans
from model_utils.generation import Answer, choose_engine, generate
from model_utils.slot_plans import PREFILL_TOKENS, common_beginning, plan_groups, plan_prefill
from model_utils.slots import Slots, slots_modules

BASE = ROOT / "demo" / "base"  # a random model repeats one token for any prompt


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def prompts(rows_file):
    return [TAGS.render(row.query, row.tools) for row in load_rows(str(rows_file))[0][:32]]


def plain_completion(model, tokenizer, prompt, max_new_tokens):
    """The tokens of transformers' generate, without the end token."""
    ids = torch.from_numpy(encode_prompts(tokenizer, [prompt])[0]).long()[None]
    tokens = model.generate(ids, max_new_tokens=max_new_tokens, do_sample=False)[0, ids.shape[1] :].tolist()
    return tokens[: tokens.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in tokens else tokens


def test_batched_equals_one_at_a_time_equals_plain_transformers(model, tokenizer, prompts):
    batched = dict(generate(model, tokenizer, TAGS, prompts, 40, batch_tokens=50_000))
    alone = dict(generate(model, tokenizer, TAGS, prompts[:12], 40, batch_tokens=1))
    assert sorted(batched) == list(range(32))
    # Rows stop at different lengths.
    assert len({generation.num_tokens for generation in batched.values()}) > 5
    for i, prompt in enumerate(prompts[:12]):
        assert batched[i][:3] == alone[i][:3]
        assert batched[i].num_prompt_tokens == len(encode_prompts(tokenizer, [prompt])[0])
        plain = plain_completion(model, tokenizer, prompt, 40)
        assert tokenizer.decode(plain[: batched[i].num_tokens]) == batched[i].text
        if batched[i].finish != "closed":
            assert len(plain) == batched[i].num_tokens
            assert (len(plain) == 40) == (batched[i].finish == "length")


def test_rows_reuse_the_slots_of_finished_rows(model, tokenizer, prompts):
    """Three slots for 32 rows: no row sees the cache of an earlier row."""
    room = max(map(len, encode_prompts(tokenizer, prompts))) + 40
    few = dict(generate(model, tokenizer, TAGS, prompts, 40, batch_tokens=3 * room))
    many = dict(generate(model, tokenizer, TAGS, prompts, 40, batch_tokens=50_000))
    assert all(few[i][:3] == many[i][:3] for i in range(32))


def test_prompts_share_the_pass_over_their_beginning(model, tokenizer, prompts, monkeypatch):
    ids = encode_prompts(tokenizer, prompts)
    beginning = common_beginning(ids)
    assert beginning >= len(tokenizer(prompts[0].partition("<tools>")[0]).input_ids)
    engine, read = choose_engine(model, ids, max(map(len, ids)) + 40), []
    hook = model.register_forward_pre_hook(lambda module, args, kwargs: read.append(kwargs), with_kwargs=True)
    shared = dict(generate(model, tokenizer, TAGS, prompts, 40, batch_tokens=50_000, engine=engine))
    hook.remove()
    tokens = sum(kwargs["input_ids"].shape[1] for kwargs in read if "cu_seq_lens_q" in kwargs)
    assert tokens == sum(map(len, ids)) - (len(ids) - 1) * beginning
    monkeypatch.setattr(slot_plans, "LEAST_SAVED", math.inf)
    alone = dict(generate(model, tokenizer, TAGS, prompts, 40, batch_tokens=50_000))
    assert all(shared[i][:3] == alone[i][:3] for i in range(32))


@pytest.mark.parametrize("num_slots", [1, 2])
def test_a_shared_beginning_changes_neither_texts_nor_drafts(model, tokenizer, prompts, monkeypatch, num_slots):
    ids = encode_prompts(tokenizer, prompts[:6])
    room, found = max(map(len, ids)) + 40, []
    engine = choose_engine(model, ids, room)
    for least in (1, math.inf):
        monkeypatch.setattr(slot_plans, "LEAST_SAVED", least)
        calls = []
        hook = model.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)  # noqa: B023
        done = generate(model, tokenizer, TAGS, prompts[:6], 40, batch_tokens=num_slots * room, engine=engine)
        texts = {index: generation[:3] for index, generation in done}
        hook.remove()
        found.append((texts, sum("slot_lengths" in kwargs for kwargs in calls)))
    assert found[0] == found[1]


def test_a_beginning_is_common_if_all_prompts_have_it_and_more_tokens():
    prompts = [np.array([*range(2000), *rest]) for rest in ([7, 8], [7, 9, 3], [7])]
    assert common_beginning(prompts) == 2000
    assert common_beginning([*prompts, prompts[0][:1500]]) == 1499
    assert common_beginning([*prompts, prompts[0][1:]]) == 0
    assert common_beginning(prompts[:1]) == 0
    assert common_beginning([prompt[-100:] for prompt in prompts[:2]]) == 0  # costs more than it saves


def test_the_last_prompts_do_not_wait_for_many_slots(model, tokenizer, prompts, monkeypatch):
    """The last prompt exceeds the first prefill but has a slot: its prefill precedes decoding."""
    monkeypatch.setattr(slot_plans, "LEAST_SAVED", math.inf)
    lengths = {prompt: len(ids) for prompt, ids in zip(prompts, encode_prompts(tokenizer, prompts), strict=True)}
    longest = sorted(lengths, key=lengths.get, reverse=True)
    first = [i for i in range(len(longest)) if sum(lengths[prompt] for prompt in longest[:i]) <= PREFILL_TOKENS][-1]
    choose_engine(model, encode_prompts(tokenizer, longest), 0)  # its passes do not count
    passes = []
    hook = model.register_forward_pre_hook(lambda module, args, kwargs: passes.append(kwargs), with_kwargs=True)
    list(generate(model, tokenizer, TAGS, longest[: first + 1], 40, batch_tokens=50_000))
    hook.remove()
    assert [i for i, kwargs in enumerate(passes) if "cu_seq_lens_q" in kwargs] == [0, 1]


def test_a_sliding_window_is_respected(tokenizer, prompts):
    model = AutoModelForCausalLM.from_pretrained(
        BASE, dtype=torch.float32, layer_types=["sliding_attention", "full_attention"] * 4, sliding_window=16
    ).eval()
    windowed = dict(generate(model, tokenizer, TAGS, prompts[:10], 40, batch_tokens=20_000))
    assert sum(generation.num_tokens for generation in windowed.values()) > 60
    for i, generation in windowed.items():
        plain = plain_completion(model, tokenizer, prompts[i], 40)
        assert tokenizer.decode(plain[: generation.num_tokens]) == generation.text


def test_prompts_that_share_a_cache_are_of_similar_length():
    groups = plan_groups(dict(enumerate([15, 100, 40, 41, 210, 17, 110])), batch_tokens=250)
    assert groups == [([4, 6], 1, 210), ([1], 1, 100), ([3, 2, 5, 0], 4, 41)]
    rooms = dict(enumerate([310, *[15] * 7]))
    assert plan_groups(rooms, batch_tokens=310) == [([0], 1, 310), ([1, 2, 3, 4, 5, 6, 7], 7, 15)]
    assert plan_groups({3: 15, 8: 17}, batch_tokens=1) == [([8, 3], 1, 17)]


def test_prompts_enter_free_slots_in_passes_that_are_worth_their_time():
    prompts = {0: [0] * (PREFILL_TOKENS + 1)} | {index: [0] * (PREFILL_TOKENS // 4) for index in range(1, 20)}
    waiting = deque(prompts)
    # A long prompt alone, a full pass, and a quarter of the slots; one slot of eight stays free.
    assert plan_prefill(waiting, prompts, num_free=8, num_slots=8) == [[0], [1, 2, 3, 4], [5, 6, 7]]
    assert plan_prefill(waiting, prompts, num_free=1, num_slots=8) == []
    assert plan_prefill(waiting, prompts, num_free=4, num_slots=100) == [[8, 9, 10, 11]]
    assert plan_prefill(waiting, prompts, num_free=3, num_slots=100) == []
    # The last prompts do not wait.
    last = deque([18, 19])
    assert plan_prefill(last, prompts, num_free=3, num_slots=100) == [[18, 19]] and not last


def test_the_seconds_of_the_rows_add_up_to_the_time_of_all(model, tokenizer, prompts):
    start = time.perf_counter()
    done = dict(generate(model, tokenizer, TAGS, prompts, 8, batch_tokens=3000))
    elapsed = time.perf_counter() - start
    assert 0 < sum(generation.seconds for generation in done.values()) <= elapsed
    assert all(generation.seconds > 0 for generation in done.values())


@pytest.mark.parametrize(
    ("text", "finish", "kept"),
    [
        ("[1] x y", "closed", "[1] x"),
        ("[1]</answer>\n[2]", "closed", "[1]</answer>"),
        ("[[2] x y z", "length", "[[2] x y"),
        ("[CALLS] [3] x y", "length", "[CALLS] [3] x"),
        ("[3]", "end", "[3]"),
    ],
)
def test_a_row_stops_at_its_value_its_budget_or_an_end_token(model, tokenizer, text, finish, kept):
    tokens = [*tokenizer(text).input_ids, tokenizer.eos_token_id]
    answer = Answer(0, len(tokenizer(kept).input_ids) if finish == "length" else 99, model, tokenizer, TAGS)
    reasons = []
    while not reasons or not reasons[-1]:
        reasons.append(answer.add(tokens[len(reasons)]))
    assert reasons[-1] == answer.finish == finish
    assert answer.text() == kept and len(answer.tokens) == len(reasons) - (finish == "end")


PIECES = [
    *("[", "]", "{", "}", '"', "\\", '{"a": 1}', ", ", " ", "\n", "x", "\u3000", "é", "😀", "</answer>", "</"),
    '[{"a": "]"}]',
]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=12).map("".join))
def test_the_first_token_that_finishes_the_text_closes_a_row(model, tokenizer, text):
    tokens = tokenizer(text).input_ids
    ends = [n for n in range(1, len(tokens) + 1) if TAGS.finished(tokenizer.decode(tokens[:n]))]
    answer = Answer(0, len(tokens) + 1, model, tokenizer, TAGS)
    added = next((n for n, token in enumerate(tokens, start=1) if answer.add(token)), None)
    assert (added, answer.finish) == ((ends[0], "closed") if ends else (None, None))


def test_a_slot_without_a_row_attends_to_one_token(tiny_model):
    """Also while the other slots go on: more tokens cost time."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    with slots_modules(model, fused=False), torch.inference_mode():
        slots = Slots(model, num_slots=3, length=20)
        slots.prefill([0, 1], [torch.arange(5, 9).int().numpy(), torch.arange(5, 8).int().numpy()])
        for step in range(4):
            slots.choose()
            if step == 0:
                slots.release([1])
            slots.forward()
        assert slots.lengths.tolist() == [8, 0, 0]
        assert slots.cache.write_at[1].tolist() == [7, 0, 0]


@pytest.mark.parametrize("drafts", [0, 3])
def test_shared_tokens_stay_in_all_slots(tiny_model, drafts):
    """Also in slots without a row, which a pass computes too."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    with slots_modules(model, fused=False), torch.inference_mode():
        slots = Slots(model, num_slots=3, length=30, drafts=drafts)
        beginning = torch.arange(5, 11).int()
        slots.share(range(3), beginning.numpy())
        shared = [states[0, :, :6].clone() for states in (*slots.cache.keys, *slots.cache.values)]
        slots.prefill([1], [torch.arange(12, 15).int().numpy()])
        for _ in range(3):
            slots.choose()
            slots.forward()
        assert slots.lengths.tolist()[0] == slots.lengths.tolist()[2] == 0 < slots.lengths[1]
        assert (slots.history[:, :6] == beginning).all()
        for states, expected in zip((*slots.cache.keys, *slots.cache.values), shared, strict=True):
            assert all(torch.equal(states[slot, :, :6], expected) for slot in range(3))
