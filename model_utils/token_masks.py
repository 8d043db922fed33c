"""Constrained decoding by xgrammar: grammars compiled for a tokenizer, and the tokens that may come next as masks."""

import functools
import json

import torch

from data_utils.prompt import to_json
from model_utils.grammar import calls_grammar
from run_utils.errors import UserError


def compile_grammar(tokenizer, vocab_size, tools):
    """The grammar of the answers to a prompt with these tools; equal tools share one.

    vocab_size: how many logits the model has, `config.get_text_config().vocab_size`, which may be more than its tokenizer has
    tokens. Raises UserError if xgrammar is missing, or fails on the tools.
    """
    return compiled(tokenizer, vocab_size, to_json(tools))


def accepts(tokenizer, vocab_size, tools, text):
    """Whether a text is an answer of the grammar of these tools."""
    grammar = compile_grammar(tokenizer, vocab_size, tools)
    matcher = import_xgrammar().GrammarMatcher(grammar, terminate_without_stop_token=True)
    return matcher.accept_string(text) and matcher.is_terminated()


@functools.lru_cache(maxsize=2**12)  # about 0.3 MB each
def compiled(tokenizer, vocab_size, tools):
    xgrammar = import_xgrammar()
    try:
        grammar = xgrammar.Grammar.from_ebnf(calls_grammar(json.loads(tools)))
        return compiler(tokenizer, vocab_size).compile_grammar(grammar)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"xgrammar makes no grammar of the tools {tools[:300]}: {reason}") from None


@functools.lru_cache(maxsize=4)
def compiler(tokenizer, vocab_size):
    xgrammar = import_xgrammar()
    end_token = [tokenizer.eos_token_id]
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocab_size, stop_token_ids=end_token)
    texts = list(info.decoded_vocab)
    # Taken for the text that spells it, a special token could stand in any string. One without text is never allowed.
    for token, spelled in tokenizer.added_tokens_decoder.items():
        if spelled.special and token < vocab_size:
            texts[token] = b""
    info = xgrammar.TokenizerInfo(
        texts,
        xgrammar.VocabType.RAW,
        vocab_size=vocab_size,
        stop_token_ids=end_token,
        add_prefix_space=info.add_prefix_space,
    )
    # With its cache, xgrammar 0.2.8 refuses texts that a grammar has: findings/xgrammar_grammars.sh.
    return xgrammar.GrammarCompiler(info, cache_enabled=False)


def import_xgrammar():
    try:
        import xgrammar
    except ImportError as error:
        raise UserError(f"constrained decoding needs a package ({error}): pip install xgrammar") from None
    return xgrammar


def new_matcher(grammar, end_tokens):
    """The state of one text under a grammar: `accept_token` takes its next token. After a complete text any of `end_tokens` may
    come, and nothing else."""
    return import_xgrammar().GrammarMatcher(grammar, override_stop_tokens=sorted(end_tokens))


class TokenMasks:
    """The tokens that may come next in each of `num_rows` rows, as bits at one address on the device, which a CUDA graph can read."""

    def __init__(self, grammar, num_rows, device):
        self.vocab_size = grammar.tokenizer_info.vocab_size
        words = -(-self.vocab_size // 32)
        # Grammars fill theirs on the CPU: memory that the GPU reads by itself is copied without waiting.
        self.filled = torch.full((num_rows, words), -1, dtype=torch.int32, pin_memory=device.type == "cuda")
        self.bits = self.filled.to(device)  # on a CPU the same tensor
        # Of a byte, the lowest first, which is the first token's.
        self.each_bit = 2 ** torch.arange(8, dtype=torch.uint8, device=device)
        self.matchers = import_xgrammar().BatchGrammarMatcher()

    def fill(self, matchers):
        """matchers: `{row: new_matcher's}`, None of a row without a grammar. To be called once the tokens of the step
        before are known on the CPU: until then the GPU may still be reading."""
        free = [row for row, matcher in matchers.items() if matcher is None]
        bound = {row: matcher for row, matcher in matchers.items() if matcher is not None}
        self.filled[free] = -1
        if bound:
            self.matchers.batch_fill_next_token_bitmask(list(bound.values()), self.filled, list(bound))
        if self.bits is not self.filled:
            self.bits.copy_(self.filled, non_blocking=True)

    def apply(self, logits, rows=slice(None)):
        """The logits [rows, vocabulary], of all rows or those that an int64 tensor names, with -inf for forbidden tokens."""
        if logits.shape[-1] != self.vocab_size:
            raise ValueError(f"grammars compiled for {self.vocab_size} tokens, and {logits.shape[-1]} logits")
        # By bytes rather than words, which makes a quarter of the traffic.
        allowed = self.bits[rows].view(torch.uint8)[:, :, None] & self.each_bit
        return logits.masked_fill((allowed == 0).flatten(1)[:, : self.vocab_size], float("-inf"))


def token_masks(answers, num_rows, device):
    """Room for the masks of `num_rows` rows, or None where no answer has a grammar."""
    grammar = next((answer.grammar for answer in answers if answer.grammar is not None), None)
    return TokenMasks(grammar, num_rows, device) if grammar is not None else None
