"""xgrammar 0.2.8: a GrammarCompiler with its cache, which is the default, compiles a grammar that refuses a text of its own.

    python findings/xgrammar_compiler_cache.py

Prints False for the cache and True without. model_utils/grammar.py compiles without it. Reduced by machine from the grammar of
an object with a required key "b" and others; of * or a star in the repetitions it is the same.
"""

import xgrammar

GRAMMAR = r"""
root ::= "{" rule_6
null ::= "null"
key ::= ("\"" | "\\" ["\\bfnrt] key) (= ": ")
rule_0 ::= "\"b\": " null
rule_2 ::= [^"\\\x00-\x1f\U00000062] key
rule_3 ::= "}"
rule_4 ::= rule_0 (", " "\"" rule_2 ": " null)* rule_3
rule_5 ::= ", " rule_4
rule_6 ::= "\"" rule_2 ": " null (", " "\"" rule_2 ": " null)* rule_5
"""
TEXT = '{"z": null, "b": null}'

tokens = xgrammar.TokenizerInfo([bytes([byte]) for byte in range(256)] + [b""], stop_token_ids=[256])
for cache_enabled in (True, False):
    compiler = xgrammar.GrammarCompiler(tokens, cache_enabled=cache_enabled)
    compiled = compiler.compile_grammar(xgrammar.Grammar.from_ebnf(GRAMMAR))
    matcher = xgrammar.GrammarMatcher(compiled, terminate_without_stop_token=True)
    print(f"cache_enabled={cache_enabled}: accepts {TEXT}: {matcher.accept_string(TEXT) and matcher.is_terminated()}")
