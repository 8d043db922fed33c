"""A model that answers requests: a loaded base, perhaps under an adapter, a prompt format, and a way to decode."""

import json
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from data_utils.prompt import PromptFormat
from model_utils.generation import Engine, generate


@dataclass
class System:
    """Answers requests by greedy decoding.

    max_new_tokens: of each answer. batch_tokens: the tokens of the cache of keys and values, new ones included. grammar: whether
    each answer keeps to the grammar of its request's tools. engine: as choose_engine gives it; None: chosen for the requests.
    """

    model: object  # a transformers or PEFT model
    tokenizer: PreTrainedTokenizerBase
    prompt_format: PromptFormat
    max_new_tokens: int
    batch_tokens: int
    grammar: bool = False
    engine: Engine | None = None

    def answer(self, requests, on_token=None):
        """`(index, Generation)` of each request, in the order in which they finish. Nothing runs before the first is asked for.

        requests: Rows, or anything else with a `query` and `tools` (JSON). on_token: called with an Answer after each token.
        """
        prompts = [self.prompt_format.render(request.query, request.tools) for request in requests]
        return generate(
            self.model,
            self.tokenizer,
            self.prompt_format,
            prompts,
            max_new_tokens=self.max_new_tokens,
            batch_tokens=self.batch_tokens,
            tools=[json.loads(request.tools) for request in requests] if self.grammar else None,
            on_token=on_token,
            engine=self.engine,
        )
