"""Model families beside plain transformers: what is generated is the same, by slots where these are right and else without."""

import json

import pytest
import torch
from conftest import ROOT, TAGS, launch, values
from safetensors.torch import load_file
from transformers import AutoTokenizer, Gemma3Config, Gemma3ForConditionalGeneration, GenerationConfig

from benchmarks.check_families import SIZES, build
from data_utils.batching import encode_prompts, tokenize_rows
from data_utils.sources import load_rows
from model_utils.generation import generate, generated_by
from model_utils.loading import choose_attention
from run_utils.arguments import UserError


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ROOT / "demo" / "base")


@pytest.mark.parametrize(
    ("name", "by_slots"),
    [
        ("gemma3_text", True), ("deepseek_v3", True), ("gemma2", False), ("mamba2", False), ("llama4_text", False),
        ("codegen", False), ("mpt", False), ("stablelm", False), ("phi3 longrope", False), ("llama dynamic", False),
    ],
)  # fmt: skip
def test_generation_is_that_of_transformers(tokenizer, rows_file, name, by_slots):
    model = build(name).eval()
    prompts = [TAGS.render(row.query, row.tools) for row in load_rows(str(rows_file))[0][:4]]
    prompts += ["Is it raining in Rome? " * count for count in (1, 12)]
    texts = {index: generation.text for index, generation in generate(model, tokenizer, TAGS, prompts, 12, 8192)}
    assert (generated_by(model) == "continuous batching") == by_slots
    model = build(name).eval()
    model.generation_config = GenerationConfig(eos_token_id=0, pad_token_id=0)
    for index, ids in enumerate(encode_prompts(tokenizer, prompts)):
        ids = torch.from_numpy(ids).long()[None]
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        assert tokenizer.decode(out[0, ids.shape[1] :].tolist()).startswith(texts[index])


def test_attention_is_chosen_by_what_the_model_can_do(tokenizer, rows_file):
    examples, _ = tokenize_rows(tokenizer, TAGS, load_rows(str(rows_file))[0][:7], 4096)
    assert choose_attention(build("llama").eval(), "auto", "llama", examples, False) == "isolated"
    assert choose_attention(build("gemma2").eval(), "auto", "gemma2", examples, False) == "eager"
    with pytest.raises(UserError, match="--max_seq_length 128 keeps them apart"):
        choose_attention(build("llama dynamic").eval(), "auto", "dynamic", examples, False)


def test_any_end_token_of_the_model_ends_a_row(tokenizer, rows_file):
    model = build("llama").eval()
    prompts = [TAGS.render(row.query, row.tools) for row in load_rows(str(rows_file))[0][:3]]
    (first,) = {
        tokenizer(generation.text).input_ids[0] for _, generation in generate(model, tokenizer, TAGS, prompts[:1], 1, 1)
    }
    model.generation_config.eos_token_id = [first, tokenizer.eos_token_id]
    ((_, generation),) = generate(model, tokenizer, TAGS, prompts[:1], 9, 1)
    assert (generation.text, generation.finish) == ("", "end")


def test_positions_bound_prompts_and_answers(tokenizer):
    model = build("gpt2").eval()
    model.config.n_positions = 40
    prompts = ["a b c d e " * 10, "a b c d e " * 3]
    lengths = [len(ids) for ids in encode_prompts(tokenizer, prompts)]
    assert lengths[1] < 40 <= lengths[0]
    found = dict(generate(model, tokenizer, TAGS, prompts, 100, 8192))
    assert found[0][:3] == ("", 0, "too_long")
    assert found[1].num_tokens <= 40 - lengths[1] and json.dumps(found[1].text)


def test_of_a_model_that_also_sees_only_the_decoder_of_text_is_trained(tokenizer, flags, tmp_path):
    """Adapters in the tower for images would get no gradient, which DDP does not bear."""
    text = SIZES | {"head_dim": 16, "sliding_window": 64, "num_hidden_layers": 2}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
              "patch_size": 14}  # fmt: skip
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
