"""Constrained decoding by xgrammar: grammars compiled for a tokenizer, and masks of the allowed
next tokens."""

import contextlib
import functools
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from data_utils.prompt import to_json
from model_utils.grammar import calls_grammar
from run_utils.cores import cores_of_process
from run_utils.errors import UserError, one_line

# Of one token's text that no grammar allows: no letter has this byte.
NO_TEXT = b"\xff"
ROWS_PER_THREAD = 16  # a thread fills 16 masks in about the time that it takes to start
COMPILER_LOCK = threading.Lock()  # the first threads need the same compiler


def compile_grammar(tokenizer, vocab_size, tools):
    """The grammar of the answers to a prompt with these tools. Equal tools share one grammar.

    vocab_size: the number of the model's logits, `config.get_text_config().vocab_size`, which may
    exceed the number of its tokenizer's tokens. Raises UserError if xgrammar is missing, or fails
    on the tools."""
    return compiled(tokenizer, vocab_size, to_json(tools))


@contextlib.contextmanager
def compiling(tokenizer, vocab_size):
    """Gives `compile_later(tools)`: a Future of compile_grammar's result.

    Threads compile in the order of the calls. xgrammar lets other threads run meanwhile; a grammar
    of real tools takes it about 25 ms. At the end, grammars that no thread has begun are
    dropped."""
    pool = ThreadPoolExecutor(max(1, cores_of_process() - 1))
    submit = functools.cache(lambda tools: pool.submit(compiled, tokenizer, vocab_size, tools))
    try:
        yield lambda tools: submit(to_json(tools))
    finally:
        pool.shutdown(cancel_futures=True)


def accepts(tokenizer, vocab_size, tools, text):
    """Whether the grammar of these tools accepts a text as an answer."""
    grammar = compile_grammar(tokenizer, vocab_size, tools)
    matcher = import_xgrammar().GrammarMatcher(grammar, terminate_without_stop_token=True)
    return matcher.accept_string(text) and matcher.is_terminated()


@functools.lru_cache(maxsize=2**12)  # about 0.3 MB each
def compiled(tokenizer, vocab_size, tools):
    xgrammar = import_xgrammar()
    try:
        grammar = xgrammar.Grammar.from_ebnf(calls_grammar(json.loads(tools)))
        with COMPILER_LOCK:
            grammar_compiler = compiler(tokenizer, vocab_size)
        return grammar_compiler.compile_grammar(grammar)
    except RuntimeError as error:
        raise UserError(f"xgrammar makes no grammar of the tools {tools[:300]}: {one_line(error)[:300]}") from None


@functools.lru_cache(maxsize=4)
def compiler(tokenizer, vocab_size):
    xgrammar = import_xgrammar()
    end_token = [tokenizer.eos_token_id]
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocab_size, stop_token_ids=end_token)
    # A token without text is never allowed. xgrammar would do the same for an empty text, but look
    # through all such tokens for each mask and each next token: 0.3 ms with 150,000 of them.
    texts = [text or NO_TEXT for text in info.decoded_vocab]
    # Matched by its text, a special token could be in any string.
    for token, spelled in tokenizer.added_tokens_decoder.items():
        if spelled.special and token < vocab_size:
            texts[token] = NO_TEXT
    info = xgrammar.TokenizerInfo(
        texts,
        xgrammar.VocabType.RAW,
        vocab_size=vocab_size,
        stop_token_ids=end_token,
        add_prefix_space=info.add_prefix_space,
    )
    # With its cache, xgrammar 0.2.8 refuses texts that match a grammar:
    # findings/xgrammar_grammars.sh. Threads compile one grammar each (see `compiling`).
    return xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)


def import_xgrammar():
    try:
        import xgrammar
    except ImportError as error:
        raise UserError(f"constrained decoding needs a package ({error}): pip install xgrammar") from None
    return xgrammar


def new_matcher(grammar, end_tokens):
    """The state of one text under a grammar: `accept_token` takes its next token. A complete text
    only accepts `end_tokens`."""
    return import_xgrammar().GrammarMatcher(grammar, override_stop_tokens=sorted(end_tokens))


class TokenMasks:
    """The allowed next tokens of `num_rows` rows, after a row's newest token and after each of its
    drafts, as bits at a fixed address on the device, which a CUDA graph can read. vocab_size: see
    compile_grammar."""

    def __init__(self, vocab_size, num_rows, device, drafts=0):
        self.vocab_size = vocab_size
        words = -(-self.vocab_size // 32)
        # Grammars fill a CPU tensor. The GPU copies pinned memory without a wait.
        self.filled = torch.full((num_rows, 1 + drafts, words), -1, dtype=torch.int32, pin_memory=device.type == "cuda")
        self.bits = self.filled.to(device)  # on a CPU the same tensor
        # A byte's bits, the lowest first: it is the first token's.
        self.each_bit = 2 ** torch.arange(8, dtype=torch.uint8, device=device)
        threads = min(cores_of_process(), -(-num_rows // ROWS_PER_THREAD))
        self.matchers = import_xgrammar().BatchGrammarMatcher(max_threads=threads)
        # Drafts as a tree of one branch: the node after each node, and no node beside it.
        self.following = torch.tensor([*range(1, 1 + drafts), -1])
        self.beside = torch.full_like(self.following, -1)

    def fill(self, matchers, tokens=None):
        """matchers: `{row: matcher}` of new_matcher, None for a row without a grammar. Other rows
        keep their masks. tokens, if there are drafts: each row's newest token and drafts, int64
        [num_rows, 1 + drafts] on the CPU. After a forbidden draft a row has any masks. Call this
        after the rows' previous tokens are on the CPU: before, the GPU may still read their
        bits."""
        free = [row for row, matcher in matchers.items() if matcher is None]
        bound = {row: matcher for row, matcher in matchers.items() if matcher is not None}
        self.filled[free] = -1
        if len(self.following) > 1:
            for row, matcher in bound.items():
                matcher.traverse_draft_tree(self.following, self.beside, tokens[row], self.filled[row])
        elif bound:
            self.matchers.batch_fill_next_token_bitmask(list(bound.values()), self.filled[:, 0], list(bound))
        if self.bits is not self.filled:
            self.bits.copy_(self.filled, non_blocking=True)

    def apply(self, logits):
        """The logits [rows, tokens, vocabulary] with -inf for forbidden tokens. tokens: the newest
        and its drafts, or the first of them."""
        if logits.shape[-1] != self.vocab_size:
            raise ValueError(f"grammars compiled for {self.vocab_size} tokens, and {logits.shape[-1]} logits")
        # Bytes need a quarter of the memory traffic of words.
        allowed = self.bits[:, : logits.shape[1]].view(torch.uint8)[..., None] & self.each_bit
        return logits.masked_fill((allowed == 0).flatten(2)[..., : self.vocab_size], float("-inf"))


def token_masks(answers, num_rows, model, drafts=0):
    """TokenMasks of `num_rows` rows, or None if no answer has a grammar."""
    if all(answer.grammar is None for answer in answers):
        return None
    return TokenMasks(model.config.get_text_config().vocab_size, num_rows, model.device, drafts)
