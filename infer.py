"""Turn one query and a list of tools into tool calls: the JSON list alone on stdout, everything else on stderr.

    python infer.py                                                   # the embedded demo's adapter, after train.py
    python infer.py --adapter runs/qwen3_4b_qlora/adapter --query "Is it raining in Rome?" --tools tools.json
    curl ... | python infer.py --adapter ... --query "..." --tools -   # the tools from stdin
    python infer.py --model_name_or_path Qwen/Qwen3-4B-Base --system raw --query "..." --tools tools.json

Tools are a JSON list in xLAM's flat form: [{"name", "description", "parameters": {argument: {"description", "type"}}}].
An output that is not a list of calls to these tools ends with exit code 1; the raw text is then on stderr.
"""

import os
import sys

from run_utils.signals import exit_at_once, handle_signals

if __name__ == "__main__":
    handle_signals(exit_at_once)  # until run_script has its own
    if os.environ.get("RANK", "0") == "0":
        print("Loading PyTorch and transformers ...", file=sys.stderr)

import codecs
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_utils.batching import encode_prompts
from data_utils.prompt import PROMPT_FORMATS, to_json
from data_utils.tool_calls import check_calls, check_tools, parse_json
from model_utils.adapters import load_adapter, naming_adapter, read_adapter
from model_utils.generation import generate
from model_utils.loading import load_base_model, load_tokenizer, resolve_model
from model_utils.self_checks import num_positions
from run_utils.arguments import UserError, argument, check_limits, parse_arguments, require, run_script
from run_utils.launch import start_accelerator


@dataclass
class InferenceArguments:
    config: str | None = argument(None, "YAML file of these arguments; flags override it")
    query: str | None = argument(None, "What the tools should be called for")
    tools: str | None = argument(None, "JSON file with the list of tools, or - for stdin")
    max_new_tokens: int = argument(512, above=0)

    adapter: str | None = argument(None, "Folder that train.py saved: adapter/ or a checkpoint", group="Model")
    system: Literal["raw", "prompted", "adapter"] | None = argument(None, "adapter where one is given, else prompted")
    model_name_or_path: str | None = argument(None, "By default the adapter's base")
    model_revision: str | None = argument(None)
    trust_remote_code: bool = argument(False, "Run Python code that comes with the model")
    prompt_format: Literal[*PROMPT_FORMATS] | None = argument(
        None, "Of the base alone: tags-1 by default. An adapter knows its own"
    )
    quantization: Literal["none", "nf4", "int8"] | None = argument(None, "By default the adapter's, or none")
    merge_adapter: bool = argument(True, "Into weights that are neither quantised nor shared: faster, and checked")
    dtype: Literal["auto", "bf16", "fp32"] = argument("auto", "auto: bf16 on CUDA, fp32 on a CPU")

    def __post_init__(self):
        check_limits(self)
        require(self.query and self.query.strip(), "--query is missing: what should the tools be called for?")
        require(encodes(self.query), "--query holds half a surrogate pair, which is not text")
        require(self.tools, "--tools is missing: a JSON file with the list of tools, or - for stdin")
        require(self.adapter or self.model_name_or_path, "name an --adapter or a --model_name_or_path")
        self.system = self.system or ("adapter" if self.adapter else "prompted")
        require(self.adapter or self.system != "adapter", "the system 'adapter' needs --adapter")


def main():
    args = parse_arguments(InferenceArguments, __doc__, "demo_infer.yaml")
    tools = read_tools(args.tools)
    training_args = read_adapter(args.adapter)[0] if args.adapter else {}
    model_name = args.model_name_or_path or training_args["model_name_or_path"]
    own_base = model_name == training_args.get("model_name_or_path")
    from_adapter = args.adapter if not args.model_name_or_path else None
    revision = args.model_revision or (training_args.get("model_revision") if own_base else None)
    quantization = args.quantization or training_args.get("quantization", "none")
    name = training_args.get("prompt_format", args.prompt_format or "tags-1")
    require(args.prompt_format in (None, name), f"{args.adapter} was trained with --prompt_format {name}")
    prompt_format = PROMPT_FORMATS["raw" if args.system == "raw" else name]

    accelerator = start_accelerator(args.dtype)
    with naming_adapter(from_adapter, "--model_name_or_path"):
        model_path = resolve_model(model_name)
    tokenizer = load_tokenizer(model_path, revision, args.trust_remote_code)
    model = load_base_model(model_path, accelerator, revision, quantization, args.trust_remote_code)
    prompt = prompt_format.render(args.query, to_json(tools))
    (prompt_ids,) = encode_prompts(tokenizer, [prompt])
    positions = num_positions(model.config)
    if len(prompt_ids) >= positions:
        raise UserError(
            f"the prompt has {len(prompt_ids)} tokens and the model {positions} positions: offer fewer tools"
        )
    if args.system == "adapter":
        model = load_adapter(model, args.adapter, [prompt_ids] if args.merge_adapter else ())

    ((_, generation),) = generate(model, tokenizer, prompt_format, [prompt], args.max_new_tokens, batch_tokens=1)
    try:
        calls = prompt_format.parse(generation.text)
        check_calls(calls)
        unknown = {call["name"] for call in calls} - {tool["name"] for tool in tools}
        if unknown:
            raise ValueError(f"a call to {', '.join(sorted(unknown))}, which is not among the tools")
    except ValueError as error:
        print(generation.text, file=sys.stderr)
        reason = error
        if generation.finish == "length":
            by_budget = generation.num_tokens == args.max_new_tokens
            limit = f"--max_new_tokens {args.max_new_tokens}" if by_budget else f"the model's {positions} positions"
            reason = f"cut off at {limit}"
        raise UserError(f"the output above is not a list of calls to these tools: {reason}") from None
    utf8 = codecs.lookup(sys.stdout.encoding).name == "utf-8"
    print(to_json(calls) if utf8 and encodes(to_json(calls)) else json.dumps(calls))  # JSON is UTF-8 or ASCII


def encodes(text):
    """Whether a text can be written: half a surrogate pair, alone in a string, cannot."""
    try:
        return text.encode() is not None
    except UnicodeEncodeError:
        return False


def read_tools(path):
    """The list of tools in a JSON file or, for `-`, on stdin."""
    name = "stdin" if path == "-" else path
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        tools = parse_json(data.decode("utf-8-sig"))
        if isinstance(tools, str):  # the `tools` field of an xLAM row, copied as it is
            tools = parse_json(tools)
        check_tools(tools)
        to_json(tools).encode()
    except UnicodeDecodeError:
        raise UserError(f"--tools {name} is not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"--tools {name}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"--tools {name} must be a JSON list of tools: {error}") from None
    return tools


if __name__ == "__main__":
    run_script(main)
