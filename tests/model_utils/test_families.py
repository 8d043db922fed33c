"""Model families generate the texts of transformers, by slots if slots are correct for them."""

import json

import pytest
import torch
from conftest import ROOT, TAGS, launch, values
from safetensors.torch import load_file
from transformers import AutoTokenizer, Gemma3Config, Gemma3ForConditionalGeneration, GenerationConfig

import evaluate
import infer
from benchmarks.check_families import FAMILIES, SIZES, build
from data_utils.batching import tokenize_rows
from data_utils.sources import load_rows
from data_utils.tokens import encode_prompts
from model_utils.generation import generate, generated_by
from model_utils.loading import choose_attention
from run_utils.errors import UserError


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ROOT / "demo" / "base")


def plain_text(model, tokenizer, prompt, new_tokens):
    model.generation_config = GenerationConfig(eos_token_id=0, pad_token_id=0)
    ids = torch.from_numpy(encode_prompts(tokenizer, [prompt])[0]).long()[None]
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False)
    return tokenizer.decode(out[0, ids.shape[1] :].tolist())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "by_slots"),
    [
        ("gemma3_text", True), ("deepseek_v3", True), ("gemma2", False), ("mamba2", False), ("llama4_text", False),
        ("codegen", False), ("mpt", False), ("stablelm", False), ("phi3 longrope", False), ("llama dynamic", False),
    ],
)  # fmt: skip
def test_generation_equals_transformers(tokenizer, rows_file, name, by_slots):
    model = build(name).eval()
    prompts = [TAGS.render(row.query, row.tools) for row in load_rows(str(rows_file))[0][:4]]
    prompts += ["Is it raining in Rome? " * count for count in (1, 12)]
    texts = {
        index: generation.text for index, generation in generate(model, tokenizer, TAGS, prompts, 12, batch_tokens=8192)
    }
    assert (generated_by(model) == "continuous batching") == by_slots
    model = build(name).eval()
    for index, prompt in enumerate(prompts):
        assert plain_text(model, tokenizer, prompt, 12).startswith(texts[index])


