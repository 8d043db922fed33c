"""The embedded default: a tiny pretrained base model, a generator of xLAM-like rows, and the script
that made the model.

`world.py` reads the tools, `language.py` makes up values and requests, and `rows.py` joins them
into rows of query, tools and answers. `model.py`, `corpus.py` and `pretrain.py` made the base
model. Using the model does not need them.
"""
