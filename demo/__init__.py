"""The embedded default: a tiny pretrained base model, a generator of xLAM-like rows, and the script
that made the model. Beside it, scripts that make other rows and a GGUF file.

`world.py` reads the tools, `language.py` makes up values and requests, and `rows.py` joins them
into rows of query, tools and answers. `model.py`, `corpus.py` and `pretrain.py` made the base
model. Using the model does not need them.

`assistant_rows.py`, `agent_rows.py` and `leaderboard_rows.py` write files of rows for the pages of
docs/. `to_gguf.py` writes an export for llama.cpp.
"""