@pytest.mark.parametrize(
    ("name", "over"),
    [
        ("llama4_text", {"attention_chunk_size": 64}), ("gemma3_text", {"sliding_window": 64}), ("phi3 longrope", {}),
        ("llama dynamic", {}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_limits_that_only_the_answers_cross_are_found(tokenizer, monkeypatch, name, over, dtype):
    """Prompts within the chunk, window or first position range, answers beyond it. In bf16, one
    row's effect on another may be as small as rounding."""
    monkeypatch.setitem(FAMILIES, name, FAMILIES[name] | over)
    limit = 64 if over else 128
    ids = encode_prompts(tokenizer, ["Is it raining in Rome? " * 40])[0]
    prompts = [tokenizer.decode(ids[:length].tolist()) for length in (limit - 8, limit - 12, limit // 2)]
    model = build(name).eval().to(dtype)
    texts = {
        index: generation.text for index, generation in generate(model, tokenizer, TAGS, prompts, 40, batch_tokens=8192)
    }
    assert (generated_by(model) == "continuous batching") == (name == "gemma3_text")
    for index, prompt in enumerate(prompts if dtype == torch.float32 else ()):
        assert plain_text(build(name).eval(), tokenizer, prompt, 40).startswith(texts[index])


def test_attention_is_chosen_by_a_check_of_the_model(tokenizer, rows_file):
    examples = tokenize_rows(tokenizer, TAGS, load_rows(str(rows_file))[0][:7], 4096).examples
    assert choose_attention(build("llama").eval(), "auto", "llama", examples, False) == "isolated"
    assert choose_attention(build("gemma2").eval(), "auto", "gemma2", examples, False) == "eager"
    with pytest.raises(UserError, match="--max_seq_length 128 keeps them apart"):
        choose_attention(build("llama dynamic").eval(), "auto", "dynamic", examples, False)


def test_any_end_token_of_the_model_ends_a_row(tokenizer, rows_file):
    model = build("llama").eval()
    prompts = [TAGS.render(row.query, row.tools) for row in load_rows(str(rows_file))[0][:3]]
    (first,) = {
        tokenizer(generation.text).input_ids[0]
        for _, generation in generate(model, tokenizer, TAGS, prompts[:1], 1, batch_tokens=1)
    }
    model.generation_config.eos_token_id = [first, tokenizer.eos_token_id]
    ((_, generation),) = generate(model, tokenizer, TAGS, prompts[:1], 9, batch_tokens=1)
    assert (generation.text, generation.finish) == ("", "end")


def test_positions_bound_prompts_and_answers(tokenizer):
    model = build("gpt2").eval()
    model.config.n_positions = 40
    prompts = ["a b c d e " * 10, "a b c d e " * 3]
    lengths = [len(ids) for ids in encode_prompts(tokenizer, prompts)]
    assert lengths[1] < 40 <= lengths[0]
    found = dict(generate(model, tokenizer, TAGS, prompts, 100, batch_tokens=8192))
    assert found[0][:3] == ("", 0, "too_long")
    assert found[1].num_tokens <= 40 - lengths[1] and json.dumps(found[1].text)


@pytest.mark.slow
def test_only_the_text_decoder_of_an_image_model_is_trained(tokenizer, flags, tmp_path):
    """Adapters in the image tower would get no gradient, and DDP would fail."""
    text = SIZES | {"head_dim": 16, "sliding_window": 64, "num_hidden_layers": 2}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    config = Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, eos_token_id=0, pad_token_id=0,
        image_token_index=3000, boi_token_index=3001, eoi_token_index=3002,
    )  # fmt: skip
    torch.manual_seed(0)
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    flags |= {"model_name_or_path": tmp_path / "model", "max_train_steps": 3, "eval_generate_examples": 2}
    losses = []
    for processes in (1, 2):
        output_dir = tmp_path / f"{processes}"
        cut = {"output_dir": output_dir, "gradient_accumulation_steps": 4 // processes}
        result = launch("train.py", flags | cut, processes)
        assert result.code == 0, result.err
        losses.append(values(output_dir, "train/loss"))
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
    names = load_file(output_dir / "adapter" / "adapter_model.safetensors")
    assert len(names) == 2 * 2 * 7 and not [name for name in names if "language_model" not in name]


def test_rows_near_the_position_limit_are_checked_and_answered(run_here, train_here, tokenizer, flags, rows_file):
    """Some held-out rows exceed the positions; one leaves a few for its answer."""
    lengths = sorted(len(encode(tokenizer, row)) for row in load_rows(str(rows_file))[0])
    model = build("gpt2").eval()
    model.config.n_positions = lengths[len(lengths) // 2]
    model.transformer.wpe = torch.nn.Embedding(model.config.n_positions, 64)
    folder = flags["output_dir"].parent / "short"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    flags |= {"model_name_or_path": folder, "lora_target_modules": ["c_attn"], "max_train_steps": 1,
              "eval_fraction": 0.3, "eval_generate_examples": 9}  # fmt: skip
    adapter = train_here(flags) / "adapter"
    result = run_here(evaluate, {"adapter": adapter, "systems": ["adapter"]})
    assert result.code == 0 and "too_long" in result.out, result.err
    assert (
        json.loads((adapter.parent / "evaluation" / "metrics.json").read_text())["generated_by"]
        == "continuous batching"
    )
    tools = flags["output_dir"].parent / "tools.json"
    tools.write_text('[{"name": "f", "description": "' + "far too long " * 300 + '"}]')
    result = run_here(infer, {"adapter": adapter, "query": "hi", "tools": tools})
    assert result.code == 1 and "positions: offer fewer tools" in result.err


def encode(tokenizer, row):
    return encode_prompts(tokenizer, [TAGS.render(row.query, row.tools) + row.answers])[0]
