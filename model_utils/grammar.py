"""Constrained decoding: a row's tools as a grammar of the answers allowed, and which tokens that leaves at each step.

By xgrammar, which is optional: it is imported where grammars are compiled. Its masks are applied in plain torch operations, the
same on a CPU as inside a CUDA graph.
"""

import functools
import json

import torch

from data_utils.tool_schema import tool_schema
from run_utils.arguments import UserError


def calls_schema(tools):
    """The JSON Schema of a list of calls to these tools (parsed, in xLAM's flat form), in any number, none included."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": tool["name"]}, "arguments": tool_schema(tool)},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    return {"type": "array", "items": {"anyOf": calls}} if calls else {"type": "array", "maxItems": 0}


def compile_grammars(tokenizer, vocab_size, list_of_tools):
    """A grammar for each list of tools, for `generate(..., grammars=...)`; equal lists share one.

    vocab_size: how many logits the model has, `config.get_text_config().vocab_size`, which may be more than its tokenizer has
    tokens. Texts are one line with ", " and ": ", keys in the order in which the tool declares them: in any order, xgrammar
    would let a key come twice. Raises UserError where xgrammar is missing, or fails on the tools.
    """
    schemas = [json.dumps(calls_schema(tools)) for tools in list_of_tools]
    return [compiled(tokenizer, vocab_size, schema) for schema in schemas]


@functools.lru_cache(maxsize=2**14)  # about 0.1 MB each
def compiled(tokenizer, vocab_size, schema):
    try:
        # Not strict: that would keep what a schema leaves open, a free-form object's keys say, empty.
        return compiler(tokenizer, vocab_size).compile_json_schema(
            schema, any_whitespace=False, separators=(", ", ": "), strict_mode=False
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"xgrammar makes no grammar of the tools with the schema {schema[:300]}: {reason}") from None


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
    return xgrammar.GrammarCompiler(info, cache_enabled=False)


def import_xgrammar():
    try:
        import xgrammar
    except ImportError as error:
        raise UserError(f"constrained decoding needs a package ({error}): pip install xgrammar") from None
    return xgrammar


def new_matcher(grammar, end_tokens):
    """The state of one text under a grammar: `accept_token` takes its next token. Once the text is complete, any of `end_tokens`
    may come, and nothing else."""
    return import_xgrammar().GrammarMatcher(grammar, override_stop_tokens=sorted(end_tokens))


class TokenMasks:
    """Which tokens each of `num_rows` rows may say next, as bits at one address on the device, which a CUDA graph can read."""

    def __init__(self, grammar, num_rows, device):
        self.vocab_size = grammar.tokenizer_info.vocab_size
        words = -(-self.vocab_size // 32)
        # Grammars fill theirs on the CPU: memory that the GPU reads by itself is copied without waiting.
        self.filled = torch.full((num_rows, words), -1, dtype=torch.int32, pin_memory=device.type == "cuda")
        self.bits = self.filled.to(device)  # on a CPU the same tensor
        self.each_bit = 2 ** torch.arange(
            8, dtype=torch.uint8, device=device
        )  # of a byte: the lowest is the first token's
        self.matchers = import_xgrammar().BatchGrammarMatcher()

    def fill(self, matchers):
        """matchers: `{row: new_matcher's}`, None of a row that may say anything. To be called once the tokens of the step
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
