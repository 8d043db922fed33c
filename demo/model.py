"""The demo's base model: a Qwen3 of about three and a half million parameters, and a tokenizer for
easy copying of values."""

import copy
import os
import tempfile
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from run_utils.files import apply_umask

END_TOKEN = "<|endoftext|>"
# Words (each part of a camelCase name is one), single digits, line ends, and runs of other
# characters. A value has the same tokens after a space in a query and after a quote in JSON, so
# copying it only repeats tokens.
PIECES = Regex(r"\p{Lu}?\p{Ll}+|\p{Lu}+(?!\p{Ll})|\p{L}|\p{N}|\n|[^\p{L}\p{N}\n]+")


def build_tokenizer(texts, vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE on an iterable of texts. It adds no special tokens, and decoding
    restores any text exactly."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(PIECES, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_TOKEN], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_TOKEN, pad_token=END_TOKEN, clean_up_tokenization_spaces=False
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """A randomly initialised model for the tokenizer, in float32."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=6,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(config)


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: str) -> None:
    """Saves both for `AutoModelForCausalLM` and `AutoTokenizer`, with weights in bfloat16."""
    os.makedirs(folder, exist_ok=True)
    # Written to a temporary folder and moved, so that an interruption leaves whole files.
    with tempfile.TemporaryDirectory(dir=folder) as partial:
        copy.deepcopy(model).to(torch.bfloat16).save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        apply_umask(*Path(partial).iterdir())
        for name in os.listdir(partial):
            os.replace(os.path.join(partial, name), os.path.join(folder, name))
