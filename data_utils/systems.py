"""The systems of an evaluation: the model, its prompt, and whether a grammar constrains it. No
torch."""

from typing import NamedTuple


class System(NamedTuple):
    help: str
    prompt: str | None = None  # a key of PROMPT_FORMATS; None: training's prompt
    adapter: bool = False
    grammar: bool = False  # from each row's tools
    server: bool = False
    shots: bool = False  # examples before each prompt, see few_shot.py

    @property
    def is_base(self):
        return not (self.adapter or self.server)


# In the order of the tables.
SYSTEMS = {
    "raw": System("base model; the prompt is the bare JSON of query and tools", prompt="raw"),
    "prompted": System("base model; the same prompt as the adapter's"),
    "fewshot": System("base model as prompted, after examples: training rows with their answers", shots=True),
    "constrained": System("base model as prompted, held to the tools' grammar", grammar=True),
    "adapter": System("base model with the fine-tuned LoRA adapter", adapter=True),
    "constrained_adapter": System("with the adapter, held to the tools' grammar", adapter=True, grammar=True),
    "endpoint": System("a model behind an OpenAI-compatible server", server=True),
}


class SystemKey(NamedTuple):
    """A system of one of several evaluations. The label is a folder's name with any text, so it
    stays a separate field."""

    label: str  # empty for a single evaluation
    system: str  # a key of SYSTEMS

    @property
    def kind(self):
        return SYSTEMS[self.system]

    @property
    def name(self):
        """The name in texts."""
        return f"{self.label}: {self.system}" if self.label else self.system


def verdict_pair(systems, baseline=()):
    """The systems in the report's first sentence, as (baseline, judged); None if there are not two.

    systems: SystemKeys in the order of the table. baseline: the requested choice of baselines, if
    any. Judged is the adapter (or server) of the last evaluation that has one. The baseline is, in
    order of preference: the same system of the first other evaluation, an adapter or server of
    another evaluation, the prompted base, the first system."""
    candidates = [key for key in systems if key not in baseline] or list(systems)
    tuned = [key for key in candidates if not key.kind.is_base]
    judged = next((key for key in tuned if key.label == tuned[-1].label), candidates[-1] if candidates else None)
    others = [key for key in baseline or systems if key != judged]

    def preference(key):
        elsewhere = key.label != judged.label
        return elsewhere and key.system == judged.system, elsewhere and not key.kind.is_base, key.system == "prompted"

    return (max(others, key=preference), judged) if others else None  # max returns the first of equals
