"""The tokenizer and the decoding of an exported model, in its folder. Servers read both from it."""

import contextlib
import shutil

from transformers import GenerationConfig
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file

from data_utils.chat import TEMPLATES, chat_template, response_template, turn_template
from data_utils.example_rows import difficult_rows, example_rows
from data_utils.tokens import MARKS, encode_prompts, wants_bos
from eval_utils.folder import read_rows
from model_utils.generation import end_tokens
from model_utils.loading import ModelSource, load_tokenizer
from run_utils.errors import UserError
from run_utils.files import read_json, write_json

# Keys of a tokenizer_config.json that saving moves (chat_template.jinja, extra_special_tokens), or
# that are no settings.
NOT_RESTORED = {
    *("chat_template", "response_schema", "additional_special_tokens", "added_tokens_decoder", "name_or_path"),
    *(
        "is_local",
        "local_files_only",
        "special_tokens_map_file",
        "tokenizer_file",
        "vocab_file",
        "merges_file",
        "device_map",
        "slow_tokenizer_class",
    ),
}


def describe_serving(model, tokenizer, name, prompt_format):
    """Set a tokenizer's templates (chat, response) and a model's decoding (greedy, end tokens). The
    format `chat` keeps its base's templates."""
    if name in TEMPLATES:
        try:
            tokenizer.chat_template = chat_template(tokenizer, name)
        except ValueError as error:
            raise UserError(f"{error}: serve the adapter itself") from None
        tokenizer.response_template = response_template(tokenizer)
    elif tokenizer.response_template is None:
        tokenizer.response_template = turn_template(prompt_format)
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=sorted(end_tokens(model, tokenizer, prompt_format) - {None}),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )


def save_model(model, folder):
    """Save the weights and the decoding. vLLM and llama.cpp ignore `do_sample: false` and sample
    unless the temperature is 0. transformers refuses to save both, so the file is edited."""
    model.save_pretrained(folder)
    path = folder / "generation_config.json"
    write_json(path, read_json(path) | {"temperature": 0.0})


def save_tokenizer(tokenizer, source, folder):
    """Save a tokenizer with the keys of its source's tokenizer_config.json that `save_pretrained`
    loses, such as LlamaTokenizer's "legacy", and with the source's tokenizer.model. llama.cpp's
    converter reads the latter if it exists.

    source: the tokenizer's ModelSource."""
    tokenizer.save_pretrained(folder)
    config, path = get_tokenizer_config(source.path, revision=source.revision), folder / "tokenizer_config.json"
    written = read_json(path)
    lost = {name: config[name] for name in config.keys() - written.keys() - NOT_RESTORED}
    if "add_bos_token" in lost:  # tokenizer.json's rule replaces the key in transformers, but not in llama.cpp
        lost["add_bos_token"] = wants_bos(tokenizer)
    sentencepiece = find_file(source, "tokenizer.model")
    if sentencepiece:
        shutil.copyfile(sentencepiece, folder / "tokenizer.model")
    if sentencepiece or "added_tokens_decoder" in config:  # tokenizer.model does not have the added tokens
        tokens = tokenizer.added_tokens_decoder.items()
        lost["added_tokens_decoder"] = {str(index): token.__getstate__() for index, token in tokens}
    write_json(path, written | lost)


def find_file(source, name):
    """The path of a file of a model's folder or repository, or None."""
    try:
        return cached_file(source.path, name, revision=source.revision)
    except OSError:  # no such file
        return None


def check_tokenizer(tokenizer, source, folder, prompts, end_token=None):
    """Read a saved tokenizer back. Raises UserError if its templates or special tokens differ, or
    its token ids of a prompt, as training encodes it (special tokens are text) or as servers do.

    source: of the tokenizer, a ModelSource. prompts: texts. end_token: see tokens.encode."""
    saved = load_tokenizer(ModelSource(str(folder), trust_remote_code=source.trust_remote_code))
    ids_of = (token_ids(either, prompts, end_token) for either in (tokenizer, saved))
    pairs = list(zip(*ids_of, strict=True))
    differing = [prompt for prompt, (before, after) in zip(prompts, pairs, strict=True) if before != after]
    facts = ("chat_template", "response_template", "bos_token_id", "eos_token_id", "pad_token_id")
    faults = [name for name in facts if getattr(tokenizer, name) != getattr(saved, name)]
    if differing or faults:
        config = get_tokenizer_config(source.path, revision=source.revision)
        written = read_json(folder / "tokenizer_config.json")
        changed = sorted(name for name in config.keys() - NOT_RESTORED if config[name] != written.get(name))
        faults += [f"the token ids of {len(differing)} of {len(prompts)} prompts"] * bool(differing)
        raise UserError(
            f"read back, the tokenizer differs in {', '.join(faults)}; keys of its tokenizer_config.json that differ: "
            f"{', '.join(changed) or 'none'}. Nothing is exported: serve the adapter itself"
        )


def token_ids(tokenizer, prompts, end_token):
    """Of each prompt, the token ids of training and of a server. A chat has its own BOS."""
    bos = tokenizer.bos_token if wants_bos(tokenizer) and not end_token else ""
    trained = [ids.tolist() for ids in encode_prompts(tokenizer, prompts, end_token)]
    served = tokenizer([bos + MARKS.sub("", prompt) for prompt in prompts], add_special_tokens=False).input_ids
    return list(zip(trained, served, strict=True))


def sample_prompts(adapter_folder, tokenizer, prompt_format, count=200):
    """`count` prompts to compare tokenizers with: of the example rows, of the evaluation beside the
    adapter (at most half), and of difficult texts."""
    rows = example_rows()
    with contextlib.suppress(UserError):  # no evaluation
        rows += read_rows(adapter_folder.parent / "evaluation")[0][: count // 2]
    rows += difficult_rows(tokenizer.all_special_tokens, count - len(rows))
    return list(map(prompt_format.prompt, rows))
