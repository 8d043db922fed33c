"""Turn one query and a list of tools into tool calls: the JSON list alone on stdout, everything else on stderr.

    python infer.py                                                   # the embedded demo's adapter, after train.py
    python infer.py --adapter runs/qwen3_4b_qlora/adapter --query "Is it raining in Rome?" --tools tools.json
    curl ... | python infer.py --adapter ... --query "..." --tools -   # the tools from stdin
    python infer.py --model_name_or_path Qwen/Qwen3-4B-Base --system raw --query "..." --tools tools.json

Tools are a JSON list in xLAM's flat form: [{"name", "description", "parameters": {argument: {"description", "type"}}}].
An output that is not a list of calls to these tools ends with exit code 1; the raw text is then on stderr.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_utils.prompt import render_prompt, render_raw_prompt, to_json
from data_utils.tool_calls import check_tools, parse_calls, parse_json
from generation_utils import generate
from model_utils import load_adapter, load_base_model, load_tokenizer, read_adapter, resolve_model
from script_utils import UserError, parse_arguments, require, require_positive, run_script, start_accelerator


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
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    max_new_tokens: int = 512

    def __post_init__(self):
        require_positive(self, "max_new_tokens")
        require(self.query and self.query.strip(), "--query is missing: what should the tools be called for?")
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
    revision = args.model_revision or (training_args.get("model_revision") if own_base else None)
    quantization = args.quantization or training_args.get("quantization", "none")

    accelerator = start_accelerator(args.dtype)
    model_path = resolve_model(model_name)
    tokenizer = load_tokenizer(model_path, revision)
    model = load_base_model(model_path, accelerator, revision, quantization)
    if args.system == "adapter":
        model = load_adapter(model, args.adapter)

    render = render_raw_prompt if args.system == "raw" else render_prompt
    ((_, generation),) = generate(
        model, tokenizer, [render(args.query, to_json(tools))], args.max_new_tokens, batch_tokens=1
    )
    try:
        calls = parse_calls(generation.text)
        unknown = {call["name"] for call in calls} - {tool["name"] for tool in tools}
        if unknown:
            raise ValueError(f"a call to {', '.join(sorted(unknown))}, which is not among the tools")
    except ValueError as error:
        print(generation.text, file=sys.stderr)
        reason = f"cut off at --max_new_tokens {args.max_new_tokens}" if generation.finish == "length" else error
        raise UserError(f"the output above is not a list of calls to these tools: {reason}") from None
    print(to_json(calls))


def read_tools(path):
    """The list of tools in a JSON file or, for `-`, on stdin."""
    name = "stdin" if path == "-" else path
    try:
        tools = parse_json(sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8"))
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
