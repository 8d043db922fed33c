"""Turn one query and a list of tools into tool calls: the JSON list alone on stdout, everything else on stderr.

    python infer.py                                                   # the embedded demo's adapter, after train.py
    python infer.py --adapter runs/qwen3_4b_qlora/adapter --query "Is it raining in Rome?" --tools tools.json
    curl ... | python infer.py --adapter ... --query "..." --tools -   # the tools from stdin
    python infer.py --model_name_or_path Qwen/Qwen3-4B-Base --system raw --query "..." --tools tools.json

Tools are a JSON list in xLAM's flat form: [{"name", "description", "parameters": {argument: {"description", "type"}}}].
An output that is not a list of calls to these tools ends with exit code 1; the raw text is then on stderr.
"""

import codecs
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_utils.batching import encode_prompts
from data_utils.prompt import render_prompt, render_raw_prompt, to_json
from data_utils.tool_calls import check_tools, parse_calls, parse_json
from generation_utils import generate
from model_utils import load_adapter, load_base_model, load_tokenizer, naming_adapter, read_adapter, resolve_model
from script_utils import UserError, parse_arguments, require, require_positive, run_script, start_accelerator
from self_checks import num_positions


@dataclass
class InferenceArguments:
    config: str | None = field(default=None, metadata={"help": "YAML file of these arguments; flags override it"})
    query: str | None = None
    tools: str | None = field(default=None, metadata={"help": "JSON file with the list of tools, or - for stdin"})
    adapter: str | None = field(default=None, metadata={"help": "Folder that train.py saved: adapter/ or a checkpoint"})
    system: Literal["raw", "prompted", "adapter"] | None = field(
        default=None, metadata={"help": "adapter where one is given, else prompted"}
    )
    model_name_or_path: str | None = field(default=None, metadata={"help": "By default the adapter's base"})
    model_revision: str | None = None
    quantization: Literal["none", "nf4", "int8"] | None = field(
        default=None, metadata={"help": "By default the adapter's"}
    )
    merge_adapter: bool = field(
        default=True, metadata={"help": "Into weights that are neither quantised nor shared: faster, and checked"}
    )
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    max_new_tokens: int = 512

    def __post_init__(self):
        require_positive(self, "max_new_tokens")
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

    accelerator = start_accelerator(args.dtype)
    with naming_adapter(from_adapter, "--model_name_or_path"):
        model_path = resolve_model(model_name)
    tokenizer = load_tokenizer(model_path, revision)
    model = load_base_model(model_path, accelerator, revision, quantization)
    prompt = (render_raw_prompt if args.system == "raw" else render_prompt)(args.query, to_json(tools))
    (prompt_ids,) = encode_prompts(tokenizer, [prompt])
    positions = num_positions(model.config)
    if len(prompt_ids) >= positions:
        raise UserError(
            f"the prompt has {len(prompt_ids)} tokens and the model {positions} positions: offer fewer tools"
        )
    if args.system == "adapter":
        model = load_adapter(model, args.adapter, [prompt_ids] if args.merge_adapter else ())

    ((_, generation),) = generate(model, tokenizer, [prompt], args.max_new_tokens, batch_tokens=1)
    try:
        calls = parse_calls(generation.text)
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
