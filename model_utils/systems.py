"""A model that answers requests: a loaded base, perhaps under an adapter, a prompt format, and a
way to decode."""

import json
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_utils.example_rows import example_rows, example_texts
from data_utils.few_shot import with_shots
from data_utils.prompt import PROMPT_FORMATS, PromptFormat
from data_utils.systems import SYSTEMS
from model_utils.adapters import load_adapter
from model_utils.generation import Engine, generate
from model_utils.token_masks import accepts


@dataclass
class System:
    """Answers requests by greedy decoding.

    model: transformers' or PEFT's. max_new_tokens: per answer. batch_tokens: of the cache of keys
    and values, new tokens included. grammar: whether an answer must match the grammar of its
    request's tools. engine: from choose_engine; None: chosen for the requests."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompt_format: PromptFormat
    max_new_tokens: int
    batch_tokens: int
    grammar: bool = False
    engine: Engine | None = None

    def answer(self, requests, on_token=None):
        """`(index, Generation)` of each request, in order of completion. A generator: nothing runs
        before the first is requested.

        requests: Rows. on_token: called with an Answer after each token."""
        return generate(
            self.model,
            self.tokenizer,
            self.prompt_format,
            list(map(self.prompt_format.prompt, requests)),
            max_new_tokens=self.max_new_tokens,
            batch_tokens=self.batch_tokens,
            tools=[json.loads(request.tools) for request in requests] if self.grammar else None,
            on_token=on_token,
            engine=self.engine,
        )

    def can_generate(self, row):
        """Whether the grammar of a row's tools accepts the row's own answers."""
        vocab_size = self.model.config.get_text_config().vocab_size
        _, text = self.prompt_format.texts(row)
        return accepts(self.tokenizer, vocab_size, json.loads(row.tools), text)


def open_systems(names, base, tokenizer, *, prompt_format, adapter=None, merge=True, shots=(), **decoding):
    """`(name, System)` of each name of SYSTEMS except servers. The base's systems are first, since
    merging changes the base.

    prompt_format: for systems without a format. adapter: an Adapter.
    merge: merge it into the base's weights, after a comparison on two example rows. shots:
    Rows, the examples of `fewshot`. decoding: System's max_new_tokens and batch_tokens."""
    adapted = None
    for name in sorted(names, key=lambda name: SYSTEMS[name].adapter):
        spec = SYSTEMS[name]
        system_format = PROMPT_FORMATS[spec.prompt] if spec.prompt else prompt_format
        if spec.shots:
            system_format = with_shots(system_format, shots)
        if spec.adapter and adapted is None:
            texts = example_texts(tokenizer, system_format, example_rows()[:2]) if merge else None
            adapted = load_adapter(base, adapter, merge_checked_on=texts)
        model = adapted if spec.adapter else base
        yield name, System(model, tokenizer, system_format, grammar=spec.grammar, **decoding)
